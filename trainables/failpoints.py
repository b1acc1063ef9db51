"""Places where `study chaos` and tests kill a process, as SIGKILL would at that very instant.

A place is armed by a file of its name in the folder that `$NARROW_STUDY_FAILPOINTS` names. The first process of the study
that comes by takes the file and dies, so that one arming is one death. Without the variable nothing is looked up.
"""

import os
import signal
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

VARIABLE = "NARROW_STUDY_FAILPOINTS"
FIRED = ".fired"

Place = Literal[
    "trial drawn",  # in memory: the record has nothing of it
    "trial committed",  # the record has all of it, and nobody else knows
    "trial noted",  # MLflow will hear of it, no worker has it
    "file written",  # beside its place, not yet renamed
    "work saved",  # the last checkpoint is there, the study has not heard
    "end noted",  # MLflow will hear of the end, the record has not
    "trial told",  # the record has the end, MLflow perhaps not
    "run ending",  # MLflow has all of the trial but its end
    "event delivered",  # MLflow has it, the outbox does not know
    "trial clearing",  # its models are noted, its files about to go
    "model going",  # tagged as dropped, its files still there
]


def failpoint(place: Place, detail: str = "") -> None:
    """Die here if the place is armed.

    Args:
        detail: an arming may ask for one, such as the name of a file.
    """
    folder = os.environ.get(VARIABLE)
    if folder and _take(Path(folder) / place, detail):
        os.kill(os.getpid(), signal.SIGKILL)


def arm(folder: Path, place: Place, pattern: str = "*") -> Path:
    """Have the next process that comes by die, if the detail there matches a pattern as file names do.

    Returns:
        the file that will be there when it has.
    """
    armed = folder / place
    armed.with_suffix(".new").write_text(pattern)
    armed.with_suffix(".new").rename(armed)
    return armed.with_suffix(FIRED)


def disarm(folder: Path, place: Place) -> None:
    """Take an arming back."""
    (folder / place).unlink(missing_ok=True)


def _take(armed: Path, detail: str) -> bool:
    try:
        if not fnmatch(detail, armed.read_text()):
            return False
        armed.rename(armed.with_suffix(FIRED))
    except FileNotFoundError:  # it is not armed, or another process was quicker
        return False
    return True
