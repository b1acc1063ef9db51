"""The process that carries events from a study's outbox to MLflow, so that the control loop never waits for it.

    python -m study.recording.writer STUDY_FOLDER SESSION

It lives as long as its standard input: the driver holds the other end, so the kernel closes it when the driver dies,
however it dies. Then the writer marks what the driver left open as interrupted, delivers the rest and ends.

To the driver it says, one JSON object a line: `waiting` for another writer; `ready`; an `error` that the user must mend;
`failing`, with the reason why MLflow takes nothing; `delivering`, when it takes something again.
"""

import contextlib
import fcntl
import json
import logging
import os
import select
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.errors import UserError
from study.keeping.retention import Rule
from study.recording.outbox import Outbox
from study.spec import StudySpec

if TYPE_CHECKING:
    from study.recording.tracking_writer import StudyWriter

_POLL_SECONDS = 0.05
_MAX_WAIT_SECONDS = 3.0
_PATIENCE_SECONDS = 5.0
_PATIENCE_AT_THE_END_SECONDS = 1.0
_GIVE_UP_SECONDS = 120.0

logger = logging.getLogger("study.recording.writer")


def main(folder: Path, session: int) -> int:
    """Deliver until the driver is gone and nothing is pending."""
    logging.basicConfig(filename=folder / "writer.log", level=logging.INFO, format="%(asctime)s %(message)s")
    with (folder / "writer.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # the writer of a driver that died is still delivering
            _tell(waiting=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        outbox = Outbox(folder / "outbox.db")
        carrier = _Carrier(outbox, partial(connect, folder, outbox))
        if refusal := carrier.open():
            _tell(error=refusal)
            return 2
        _serve(carrier, outbox, session)
        carrier.close()
        outbox.close()
    return 0


def connect(folder: Path, outbox: Outbox) -> "StudyWriter":
    """The writer of the study whose files are in a folder of its home."""
    from study.recording.tracking_writer import StudyWriter  # MLflow takes seconds to import: not before the lock is ours

    spec = StudySpec.load(folder / "spec.json")
    artifacts = spec.artifacts(folder.parent.parent)
    return StudyWriter(
        outbox,
        name=spec.name,
        study_id=spec.study_id,
        tracking_uri=spec.tracking_uri,
        artifacts=None if artifacts is None else artifacts.as_uri(),
        rule=Rule.of(spec),
    )


def _tell(**facts: Any) -> None:
    """Say something to the driver, if it lives."""
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(facts).encode() + b"\n")


class _Carrier:
    """Delivers, and knows since when MLflow has been taking nothing.

    Attributes:
        wait: seconds to the next try.
        failing_since: on the monotonic clock, of the last event that was taken; None where nothing fails.
        patience: seconds of failing after which the driver is told.
    """

    def __init__(self, outbox: Outbox, connect: "Callable[[], StudyWriter]") -> None:
        self._outbox = outbox
        self._connect = connect
        self._writer: StudyWriter | None = None
        self._is_told = False
        self.wait = _POLL_SECONDS
        self.failing_since: float | None = None
        self.patience = _PATIENCE_SECONDS

    def open(self) -> str | None:
        """Connect; return why not, unless this MLflow has the study already: then its address was right, and it will be back."""
        from study.recording.tracking import NoAnswerError

        try:
            self._writer = self._connect()
        except UserError as error:
            if not isinstance(error, NoAnswerError) or not self._outbox.runs():
                return str(error)
            self._fail(error, patience=0)
        else:
            _tell(ready=os.getpid())
        return None

    def carry(self) -> bool:
        """Try to deliver what is pending; return whether anything was."""
        before = self._outbox.last_delivered()
        try:
            self._writer = self._writer or self._connect()
            num_delivered = self._writer.deliver()
        except Exception as error:  # MLflow down, slow or full: nothing is lost, it is tried again
            if self._outbox.last_delivered() > before:
                self._get_on()
            self._fail(error, self.patience)
            return True
        self._get_on()
        return num_delivered > 0

    def close(self) -> None:
        """Leave MLflow."""
        if self._writer is not None:
            self._writer.close()

    def _get_on(self) -> None:
        if self._is_told:
            _tell(delivering=True)
        self.wait, self.failing_since, self._is_told = _POLL_SECONDS, None, False

    def _fail(self, error: Exception, patience: float) -> None:
        from study.recording.tracking import reason_of

        logger.warning("could not deliver: %s", error)
        now = time.monotonic()
        self.wait = min(2 * self.wait, _MAX_WAIT_SECONDS)
        self.failing_since = self.failing_since or now
        if not self._is_told and now - self.failing_since >= patience:
            _tell(failing=reason_of(error), pending=self._outbox.num_pending())
            self._is_told = True

    def hurry(self) -> None:
        """The driver ends: let it know soon what is wrong, and give MLflow its time from now."""
        self.patience, self._is_told, self.wait = _PATIENCE_AT_THE_END_SECONDS, False, _POLL_SECONDS
        self.failing_since = self.failing_since and time.monotonic()


def _serve(carrier: _Carrier, outbox: Outbox, session: int) -> None:
    driver_lives = True
    while True:
        if not driver_lives:
            time.sleep(carrier.wait)
        elif select.select([sys.stdin], [], [], carrier.wait)[0] and not os.read(sys.stdin.fileno(), 1):
            driver_lives = False
            outbox.close_session(session)
            carrier.hurry()
        was_pending = carrier.carry()
        if not driver_lives and not was_pending:
            return
        if not driver_lives and carrier.failing_since and time.monotonic() - carrier.failing_since > _GIVE_UP_SECONDS:
            logger.warning("gives up; the next resume delivers the rest")
            return


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):  # what libraries print is not for the driver
        code = main(Path(sys.argv[1]), int(sys.argv[2]))
    logging.shutdown()
    os._exit(code)  # all is written, and somebody waits: taking MLflow apart would be a third of a second
