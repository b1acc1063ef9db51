"""What a launch is refused for before any trial is touched: numbers, GPUs, a storage that is no storage or another's."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from search_spaces.space import StudySpace
from study.errors import UserError
from study.home import Home
from study.running.rungs import StopRule
from study.spec import SpaceDescription, StudySpec
from trainables.experiment import Experiment
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


def check_limits(spec: StudySpec) -> None:
    """Refuse limits that nothing would ever count towards.

    Raises:
        UserError: naming the option.
    """
    if spec.limits.gpu_hours is not None and spec.num_gpus == 0:
        raise UserError(
            f"--gpu-hours needs trials that hold a GPU, but got {spec.limits.gpu_hours:g} for trials without; use --cpu-hours"
        )
    if spec.limits.flops is not None and load_experiment(spec.description.experiment).flops is Experiment.flops:
        raise UserError(
            f"--flops needs an experiment that counts them, but {spec.description.experiment} does not; use --cpu-hours or "
            "--gpu-hours"
        )


def check_early_stopping(text: str, description: SpaceDescription, *, lookahead: int | None) -> str:
    """Read which trials are to be stopped early; returns it in the one form that a study remembers.

    Args:
        lookahead: of the deterministic mode; None for none.

    Raises:
        UserError: if there is no such way or not for so many objectives, or if whose values come first would depend on which
            worker is faster.
    """
    rule = StopRule.parse(text)
    rule.check(description.at_rungs)
    if rule.levels and lookahead is not None and lookahead > 1:
        raise UserError(
            f"--deterministic needs trials that end whoever is faster, but --early-stopping {text} compares them as they come; "
            "use --max-concurrent 1, or --early-stopping none"
        )
    return str(rule)


def with_given(space: StudySpace, given: Sequence[Mapping[str, Any]]) -> StudySpace:
    """Have a space's trials begin with given parameters; those that it begins with itself come after, once.

    What a table of a front has beside parameters is left out.
    """
    others = {"trial", "candidate", "run_id", *space.objectives}
    firsts = [{name: value for name, value in params.items() if name not in others} for params in given]
    firsts += [dict(params) for params in space.first_trials if dict(params) not in firsts]
    return dataclasses.replace(space, first_trials=tuple(firsts)) if given else space


def absolute_storage(storage: str) -> str:
    """A storage's address that means the same from every folder."""
    storage = storage.removeprefix("file://")
    return storage.rstrip("/") if "://" in storage else str(Path(storage).expanduser().absolute())
