"""The code of a job: a folder with our packages, the user's own modules, and where they come from.

narrow_study_code.json    commit, versions (`study.remote.shipped.Shipped`)
narrow_study.diff         what the checkouts hold beyond their commits
study/ trainables/ search_spaces/
my_space.py ...           the user's own modules: Python files, and nothing else
"""

import dataclasses
import importlib.machinery
import importlib.metadata
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from study.errors import UserError
from study.remote.checkouts import Checkout, checkout_of, diff_of
from study.remote.shipped import CODE_FILE, DIFF_FILE, Shipped

OURS = ("search_spaces", "study", "trainables")
_DISTRIBUTION = "narrow-study"
_PYTHON_SUFFIXES = (".py", ".pyi")
_MAX_BYTES = 20 * 2**20


def pack_code(target: Path, *, modules: Path | None) -> Shipped:
    """Write into an empty folder what a job on a cluster needs of this machine.

    Args:
        modules: folder of the user's own modules; None for a command that needs none.

    Returns:
        what the folder says of itself.

    Raises:
        UserError: if the user's modules are too many to be code, or are not where they were.
    """
    from trainables.passport import commit_of  # torch

    ours = _folder_of_ours()
    for package in OURS:
        shutil.copytree(ours / package, target / package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    if modules is not None:
        _copy_modules(modules, target)
    checkouts = _checkouts(ours, modules)
    (target / DIFF_FILE).write_text("".join(diff_of(checkout) for checkout in checkouts), encoding="utf-8", errors="replace")
    code_file = str((modules or ours / "study") / "__init__.py")
    shipped = Shipped(commit=commit_of(code_file), versions=_versions())
    (target / CODE_FILE).write_text(json.dumps(dataclasses.asdict(shipped), indent=2, sort_keys=True))
    return shipped


def own_modules(space: str, folder: Path) -> Path | None:
    """The folder, if a space is a module of the user's there, as `study.spec.load_space` sees it; else None."""
    head = space.partition(":")[0].split(".")[0]
    is_local = (folder / f"{head}.py").is_file() or (folder / head / "__init__.py").is_file()
    return folder.absolute() if head and head not in OURS and is_local else None


def _folder_of_ours() -> Path:
    import study

    return Path(study.__path__[0]).absolute().parent


def _checkouts(ours: Path, modules: Path | None) -> list[Checkout]:
    """Of our packages and of the user's modules; one, where they are in the same."""
    found = [checkout_of(ours / "study", must_hold=True), checkout_of(modules) if modules else None]
    return list(dict.fromkeys(checkout for checkout in found if checkout is not None))


def _copy_modules(folder: Path, target: Path) -> None:
    try:
        files = list(_module_files(folder))
    except OSError as error:
        raise UserError(
            "the folder that a space was launched from must be readable, since its Python files travel to a cluster, but "
            f"{folder} is not ({error.strerror}); put it there again"
        ) from error
    size = sum(file.stat().st_size for file in files)
    if size > _MAX_BYTES:
        raise UserError(
            f"the Python files that travel to a cluster must be at most {_MAX_BYTES >> 20} MiB in all, but those of {folder} are "
            f"{size >> 20} MiB; launch from a folder that holds the space and what it imports"
        )
    for file in files:
        copy = target / file.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def _module_files(folder: Path) -> Iterator[Path]:
    """The Python files of modules and packages that a space in the folder can import from it."""
    for entry in sorted(folder.iterdir()):
        if entry.is_file() and entry.suffix == ".py" and _is_importable(entry.stem, folder):
            yield entry
        elif (entry / "__init__.py").is_file() and _is_importable(entry.name, folder):
            for parent, folders, files in os.walk(entry):
                folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
                yield from (Path(parent, name) for name in sorted(files) if name.endswith(_PYTHON_SUFFIXES))


def _is_importable(name: str, folder: Path) -> bool:
    """Whether `import name` means what is in the user's folder: on this machine, too, what is installed comes first."""
    if not name.isidentifier() or name in OURS or name in sys.stdlib_module_names:
        return False
    elsewhere = [path for path in sys.path if Path(path or ".").absolute() != folder.absolute()]
    found = importlib.machinery.PathFinder.find_spec(name, elsewhere)
    return found is None or found.origin is None  # a folder without __init__.py hides no module


def _versions() -> dict[str, str]:
    """Of Python and of every package that ours need, as they are installed here."""
    from study.provenance import installed_versions

    versions = installed_versions()
    for requirement in _requirements():
        try:
            versions[requirement] = importlib.metadata.version(requirement)
        except importlib.metadata.PackageNotFoundError:  # not here either: none of the laptop's needs
            continue
    return versions


def _requirements() -> list[str]:
    try:
        lines = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [match[0] for line in lines if "extra ==" not in line and (match := re.match(r"[\w.-]+", line))]
