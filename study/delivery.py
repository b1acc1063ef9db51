"""The driver's end of the writer process (`study.writer`): start it, keep it alive, let it finish."""

import json
import queue
import subprocess
import sys
import threading
from types import TracebackType
from typing import Self

from rich.console import Console

from study.errors import UserError
from study.home import StudyFolder
from study.outbox import Outbox

_START_SECONDS = 60
_END_SECONDS = 120
_MAX_STARTS = 20


class Delivery:
    """Events reach MLflow while this context is open, and what is left when it closes.

    The writer starts at once and connects while the caller does other things; `require_ready` waits for it. A writer that
    dies is followed by another.

    Args:
        session: number of the outbox's session; it is closed with the context.
    """

    def __init__(self, folder: StudyFolder, outbox: Outbox, session: int, console: Console) -> None:
        self._folder = folder
        self._outbox = outbox
        self._session = session
        self._console = console
        self._answers: queue.Queue[str] = queue.Queue()
        self._is_open = threading.Event()
        self.final_status = "KILLED"

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
                [sys.executable, "-P", "-m", "study.writer", str(self._folder.path), str(self._session)],
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
                    self._answers.put(line)
            refused = process.wait() == 2
            if refused or not self._is_open.is_set():
                return
            process.stdin.close()
            self._process = self._start()

    def require_ready(self) -> None:
        """Wait until the writer is connected.

        Raises:
            UserError: if MLflow does not answer, or has a study of this name that is not ours.
        """
        while True:
            try:
                answer = json.loads(self._answers.get(timeout=_START_SECONDS))
            except queue.Empty:
                raise UserError(
                    f"MLflow's writer must start within {_START_SECONDS} s, but did not; see {self._folder.writer_log}"
                ) from None
            if "error" in answer:
                raise UserError(answer["error"])
            if "ready" in answer:
                return
            self._say("MLflow is still taking what the last session left: {} events")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._outbox.close_session(self._session, self.final_status)
        self._is_open.clear()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._keeper.join(_END_SECONDS)
        if self._keeper.is_alive():
            self._say("MLflow is slow: {} events are still on their way, and none is lost")
        elif self._outbox.num_pending() and kind is None:
            self._say("MLflow did not take {} events; the next resume delivers them")

    def _say(self, sentence: str) -> None:
        self._console.print(sentence.format(self._outbox.num_pending()), markup=False, highlight=False)
