"""MLflow's model registry: a model of a study under a name and an alias, for tools that look there."""

from contextlib import ExitStack

from study.asking.models import require_ended_well
from study.asking.trials import TrialRow
from study.errors import UserError
from study.home import model_label
from study.keeping.retention import REGISTERED_TAG
from study.recording.tracking import answering, connect, require_candidate, require_model

from mlflow import MlflowClient  # isort: skip: study.recording.tracking quietens it first
from mlflow.exceptions import MlflowException  # isort: skip


def register_model(row: TrialRow, tracking_uri: str, *, name: str, alias: str | None = None) -> int:
    """Make a model a version of a registered model; one that is registered already keeps its version.

    `mlflow.artifacts.download_artifacts("models:/NAME@ALIAS")` copies its folder, as `study model` does.

    Args:
        name: of the registered model, made if there is none.
        alias: that names this version from now on; None for none.

    Returns:
        the version.

    Raises:
        UserError: if there is no such model, MLflow refuses the name or the alias, or does not answer; then nothing is made.
    """
    require_ended_well(row)
    if "'" in name or '"' in name:  # MLflow could not search for its versions
        raise UserError(f"a registered model's name must be without quotes, but got {name!r}; choose another")
    client = connect(tracking_uri)
    with answering(tracking_uri):
        try:
            with ExitStack() as undo:
                version = _version(client, row, name, undo)
                if alias is not None:
                    client.set_registered_model_alias(name, alias, str(version))
                undo.pop_all()
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            raise UserError(
                f"a registered model's name and alias must be ones that MLflow takes, but {error}; choose others"
            ) from error
    return version


def _version(client: MlflowClient, row: TrialRow, name: str, undo: ExitStack) -> int:
    source = _require(client, row)
    _protect(client, row, name, undo)
    _make(client, name, undo)
    for known in client.search_model_versions(f"name = '{name}'"):
        if known.source == source:
            return int(known.version)
    label = f"{row.source_study or row.study or ''} {model_label(row.number, row.candidate)}".strip()
    made = client.create_model_version(name, source, run_id=row.run_id, tags={"narrow_study.model": label})
    undo.callback(client.delete_model_version, name, made.version)
    return int(made.version)


def _require(client: MlflowClient, row: TrialRow) -> str:
    """Where MLflow has the model's folder; refuses one that it has not, or whose files the study has given up."""
    return require_model(client, row.run_id) if row.model_id is None else require_candidate(client, row.model_id)


def _protect(client: MlflowClient, row: TrialRow, name: str, undo: ExitStack) -> None:
    """Have the study keep its files; a study that gives them up now says so first, and then looks for this tag once more."""
    if row.model_id is not None:
        before = client.get_logged_model(row.model_id).tags
        client.set_logged_model_tags(row.model_id, {REGISTERED_TAG: name})
        if REGISTERED_TAG not in before:
            undo.callback(client.delete_logged_model_tag, row.model_id, REGISTERED_TAG)
    else:
        before = client.get_run(row.run_id).data.tags
        client.set_tag(row.run_id, REGISTERED_TAG, name)
        if REGISTERED_TAG not in before:
            undo.callback(client.delete_tag, row.run_id, REGISTERED_TAG)
    _require(client, row)


def _make(client: MlflowClient, name: str, undo: ExitStack) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    else:
        undo.callback(_remove_if_empty, client, name)


def _remove_if_empty(client: MlflowClient, name: str) -> None:
    if not client.search_model_versions(f"name = '{name}'"):  # nobody else has put something there
        client.delete_registered_model(name)
