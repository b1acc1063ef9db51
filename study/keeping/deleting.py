"""Delete a study: its files in the storage, its experiment in MLflow, its record, its folder in the home.

The home's folder goes last and all at once, so that a process that was killed here is finished by the same call.
"""

import json
import shutil
from pathlib import Path

from study.asking.several import has_database
from study.home import Home, StudyFolder
from study.keeping.cleaning import OWNER, alone, lease_of
from study.running.lease import LEASE
from study.spec import StudySpec

_TRASH = ".deleted-"


def delete(name: str, *, home: str | Path | None = None) -> str | None:
    """Remove a study from its storage, from MLflow and from its home; its forks keep their own files.

    Args:
        home: None for `$STUDY_HOME`.

    Returns:
        what the user may want to know, if anything.

    Raises:
        UserError: if there is no such study, it is running, or MLflow does not answer.
    """
    folder = Home(home).study(name)
    trash = folder.path.with_name(f"{_TRASH}{name}")
    if trash.exists() and not folder.path.exists():  # all else is gone already
        shutil.rmtree(trash)
        return None
    if folder.is_imported:
        return _delete_import(folder, trash)
    if folder.path.is_dir() and not folder.exists():
        return _delete_draft(folder, trash)
    folder.require()
    from study.running.record_place import RecordPlace  # and Optuna with it

    with alone(folder) as spec:
        with lease_of(spec, folder):
            notice = _delete_from_mlflow(spec.tracking_uri, spec.name, spec.study_id)
            RecordPlace.of(spec, folder).delete()
            is_ours = _empty_storage(spec)
        if is_ours:
            spec.study_folder.remove()
        shutil.rmtree(trash, ignore_errors=True)
        folder.path.rename(trash)
    shutil.rmtree(trash)
    return notice


def _delete_draft(folder: StudyFolder, trash: Path) -> str | None:
    """What a launch left that was refused, or ended before its first trial."""
    notice = None
    with folder.lease():
        if folder.spec_file.is_file():
            spec = StudySpec.load(folder.spec_file)
            if has_database(spec.tracking_uri):
                notice = _delete_from_mlflow(spec.tracking_uri, spec.name, spec.study_id)
            if _empty_storage(spec):
                spec.study_folder.remove()
        shutil.rmtree(trash, ignore_errors=True)
        folder.path.rename(trash)
    shutil.rmtree(trash)
    return notice


def _delete_import(folder: StudyFolder, trash: Path) -> str | None:
    """It is rows in its home's MLflow, and a note of where they came from."""
    with folder.lease():
        notice = _delete_from_mlflow(folder.home.tracking_uri, folder.name, None)
        shutil.rmtree(trash, ignore_errors=True)
        folder.path.rename(trash)
    shutil.rmtree(trash)
    return notice


def _delete_from_mlflow(tracking_uri: str, name: str, study_id: str | None) -> str | None:
    from study.keeping import artifacts

    place = artifacts.delete_experiment(tracking_uri, name, study_id)
    if place is None:
        return None
    database = tracking_uri if tracking_uri.startswith("sqlite:") else "DATABASE"
    return (
        f"MLflow hides its rows as those of experiment {place}; for good they go with: mlflow gc --tracking-uri "
        f"{tracking_uri} --backend-store-uri {database} --experiment-ids {place}"
    )


def _empty_storage(spec: StudySpec) -> bool:
    """Remove a study's files, last the one that says whose they are; return whether they are this study's."""
    folder = spec.study_folder
    names = {path.partition("/")[0] for path in folder.sizes()}
    if OWNER not in names:
        return names <= {LEASE}
    if json.loads(folder.read(OWNER))["study_id"] != spec.study_id:
        return False
    for name in sorted(names - {OWNER, LEASE}):
        folder.child(name).remove()
        folder.delete(name)
    return True
