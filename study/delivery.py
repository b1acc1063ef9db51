"""The driver's end of the writer process (`study.writer`): start it, hear that it is connected, let it finish."""

import json
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


class Delivery:
    """Events reach MLflow while this context is open, and what is left when it closes.

    The writer starts at once and connects while the caller does other things; `require_ready` waits for it.

    Args:
        session: number of the outbox's session; it is closed with the context.
    """

    def __init__(self, folder: StudyFolder, outbox: Outbox, session: int, console: Console) -> None:
        self._folder = folder
        self._outbox = outbox
        self._session = session
        self._console = console
        self._answer: list[str] = []
        self.final_status = "KILLED"

    def __enter__(self) -> Self:
        with self._folder.writer_log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "study.writer", str(self._folder.path), str(self._session)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C is for the driver: the writer has to deliver what it causes
            )
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()
        return self

    def _listen(self) -> None:
        assert self._process.stdout is not None
        self._answer.append(self._process.stdout.readline())

    def require_ready(self) -> None:
        """Wait until the writer is connected.

        Raises:
            UserError: if MLflow does not answer, or has a study of this name that is not ours.
        """
        self._reader.join(_START_SECONDS)
        silence = json.dumps({"error": f"MLflow's writer must start, but said nothing; see {self._folder.writer_log}"})
        answer = json.loads((self._answer and self._answer[0]) or silence)
        if "error" in answer:
            raise UserError(answer["error"])

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._outbox.close_session(self._session, self.final_status)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._say("MLflow is slow: {} events are still on their way, and none is lost")
        else:
            if self._outbox.num_pending() and kind is None:
                self._say("MLflow did not take {} events; the next resume delivers them")
        self._reader.join(1)
        self._process.stdout.close()

    def _say(self, sentence: str) -> None:
        self._console.print(sentence.format(self._outbox.num_pending()), markup=False, highlight=False)
