"""A log, piece by piece."""

import os

from study.asking.query import Study
from study.home import StudyFolder
from study.running.background import log_file

_PIECE = 64 * 1024


def driver_log(folder: StudyFolder, after: int) -> dict[str, str | int]:
    """What drivers in the background printed, from a byte on; at most 64 KiB of it."""
    try:
        with log_file(folder).open("rb") as file:
            start = min(after, file.seek(0, os.SEEK_END))
            file.seek(start)
            return _piece(file.read(_PIECE), start)
    except OSError:
        return {"text": "", "next": 0}


def trial_log(study: Study, number: int, after: int) -> dict[str, str | int]:
    """What a trial's worker printed, likewise.

    Raises:
        UserError: if there is no such trial, or the storage does not answer.
    """
    study.trial(number)
    data = study.log(number).encode()
    start = min(after, len(data))
    return _piece(data[start : start + _PIECE], start)


def _piece(data: bytes, start: int) -> dict[str, str | int]:
    """Text up to the last whole character."""
    for cut in range(min(4, len(data))):
        try:
            text = data[: len(data) - cut].decode()
        except UnicodeDecodeError:
            continue
        return {"text": text, "next": start + len(data) - cut}
    return {"text": data.decode(errors="replace"), "next": start + len(data)}
