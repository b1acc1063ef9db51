"""What a launch is refused for before any trial is touched: numbers, GPUs, a storage that is no storage or another's."""

import json
from pathlib import Path

from study.errors import UserError
from study.home import Home
from study.spec import StudySpec
from trainables.registry import load_experiment


def check_gpus(spec: StudySpec) -> None:
    """Of several GPUs, each has a process of its own: refuse a part of one, and experiments that are one process.

    Raises:
        UserError: for either.
    """
    if spec.num_gpus > 1 and spec.num_gpus % 1:
        whole = int(spec.num_gpus)
        raise UserError(f"--gpus-per-trial above 1 must be a whole number, but got {spec.num_gpus:g}; use {whole} or {whole + 1}")
    if spec.num_gpus > 1 and not load_experiment(spec.description.experiment).parallel:
        raise UserError(
            f"--gpus-per-trial must be at most 1 for {spec.description.experiment}, which trains on one device, but got "
            f"{spec.num_gpus:g}; use --gpus-per-trial 1"
        )


def check_storage(spec: StudySpec, home: Home | None = None) -> None:
    """Write to the storage before any trial does, and find out whose it is.

    Args:
        home: that runs it from now on, to be noted there; None before that is certain.

    Raises:
        UserError: if it cannot be written, or holds another study of this name.
    """
    folder = spec.study_folder
    try:
        known = json.loads(folder.read("study.json")) if "study.json" in folder.names() else {"study_id": spec.study_id}
        owner = known["study_id"]
        if owner == spec.study_id:
            fields = known | {"spec_hash": spec.hash} | ({"home": str(home.path)} if home else {})
            folder.write("study.json", json.dumps(fields).encode())
    except Exception as error:
        raise UserError(
            f"the storage must be a folder or URI that can be written, but {spec.storage} is not ({error}); "
            "make room there or mend it, or name another with --storage"
        ) from error
    if owner != spec.study_id:
        raise UserError(
            f"a storage must hold one study of a name, but {folder.address} belongs to another {spec.name!r}; "
            "choose another name or --storage"
        )


def check_numbers(**numbers: int | None) -> None:
    """Refuse options that are given and below 1.

    Raises:
        UserError: naming the option.
    """
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, but got {value}; leave it out for the default")


def check_positive(**numbers: float | None) -> None:
    """Refuse options that are given and not positive.

    Raises:
        UserError: naming the option.
    """
    for name, value in numbers.items():
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name.replace('_', '-')} must be positive, but got {value:g}; leave it out for the default")


def absolute_storage(storage: str) -> str:
    """A storage's address that means the same from every folder."""
    storage = storage.removeprefix("file://")
    return storage.rstrip("/") if "://" in storage else str(Path(storage).expanduser().absolute())
