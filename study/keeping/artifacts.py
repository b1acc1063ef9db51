"""The files of runs and logged models where MLflow keeps them: how many bytes they are, and how they go."""

import os
import re
from pathlib import Path

from study.keeping.retention import REGISTERED_TAG
from study.recording import tracking

import mlflow  # isort: skip: study.recording.tracking quietens it first
from mlflow.entities import LifecycleStage, ViewType  # isort: skip
from mlflow.exceptions import MlflowException  # isort: skip
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository  # isort: skip
from mlflow.utils.file_utils import local_file_uri_to_path  # isort: skip

_NO_REGISTRY = ("FEATURE_DISABLED", "ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED", "PERMISSION_DENIED")
"""What MLflow says where it has none, or none for us."""
_ID = re.compile(r"[0-9a-f]{32}|m-[0-9a-f]+")
"""Of a run, or of a logged model."""
_PAGE = 1000


def num_bytes(uri: str, tracking_uri: str) -> int:
    """Bytes of all files below an artifact's address; 0 if there is none."""
    if folder := local_folder(uri):
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    parent, name = _split(uri)
    repository = get_artifact_repository(parent, tracking_uri=tracking_uri)
    folders, total = [name], 0
    while folders:
        for info in repository.list_artifacts(folders.pop()):
            if info.is_dir:
                folders.append(info.path)
            else:
                total += info.file_size or 0
    return total


def delete(uri: str, tracking_uri: str) -> None:
    """Remove an artifact's folder; one that is gone already is no error.

    Raises:
        Exception: whatever the place says that does not allow it.
    """
    parent, name = _split(uri)
    get_artifact_repository(parent, tracking_uri=tracking_uri).delete_artifacts(name)  # type: ignore[no-untyped-call]


def orphans(client: mlflow.MlflowClient, experiment_id: str) -> dict[str, str]:
    """Where files are of runs and logged models that an experiment has no more, by their ids.

    Where MLflow's files are not on this machine, only those of deleted runs are found. What is in MLflow's registry is none:
    that has no copy of its own.
    """
    deleted = list(tracking.all_runs(client, experiment_id, view=ViewType.DELETED_ONLY))
    spared = in_registry(client) | {run.info.run_id for run in deleted if REGISTERED_TAG in run.data.tags}
    root = local_folder(client.get_experiment(experiment_id).artifact_location)
    if root is None:
        gone = {run.info.run_id: str(run.info.artifact_uri) for run in deleted if run.info.run_id not in spared}
        return {run_id: uri for run_id, uri in gone.items() if client.list_artifacts(run_id)}
    folders = [path for pattern in ("*", "models/*") for path in root.glob(pattern) if _ID.fullmatch(path.name)]
    living = {run.info.run_id for run in tracking.all_runs(client, experiment_id)}
    living |= {model.model_id for model in tracking.all_models(client, experiment_id)}
    return {path.name: path.as_uri() for path in folders if path.name not in living | spared}


def in_registry(client: mlflow.MlflowClient) -> frozenset[str]:
    """Runs and logged models of which MLflow's registry has a version, whoever put it there, by their ids."""
    try:
        versions = list(tracking.every(lambda token: client.search_model_versions(max_results=_PAGE, page_token=token)))
    except MlflowException as error:
        if error.error_code not in _NO_REGISTRY:
            raise
        return frozenset()
    return frozenset(place for version in versions for place in _ID.findall(version.source or ""))


def delete_experiment(tracking_uri: str, name: str, study_id: str | None) -> str | None:
    """Delete a study's experiment with all its files, and make its name free.

    MLflow only hides an experiment and keeps its name: it gets another one first.

    Args:
        study_id: None for whichever is of that name, as of imports, where two of one source have one id.

    Returns:
        its id; None if MLflow has none of this study's.

    Raises:
        UserError: if MLflow does not answer, or does not allow it.
    """
    client = tracking.connect(tracking_uri)
    with tracking.answering(tracking_uri):
        ours = f"tags.`{tracking.STUDY_TAG}` = '{name}'"
        if study_id is not None:
            ours += f" AND tags.`{tracking.STUDY_ID_TAG}` = '{study_id}'"
        found = client.search_experiments(view_type=ViewType.ALL, filter_string=ours)
        for experiment in found:
            delete(experiment.artifact_location, tracking_uri)
            if experiment.name == name:
                if experiment.lifecycle_stage == LifecycleStage.DELETED:
                    client.restore_experiment(experiment.experiment_id)
                client.rename_experiment(experiment.experiment_id, f"{name}-deleted-{experiment.experiment_id}")
            if client.get_experiment(experiment.experiment_id).lifecycle_stage == LifecycleStage.ACTIVE:
                client.delete_experiment(experiment.experiment_id)
    return str(found[0].experiment_id) if found else None


def log(uri: str, folder: str, kind: str, tracking_uri: str) -> None:
    """Put a folder's files into a part of a run's artifacts.

    Args:
        uri: of the run's artifacts.
        kind: the part's name.
    """
    get_artifact_repository(uri, tracking_uri=tracking_uri).log_artifacts(folder, kind)  # type: ignore[no-untyped-call]


def sync(uri: str) -> None:
    """Have an artifact's files survive a power loss, where they are on this machine: MLflow does not see to that."""
    folder = local_folder(uri)
    for path in [] if folder is None else [folder, *folder.rglob("*")]:
        if path.exists():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def local_folder(uri: str) -> Path | None:
    """Where artifacts are on this machine; None if they are elsewhere."""
    is_local = uri.startswith(("file:", "/"))
    return Path(local_file_uri_to_path(uri)) if is_local else None  # type: ignore[no-untyped-call]


def _split(uri: str) -> tuple[str, str]:
    """An address and the last part of its path: MLflow deletes what is inside of an address."""
    parent, _, name = uri.rstrip("/").rpartition("/")
    return parent, name
