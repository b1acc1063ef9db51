"""With what code a study runs, and whether it is still the study that it was."""

import importlib.metadata
import inspect
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from study.errors import UserError
from study.spec import StudySpec

_PACKAGES = ("narrow-study", "torch", "ray", "optuna", "mlflow", "numpy")


def refuse_drift(old: StudySpec, new: StudySpec) -> None:
    """Refuse to go on with another study under the same name.

    Raises:
        UserError: showing every difference.
    """
    if old.hash != new.hash:
        changes = "; ".join(differences(old.identity, new.identity))
        raise UserError(
            f"a study goes on only as what it was, but {old.name!r} differs now ({changes}); "
            "launch it under another name, or undo the change"
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


def checkout_commit(code: Callable[..., Any]) -> str | None:
    """Commit of the checkout that some code is in, with `-dirty` for uncommitted changes; None outside git."""
    folder = Path(inspect.getfile(code)).parent
    try:
        described = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None
