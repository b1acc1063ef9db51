"""The driver's end of the writer process (`study.recording.writer`): start it, keep it alive, let it finish."""

import json
import queue
import subprocess
import sys
import threading
import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console

from study.errors import UserError
from study.home import StudyFolder
from study.recording.outbox import Outbox

_START_SECONDS = 60
_END_SECONDS = 120
_FAILING_END_SECONDS = 30
_QUIET_END_SECONDS = 5
_MAX_STARTS = 20


class Delivery:
    """Events reach MLflow while this context is open, and what is left when it closes.

    The writer starts at once and connects while the caller does other things; `require_ready` waits for it. A writer that
    dies is followed by another. Of an MLflow that takes nothing, the user hears once, and again when it does.

    Args:
        session: number of the outbox's session; it is closed with the context.
    """

    def __init__(self, folder: StudyFolder, outbox: Outbox, session: int, console: Console) -> None:
        self._folder = folder
        self._outbox = outbox
        self._session = session
        self._console = console
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._is_open = threading.Event()
        self._changing = threading.Lock()
        self._is_ready = False
        self._trouble: str | None = None
        self.final_status = "KILLED"
        self.workers_ended_ms: int | None = None  # since 1970; None while the session's end is theirs

    def __enter__(self) -> Self:
        self._is_open.set()
        self._process = self._start()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()
        return self

    def _start(self) -> subprocess.Popen[str]:
        with self._folder.writer_log.open("a") as log:
            return subprocess.Popen(
                # -P: nothing that lies in the user's current folder may be imported instead of a library
                [sys.executable, "-P", "-m", "study.recording.writer", str(self._folder.path), str(self._session)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C is for the driver: the writer has to deliver what it causes
            )

    def _keep(self) -> None:
        """Hear what the writer says until it ends; start another if that was too early."""
        for _ in range(_MAX_STARTS):
            process = self._process
            assert process.stdin is not None and process.stdout is not None
            with process.stdout:
                for line in process.stdout:
                    self._hear(json.loads(line))
            refused = process.wait() == 2
            if refused or not self._is_open.is_set():
                return
            process.stdin.close()
            with self._changing:
                if not self._is_open.is_set():
                    return
                self._process = self._start()

    def _hear(self, answer: dict[str, Any]) -> None:
        is_new = self._trouble is None
        if "error" in answer:
            self._trouble = answer["error"]
            if self._is_ready:
                self._say(f"MLflow takes nothing more: {self._trouble}; the study goes on")
        elif "failing" in answer:
            self._trouble = answer["failing"]
            if is_new and self._is_open.is_set():
                self._say(f"MLflow takes nothing ({self._trouble}); the study goes on, {answer['pending']} events wait")
        elif self._trouble is not None:
            self._trouble = None
            if "delivering" in answer and self._is_open.is_set():
                self._say("MLflow takes events again")
        self._answers.put(answer)

    def require_ready(self) -> None:
        """Wait until the writer is connected, unless MLflow has this study already: then it may be down for a while.

        Raises:
            UserError: if MLflow does not answer, or has a study of this name that is not ours.
        """
        is_known = bool(self._outbox.runs())
        while True:
            try:
                answer = self._answers.get(timeout=_START_SECONDS)
            except queue.Empty:
                raise UserError(
                    f"MLflow's writer must start within {_START_SECONDS} s, but did not; see {self._folder.writer_log}"
                ) from None
            if "error" in answer:
                raise UserError(answer["error"])
            is_waiting = "waiting" in answer
            if is_waiting:
                self._say(f"MLflow is still taking what the last session left: {self._outbox.num_pending()} events")
            if is_waiting and is_known:  # the writer of that session takes what this one puts, until it ends
                self._trouble = "the last session's writer is not done"
            self._is_ready = is_known or not is_waiting
            if self._is_ready:
                return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._outbox.close_session(self._session, self.final_status, until_ms=self.workers_ended_ms)
        finally:
            with self._changing:
                self._is_open.clear()
                assert self._process.stdin is not None
                self._process.stdin.close()
        try:
            self._await_end()
        except KeyboardInterrupt:  # the writer goes on by itself
            pass
        why = f" ({self._trouble})" if self._trouble else ""
        pending = self._outbox.num_pending()
        if self._keeper.is_alive() and pending:
            self._say(f"{pending} events are still on their way to MLflow{why}; what does not arrive, the next resume delivers")
        elif pending and kind is None:
            self._say(f"MLflow did not take {pending} events{why}; the next resume delivers them")

    def _await_end(self) -> None:
        """Wait for what is left to arrive; not for long where MLflow takes nothing."""
        start, failing_since, is_said = time.monotonic(), None, False
        while self._keeper.is_alive() and time.monotonic() < (failing_since or start) + self._end_seconds():
            self._keeper.join(0.1)
            failing_since = (failing_since or time.monotonic()) if self._trouble else None
            is_due = self._trouble or time.monotonic() > start + _QUIET_END_SECONDS
            if is_due and not is_said and (pending := self._outbox.num_pending()):
                is_said = True
                what = f"takes nothing ({self._trouble})" if self._trouble else "is slow"
                self._say(
                    f"MLflow {what}: waiting up to {self._end_seconds()} s with {pending} events; Ctrl-C is safe, "
                    "the next resume delivers them"
                )

    def _end_seconds(self) -> int:
        return _FAILING_END_SECONDS if self._trouble else _END_SECONDS

    def _say(self, sentence: str) -> None:
        self._console.print(sentence, markup=False, highlight=False)
