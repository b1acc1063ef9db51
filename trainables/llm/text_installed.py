"""Text that every machine has: Python, C++ and prose of the standard library and the installed packages."""

import functools
import os
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from trainables.llm.text_cleaning import decoded
from trainables.randomness import stream_key

DOMAINS = ("python", "cpp", "prose")
_SUFFIXES = {".py": "python", ".md": "prose", ".rst": "prose"} | dict.fromkeys(
    (".h", ".hpp", ".hh", ".cuh", ".cc", ".cpp"), "cpp"
)
_METADATA = "METADATA"  # of a package: headers, an empty line, its README
_PROSE_STEM = re.compile(r"licen[cs]e|notice|copying|readme|change(s|log)|history|news|contributing", re.IGNORECASE)
_PROSE_SUFFIXES = ("", ".txt")
_GENERATED = re.compile(r"@generated|do not edit|auto-?generated|automatically generated", re.IGNORECASE)
_GENERATED_WITHIN = 2000  # characters from the start
_OTHER_ROOTS = {"__pycache__", "site-packages", "dist-packages"}


def installed_texts(domain: str, seed: int) -> Iterator[str]:
    """Read the installed files of a domain, in an order that depends on their names and the seed alone.

    Left out: what cannot be decoded, and what says that a program wrote it (three C++ headers in four, nearly alike).
    """
    for path in _ordered(installed_roots(), domain, seed):
        text = _read(path)
        if text is not None and _GENERATED.search(text, 0, _GENERATED_WITHIN) is None:
            yield text


def installed_roots() -> tuple[Path, ...]:
    """Folders of the standard library and of the packages, each once."""
    named = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    found = [Path(str(package.__file__)).parent.parent for package in _packages()]
    return tuple(dict.fromkeys(path.resolve() for path in (*map(Path, named), *found) if path.is_dir()))


@functools.lru_cache(maxsize=2)
def installed_files(roots: tuple[Path, ...]) -> dict[str, dict[str, str]]:
    """Find the files of every domain below the roots, by their path relative to their root; once in a process."""
    found: dict[str, dict[str, str]] = {domain: {} for domain in DOMAINS}
    for root in roots:
        for folder, subfolders, names in os.walk(root):
            subfolders[:] = set(subfolders) - _OTHER_ROOTS
            inside = folder.removeprefix(str(root)).lstrip(os.sep)
            for name in names:
                domain = domain_of(name)
                if domain is not None:
                    found[domain].setdefault(os.path.join(inside, name), os.path.join(folder, name))
    return found


def domain_of(name: str) -> str | None:
    """Tell what a file's name promises: a domain, or None."""
    if name == _METADATA:
        return "prose"
    stem, suffix = os.path.splitext(name)
    if suffix in _PROSE_SUFFIXES and _PROSE_STEM.match(stem):
        return "prose"
    return _SUFFIXES.get(suffix)


@functools.lru_cache(maxsize=len(DOMAINS))
def _ordered(roots: tuple[Path, ...], domain: str, seed: int) -> list[Path]:
    paths = installed_files(roots)[domain]
    order = {name: stream_key("installed", seed, name) for name in sorted(paths)}
    return [Path(paths[name]) for name in sorted(order, key=order.__getitem__)]


def _read(path: Path) -> str | None:
    try:
        text = decoded(path.read_bytes())
    except OSError:  # uninstalled meanwhile, or a link to nowhere
        return None
    return text.partition("\n\n")[2] if text is not None and path.name == _METADATA else text


def _packages() -> list[ModuleType]:
    """Packages that may lie elsewhere than sysconfig says, as on Debian."""
    import numpy
    import torch

    return [numpy, torch]
