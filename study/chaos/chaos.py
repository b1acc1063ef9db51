"""Kill a small study again and again, and see whether it comes to what it comes to when it is left in peace."""

import contextlib
import json
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from study.chaos.faults import draw_faults
from study.chaos.patient import Pace, Patient, StuckError
from study.chaos.sheet import Check, compare, look_at
from study.errors import UserError

_ORPHANS_S = 60.0
"""How long what a SIGKILL has orphaned may take to notice and end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChaosReport:
    """How it went.

    Attributes:
        faults: what happened, in order.
        checks: of the study that was killed, beside the one in peace.
        num_launches: of the study that was killed.
        seconds: of wall time, for both.
        folder: where they lie; None if they are removed.
    """

    faults: list[str]
    checks: list[Check]
    num_launches: int
    seconds: float
    folder: str | None

    @property
    def passed(self) -> bool:
        """Whether every check holds."""
        return all(check.holds for check in self.checks)


def run_chaos(
    command: Sequence[str],
    *,
    num_trials: int,
    kills: int,
    seed: int,
    keep: bool = False,
    say: Callable[[str], None] = print,
) -> ChaosReport:
    """Run a study in peace, then the same one under a schedule of faults, and compare.

    Args:
        command: of `study launch`: the space and options, but for the name. One trial at a time, or the deterministic mode:
            else the two may differ for good reasons.
        num_trials: that the command asks for.
        kills: faults.
        seed: of the schedule; that of the study is in the command.
        keep: leave both studies on disk even if all is well.
        say: told what happens, a line at a time.

    Raises:
        UserError: if the study does not even run in peace.
    """
    begin = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="study-chaos-"))
    try:
        say("a study in peace, to compare with")
        peace, pace = _run_in_peace(folder / "peace", command, num_trials)
        with contextlib.closing(Patient(folder / "killed", command, num_trials)) as patient:
            happened, num_again = _torment(patient, kills, seed, pace, say)
            num_left_behind = patient.num_left_behind(_ORPHANS_S)
        checks = compare(look_at(peace.study), look_at(patient.study))
    except BaseException:
        say(f"both studies are in {folder}")
        raise
    checks = [
        Check("faults that found their occasion", str(kills), str(len(happened))),
        *checks,
        Check("trials handed out again after their end", "0", str(num_again)),
        Check("launches that ended too early by themselves", "none", "; ".join(patient.surprises) or "none"),
        Check("processes left behind", "0", str(num_left_behind)),
    ]
    keep = keep or not all(check.holds for check in checks)
    if not keep:
        shutil.rmtree(folder)
    return ChaosReport(
        faults=happened,
        checks=checks,
        num_launches=patient.num_launches,
        seconds=time.monotonic() - begin,
        folder=str(folder) if keep else None,
    )


def _run_in_peace(folder: Path, command: Sequence[str], num_trials: int) -> tuple[Patient, Pace]:
    """The study, and how fast it was."""
    launched_ms = time.time_ns() // 1_000_000
    with contextlib.closing(Patient(folder, command, num_trials)) as patient:
        patient.max_surprises = 0
        try:
            patient.finish()
        except StuckError as error:
            raise UserError(f"a study must run in peace before it is killed, but {error}; mend it") from error
    with contextlib.closing(sqlite3.connect(f"file:{patient.study.outbox_file}?mode=ro", uri=True)) as connection:
        rows = connection.execute("SELECT payload FROM event WHERE key GLOB 'trial/*/end/*' ORDER BY seq").fetchall()
    ends_ms = [json.loads(payload)["time_ms"] for (payload,) in rows]
    trial_ms = (ends_ms[-1] - ends_ms[0]) / max(1, len(ends_ms) - 1)
    return patient, Pace(first_s=(ends_ms[0] - launched_ms) / 1000, trial_s=trial_ms / 1000)


def _torment(patient: Patient, kills: int, seed: int, pace: Pace, say: Callable[[str], None]) -> tuple[list[str], int]:
    """Kill it so many times and let it come to its end; return what happened, and how many trials were run after their end."""
    happened, ended = [], dict[int, int]()
    try:
        for number, fault in enumerate(draw_faults(kills, seed), start=1):
            if patient.suffer(fault, pace):
                happened.append(str(fault))
                say(f"kill {number} of {kills}: {fault}; {patient.num_ended} trials have ended")
                ended = patient.attempts_of_ended() | ended  # what was known first
            else:
                say(f"kill {number} of {kills}: {fault}: no occasion, since the study is done")
        patient.finish()
    except StuckError as error:
        patient.surprises.append(str(error))
    attempts = patient.attempts_of_ended()
    return happened, sum(attempts.get(trial) != known for trial, known in ended.items())
