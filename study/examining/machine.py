"""This machine: packages, the study home, temporary files, GPUs."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from study.examining.findings import BROKEN, OK, WARNING, Finding, Places
from study.home import filesystem_of, refuse_network_filesystem
from study.keeping.disk import shown

_DISTRIBUTION = "narrow-study"
_FEW_BYTES, _TOO_FEW_BYTES = 5_000_000_000, 300_000_000
_FULL = 0.95
"""Of a disk: with less room, Ray stops to keep objects there."""
_SECONDS = 10.0


def look_at_packages(places: Places) -> list[Finding]:
    """Python and the packages that ours need, beside the ranges that they are tested with."""
    about = importlib.metadata.metadata(_DISTRIBUTION)
    python, wanted = platform.python_version(), SpecifierSet(about["Requires-Python"] or "")
    findings = [Finding("python", OK, python)]
    if not wanted.contains(python, prereleases=True):
        findings = [Finding("python", BROKEN, f"{python}, not {wanted}", "make a new environment with such a Python")]
    requirements = [Requirement(line) for line in importlib.metadata.requires(_DISTRIBUTION) or []]
    asked = [need for need in requirements if need.marker is None or need.marker.evaluate({"extra": ""})]
    wrong = [(need, found) for need in asked if (found := _unfit(need)) is not None]
    for need, found in wrong:
        missing = BROKEN if found == "missing" else WARNING
        findings.append(Finding(need.name, missing, f"{found}, not {need.specifier}", f"pip install '{_plain(need)}'"))
    return findings if wrong else [*findings, Finding("packages", OK, f"all {len(asked)} in their ranges")]


def _unfit(need: Requirement) -> str | None:
    """The version of a package that is outside its range, or that it is missing."""
    try:
        version = importlib.metadata.version(need.name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"
    return None if need.specifier.contains(version, prereleases=True) else version


def _plain(need: Requirement) -> str:
    extras = f"[{','.join(sorted(need.extras))}]" if need.extras else ""
    return f"{need.name}{extras}{need.specifier}"


def look_at_home(places: Places) -> list[Finding]:
    """Whether the study home can be written, is on a disk of this machine, and has room."""
    home = places.home.path
    refuse_network_filesystem(home)
    there = next(folder for folder in (home, *home.parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        return [Finding("study home", BROKEN, f"{home} cannot be written ({error.strerror})", "set STUDY_HOME to another")]
    free = shutil.disk_usage(there).free
    found = f"{home}, {shown(free)} free" + (f" on {kind}" if (kind := filesystem_of(there)) else "")
    state = BROKEN if free < _TOO_FEW_BYTES else WARNING if free < _FEW_BYTES else OK
    return [Finding("study home", state, found, "" if state == OK else "make room there: study gc")]


def look_at_temporary_files(places: Places) -> list[Finding]:
    """Whether Ray has room for its logs and for objects that memory cannot hold."""
    place = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    usage = shutil.disk_usage(place)
    found = f"{place}, {shown(usage.free)} free"
    if usage.used > _FULL * usage.total:
        remedy = "make room there, or set RAY_TMPDIR to a larger disk"
        return [Finding("Ray's temporary files", WARNING, f"{found}: more than {_FULL:.0%} are full", remedy)]
    return [Finding("Ray's temporary files", OK, found)]


def look_at_gpus(places: Places) -> list[Finding]:
    """The GPUs that torch sees, beside those that the driver does."""
    import torch

    driver = _driver_says()
    if not torch.cuda.is_available():
        if not driver:
            return [Finding("GPUs", OK, "none: trials run on CPUs")]
        remedy = f"install a torch for this driver (torch {torch.__version__} is built for CUDA {torch.version.cuda})"
        return [Finding("GPUs", WARNING, f"torch sees none, the driver {len(driver)} ({driver[0]})", remedy)]
    findings = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        findings.append(Finding(f"GPU {number}", OK, f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"))
    return findings


def _driver_says() -> list[str]:
    """A line for each GPU: its name and the driver's version; none without `nvidia-smi`."""
    try:
        command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []
