"""With what code a study runs, whether it is still the study that it was, and what a fork of it changes."""

import dataclasses
import importlib.metadata
import json
import platform
import re
import shlex
import socket
from typing import Any

from study.errors import UserError
from study.spec import StudySpec
from trainables.experiment import metric_named
from trainables.registry import load_experiment

_PACKAGES = ("narrow-study", "torch", "ray", "optuna", "mlflow", "numpy")
_PARENTS_SHOWN = 32
"""In MLflow, of a longer line of forks the last: a tag has a longest text."""


def refuse_drift(old: StudySpec, new: StudySpec) -> None:
    """Refuse to go on with another study under the same name.

    Raises:
        UserError: showing every difference.
    """
    if old.hash != new.hash:
        changes = "; ".join(differences(old.identity, new.identity))
        raise UserError(
            f"a study goes on only as what it was, but {old.name!r} differs now ({changes}); "
            f"fork it: {_fork_command(old, new)}, or undo the change"
        )
    if new.num_trials < old.num_trials:
        raise UserError(
            f"a study's budget only grows, from {old.num_trials} trials for {old.name!r}, but got {new.num_trials}; "
            "leave --trials out to go on as it was"
        )
    if old.tracking_uri != new.tracking_uri:
        raise UserError(
            f"a study's runs stay in one MLflow, {old.tracking_uri} for {old.name!r}, but got {new.tracking_uri}; "
            "leave --tracking-uri out"
        )
    if old.record != new.record:
        raise UserError(
            f"a study's record stays in one database, {old.record or 'a file in its home'} for {old.name!r}, but got "
            f"{new.record}; leave --record out"
        )


def refuse_other_parents(old: StudySpec, parent: StudySpec) -> None:
    """Refuse to go on with a study as a fork of what it was not forked from.

    Raises:
        UserError: naming what it was forked from.
    """
    if [known.study_id for known in old.parents] != [known.study_id for known in parent.as_parents()]:
        origin = f"forked from {old.parents[-1]}" if old.parents else "no fork"
        raise UserError(
            f"a fork's name must be free, but {old.name!r} is {origin} and not of {parent.name!r} as it is; choose another "
            f"name, or go on with that one: study resume {old.name}"
        )


def next_name(name: str) -> str:
    """What a fork may be called: l1-2 for l1, l1-3 for l1-2."""
    match = re.fullmatch(r"(.+)-(\d+)", name)
    stem, number = (match[1], int(match[2]) + 1) if match else (name, 2)
    return f"{stem[: 79 - len(str(number))]}-{number}"


def _fork_command(old: StudySpec, new: StudySpec) -> str:
    """The command that runs what was refused as a study of its own."""
    words = ["study", "fork", old.name, next_name(old.name)]
    if new.space != old.space:
        words += ["--space", new.space]
    for key, value in new.space_arguments.items():
        if old.space_arguments.get(key) != value:
            words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    if new.sampler != old.sampler:
        words += ["--sampler", new.sampler]
    for key, value in new.sampler_options.items():
        if old.sampler_options.get(key) != value:
            words += ["--sampler-set", f"{key}={json.dumps(value)}"]
    if new.given_trials != old.given_trials:
        words += ["--first", json.dumps(new.given_trials)]
    if new.warm_start != old.warm_start:
        words += [word for source in new.warm_start for word in ("--warm-start", source)]
    for option in ("seed", "replicates", "early_stopping"):
        if getattr(new, option) != getattr(old, option):
            words += [f"--{option.replace('_', '-')}", str(getattr(new, option))]
    if new.lookahead != old.lookahead:
        words += ["--no-deterministic"] if new.lookahead is None else ["--deterministic", "--max-concurrent", str(new.lookahead)]
    return shlex.join(words)


def describe_fork(parent: StudySpec, new: StudySpec) -> str:
    """What a fork changes: one line each, after one that says what it is."""
    changes = differences(_all_that_counts(parent), _all_that_counts(new)) or ["nothing but its name"]
    head = f"{new.name} is forked from {new.parents[-1]} and begins with no trials of its own; what differs:"
    return "\n  ".join([head, *changes])


def _all_that_counts(spec: StudySpec) -> dict[str, Any]:
    """What a study is, and what else may change its results or its cost."""
    names = ("space", "space_arguments", "num_trials", "num_cpus", "num_gpus", "storage", "versions", "commit")
    return spec.identity | {name: getattr(spec, name) for name in names}


def describe_changes(old: StudySpec, new: StudySpec) -> str | None:
    """What differs although the study is the same: code, versions, storage. Worth a word, no reason to refuse."""
    changes = differences(old.versions | {"commit": old.commit}, new.versions | {"commit": new.commit})
    if old.storage != new.storage:
        changes.append(f"storage: {old.storage} -> {new.storage}; unfinished trials begin anew unless you moved their files")
    return f"note: {new.name} goes on with a difference ({'; '.join(changes)})" if changes else None


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """What two identities disagree on, one line each."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {_shown(old, key)} -> {_shown(new, key)}")
    return lines


def _shown(fields: dict[str, Any], key: str) -> str:
    return str(fields[key]) if key in fields else "(absent)"


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def session_tags(spec: StudySpec) -> dict[str, Any]:
    """What the parent run says of the study: all that a query needs."""
    metrics = load_experiment(spec.description.experiment).METRICS
    objectives = [
        {"metric": name, "goal": goal, "unit": metric.unit}
        for name, goal in spec.description.objectives.items()
        if (metric := metric_named(metrics, name)) is not None
    ]
    return {
        "space": spec.space,
        "space_arguments": json.dumps(spec.space_arguments),
        "experiment": spec.description.experiment,
        "spec_hash": spec.hash,
        "objectives": objectives,
        "constraints": list(spec.description.constraints),
        "parameters": {p.name: p.values for p in spec.description.parameters},
        "log_scale": spec.log_scale,
        "color_by": json.dumps(spec.color_by),
        "num_trials": str(spec.num_trials),
        "num_cpus": str(spec.num_cpus),
        "num_gpus": str(spec.num_gpus),
        "sampler": spec.sampler,
        "sampler_options": spec.sampler_options,
        "replicates": str(spec.replicates),
        "early_stopping": spec.early_stopping,
        "warm_start": list(spec.warm_start),
        "limits": {name: value for name, value in dataclasses.asdict(spec.limits).items() if value is not None},
        "seed": str(spec.seed),
        "storage": spec.storage,
        "parents": [dataclasses.asdict(parent) for parent in spec.parents[-_PARENTS_SHOWN:]],
        "commit": spec.commit or "none",
        "hostname": socket.gethostname(),
    } | {f"version.{package}": version for package, version in spec.versions.items()}
