"""What a job knows of the code that came with it: its commit, its diff, the versions where it comes from."""

import importlib.metadata
import importlib.util
import json
import platform
from dataclasses import dataclass
from pathlib import Path

CODE_FILE = "narrow_study_code.json"
DIFF_FILE = "narrow_study.diff"
_COMPARED = ("python", "torch", "ray", "optuna", "mlflow", "numpy")
"""What results depend on: `study.provenance.installed_versions`, but for our own package, which travels."""


@dataclass(frozen=True, slots=True)
class Shipped:
    """Code that came from another machine.

    Attributes:
        commit: of the checkout that the space comes from, `-dirty` with uncommitted changes; None outside git.
        versions: of Python and of the packages there, `not installed` among them.
    """

    commit: str | None
    versions: dict[str, str]


def shipped_code(folder: str | Path = ".") -> Shipped | None:
    """What came with a job into its folder; None where no job's code is."""
    try:
        fields = json.loads((Path(folder) / CODE_FILE).read_text())
    except FileNotFoundError:
        return None
    return Shipped(fields["commit"], fields["versions"])


def shipped_diff(folder: str | Path = ".") -> bytes:
    """What the checkouts of shipped code held beyond their commits; empty for clean ones."""
    file = Path(folder) / DIFF_FILE
    return file.read_bytes() if file.is_file() else b""


def modules_now(import_paths: list[str]) -> str | None:
    """Where the user's own modules of an earlier session are now: in a job, with the code that came with it.

    An earlier job's folder is Ray's to delete.
    """
    if not import_paths:
        return None
    return str(Path.cwd()) if shipped_code() else import_paths[0]


def folder_now(folder: str) -> str:
    """Where relative paths of an earlier session lead from now: in a job, from its own folder."""
    return "." if shipped_code() else folder


def lacking(shipped: Shipped) -> list[str]:
    """Packages that the code needs, and had where it comes from, and that this machine lacks."""
    return [name for name in shipped.versions if name not in ("python", "narrow-study") and not _is_there(name, shipped)]


def version_differences(shipped: Shipped) -> list[str]:
    """Each version that is another here, in words for whoever sent the code."""
    lines = []
    for name in _COMPARED:
        there, here = shipped.versions.get(name), _version(name)
        if there is not None and here is not None and there != here:
            lines.append(f"{name} {here} where you have {there}")
    return lines


def _is_there(name: str, shipped: Shipped) -> bool:
    if shipped.versions[name] == "not installed" or _version(name) is not None:
        return True
    return importlib.util.find_spec(name.replace("-", "_")) is not None  # there, but not as a package that pip knows


def _version(name: str) -> str | None:
    if name == "python":
        return platform.python_version()
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
