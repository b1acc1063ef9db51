"""The life of a study between its launches: stop the one that runs, give one that ended more trials."""

import time
from pathlib import Path

from study.errors import UserError
from study.home import Home
from study.spec import StudySpec

_POLL_S = 0.2


def stop(name: str, *, home: str | Path | None = None, timeout_s: float = 300.0) -> bool:
    """Have whoever runs a study keep what is done and end, and wait for it.

    Args:
        home: None for `$STUDY_HOME`.
        timeout_s: how long to wait.

    Returns:
        whether anybody ran it.

    Raises:
        UserError: if there is no such study, or it does not end in time; it was asked all the same.
    """
    folder = Home(home).study(name).require()
    holder = folder.holder()
    if holder is None:
        return False
    deadline = time.monotonic() + timeout_s
    while folder.holder() == holder:
        folder.ask_to_stop()  # again and again: a session that has just begun clears what was asked before it
        if time.monotonic() > deadline:
            raise UserError(
                f"a study must end within {timeout_s:g} s of being asked, but {name!r} is still being run by process "
                f"{holder['pid']} on {holder['host']}; wait longer, or kill it: `study resume {name}` loses nothing"
            )
        time.sleep(_POLL_S)
    return True


def check_extension(name: str, trials: int, *, home: str | Path | None = None) -> None:
    """Refuse an extension that is none.

    Raises:
        UserError: if the study has that many trials already.
    """
    spec = StudySpec.load(Home(home).study(name).require().spec_file)
    if trials <= spec.num_trials:
        raise UserError(
            f"an extension must be of more than the {spec.num_trials} trials of {name!r}, but got {trials}; "
            f"use --trials {2 * spec.num_trials}, or `study resume {name}` for those that are left"
        )
