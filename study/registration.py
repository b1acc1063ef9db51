"""MLflow's model registry: a model of a study under a name and an alias, for tools that look there."""

from study.errors import UserError
from study.retention import REGISTERED_TAG, refuse_dropped
from study.tracking import answering, connect
from study.trials import TrialRow

from mlflow import MlflowClient  # isort: skip: study.tracking quietens it first
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
        UserError: if MLflow refuses the name or the alias, or does not answer.
    """
    client = connect(tracking_uri)
    with answering(tracking_uri):
        try:
            version = _version(client, row, name)
            if alias is not None:
                client.set_registered_model_alias(name, alias, str(version))
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            raise UserError(
                f"a registered model's name and alias must be ones that MLflow takes, but {error}; choose others"
            ) from error
    return version


def _version(client: MlflowClient, row: TrialRow, name: str) -> int:
    source = _source(client, row)
    _make(client, name)
    _protect(client, row, name)
    for known in client.search_model_versions(f"name = '{name}'"):
        if known.source == source:
            return int(known.version)
    label = f"{row.study or ''} {row.label}".strip()
    made = client.create_model_version(name, source, run_id=row.run_id, tags={"narrow_study.model": label})
    return int(made.version)


def _protect(client: MlflowClient, row: TrialRow, name: str) -> None:
    """Have the study keep its files, and refuse one whose files it has given up."""
    if row.model_id is not None:
        client.set_logged_model_tags(row.model_id, {REGISTERED_TAG: name})
        tags = client.get_logged_model(row.model_id).tags
    else:
        client.set_tag(row.run_id, REGISTERED_TAG, name)
        tags = client.get_run(row.run_id).data.tags
    refuse_dropped(tags, f"model {row.label}")


def _source(client: MlflowClient, row: TrialRow) -> str:
    """Where MLflow has the model's folder."""
    if row.model_id is not None:
        return str(client.get_logged_model(row.model_id).artifact_location)
    return f"{client.get_run(row.run_id).info.artifact_uri}/model"


def _make(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
