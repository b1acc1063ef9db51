"""A study in a home of its own, launched by the same command whenever it is not running, so that faults may befall it."""

import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from study.chaos.faults import Fault, kill, newest_checkpoint, processes_of, tear
from study.home import Home
from trainables.attempt import CHECKPOINT_INTERVAL
from trainables.failpoints import VARIABLE, arm, disarm

_NAME = "chaos"
_POLL_S = 0.05
_PATIENCE_S = 240.0
_MAX_SURPRISES = 5
_DONE_SPAN_S = 4.0
"""A launch of a study that is done lives about so long."""


class StuckError(RuntimeError):
    """The study neither gets on nor ends."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things take in peace.

    Attributes:
        first_s: seconds from a launch to the end of its first trial.
        trial_s: of a trial after that.
    """

    first_s: float
    trial_s: float


class Patient:
    """A study and its processes.

    Args:
        folder: of its own; made here.
        command: arguments of `study launch`, but for the name.
        num_trials: the budget that they ask for.

    Attributes:
        num_launches: so far.
        surprises: launches that ended by themselves before the study was done, in words.
        max_surprises: with one more, it is given up.
    """

    def __init__(self, folder: Path, command: Sequence[str], num_trials: int) -> None:
        self.study = Home(folder / "home").study(_NAME)
        self.storage = self.study.home.path / "storage" / _NAME
        self.optuna_file = self.study.optuna_file
        self.failpoints = folder / "failpoints"
        self.failpoints.mkdir(parents=True)
        self.log = folder / "launches.log"
        self.num_launches = 0
        self.surprises: list[str] = []
        self.max_surprises = _MAX_SURPRISES
        self._command, self._num_trials = command, num_trials
        self._lost_ray = False
        self._driver = self._launch()

    def _launch(self) -> subprocess.Popen[bytes]:
        self.num_launches += 1
        self._launched_at = time.monotonic()
        self._lost_ray = False
        environment = {"STUDY_HOME": str(self.study.home.path), VARIABLE: str(self.failpoints), CHECKPOINT_INTERVAL: "0"}
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *self._arguments()],
                env=os.environ | environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def _arguments(self) -> list[str]:
        """What Python is launched with."""
        return ["-P", "-m", "study.cli", "launch", *self._command, "--name", _NAME]

    @property
    def num_ended(self) -> int:
        """Trials of which the record knows the end."""
        if not self.optuna_file.exists():
            return 0
        with contextlib.closing(sqlite3.connect(f"file:{self.optuna_file}?mode=ro", uri=True, timeout=30)) as connection:
            try:
                query = "SELECT count(*) FROM trials WHERE state NOT IN ('RUNNING', 'WAITING')"
                return int(connection.execute(query).fetchone()[0])
            except sqlite3.OperationalError:  # its tables are not made yet
                return 0

    def attempts_of_ended(self) -> dict[int, int]:
        """How often each trial was handed out, of those whose end the record knows: it shall not grow any more."""
        query = """SELECT number, value_json FROM trials JOIN trial_user_attributes USING (trial_id)
                   WHERE key = 'attempts' AND state NOT IN ('RUNNING', 'WAITING')"""
        if not self.num_ended:
            return {}
        with contextlib.closing(sqlite3.connect(f"file:{self.optuna_file}?mode=ro", uri=True, timeout=30)) as connection:
            return {number: int(text) for number, text in connection.execute(query)}

    @property
    def is_done(self) -> bool:
        """Whether it came to its end by itself."""
        return self._driver.poll() in (0, 1) and self.num_ended >= self._num_trials

    @property
    def runs(self) -> bool:
        """Whether its driver does."""
        return self._driver.poll() is None

    def go_on(self, until: Callable[[], bool]) -> bool:
        """Let it run, launched again whenever it ends too early.

        Returns:
            whether `until` came true; False if the study was done first.

        Raises:
            StuckError: if neither happens, and no trial ends, for minutes.
        """
        deadline, num_ended = time.monotonic() + _PATIENCE_S, self.num_ended
        while not until():
            if not self._is_kept_up():
                return False
            if time.monotonic() > deadline:
                if self.num_ended == num_ended:
                    raise StuckError(f"for {_PATIENCE_S:g} s it neither got on nor ended")
                deadline, num_ended = time.monotonic() + _PATIENCE_S, self.num_ended
            time.sleep(_POLL_S)
        return True

    def _is_kept_up(self) -> bool:
        """Launch it again if it has ended too early; return whether it runs."""
        if not self.runs and not self.is_done:
            self._note_surprise()
            self._driver = self._launch()
        return self.runs

    def _note_surprise(self) -> None:
        """Remember a launch that ended by itself: after SIGKILL, or without Ray, it may."""
        code = self._driver.returncode
        if code == -9 or self._lost_ray:
            return
        lines = self.log.read_text(errors="replace").strip().splitlines() or ["no word"]
        self.surprises.append(f"exit code {code} ({lines[-1]})")
        if len(self.surprises) > self.max_surprises:
            raise StuckError(f"it ends by itself with {self.surprises[-1]}")

    def suffer(self, fault: Fault, pace: Pace) -> bool:
        """Have a fault happen; return whether there was an occasion.

        Args:
            pace: the fault's moment is a share of the first trial of a launch, or of one more where that is over.
        """
        self._is_kept_up()
        moment = max(self._launched_at + fault.moment * pace.first_s, time.monotonic() + fault.moment * pace.trial_s)
        is_done = not self.go_on(lambda: time.monotonic() >= moment)
        if is_done:
            self._driver = self._launch()
            time.sleep(fault.moment * _DONE_SPAN_S)
        if fault.place is None:
            return self._kill(fault) or (not is_done and self.go_on(partial(self._kill, fault)))
        return self._die_at(fault)

    def _die_at(self, fault: Fault) -> bool:
        assert fault.place is not None
        fired = arm(self.failpoints, fault.place, fault.pattern)
        happened = self.go_on(fired.exists)
        disarm(self.failpoints, fault.place)
        fired.unlink(missing_ok=True)
        return happened

    def _kill(self, fault: Fault) -> bool:
        torn = self._newest_checkpoint() if fault.target == "power" else None
        if fault.target == "power" and torn is None:
            return False
        found = kill(fault.target, self.failpoints, self._driver.pid)
        self._lost_ray = self._lost_ray or (found and fault.target == "raylet")
        if found and fault.target in ("driver", "everything", "power"):
            self._driver.wait()
        if torn is not None:
            tear(self._newest_checkpoint() or torn)
        return found

    def _newest_checkpoint(self) -> Path | None:
        return newest_checkpoint(self.storage)

    def finish(self) -> None:
        """Let it run to its end.

        Raises:
            StuckError: if it does not come there.
        """
        self.go_on(lambda: False)

    def num_left_behind(self, within_s: float) -> int:
        """Processes that outlive the study by so many seconds."""
        deadline = time.monotonic() + within_s
        while (num := len(list(processes_of(self.failpoints)))) and time.monotonic() < deadline:
            time.sleep(0.5)
        return num

    def close(self) -> None:
        """Kill whatever is left."""
        kill("everything", self.failpoints, self._driver.pid)
        self._driver.wait()
