"""The log of one trial: what its experiment logs and prints."""

import contextlib
import io
import logging
from collections.abc import Iterator

from trainables.storage import Folder

LOG_FILE = "log.txt"


class TrialLog(logging.Handler):
    """Collects what an experiment logs and prints, for the trial's own log file."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        self._buffer = io.StringIO()

    def restore(self, folder: Folder) -> None:
        """Put the lines of earlier attempts first."""
        with contextlib.suppress(FileNotFoundError):
            text = folder.read(LOG_FILE).decode() + self._buffer.getvalue()
            self._buffer.seek(0)  # the same buffer: what is printed already goes there
            self._buffer.truncate()
            self._buffer.write(text)

    def emit(self, record: logging.LogRecord) -> None:
        self.write(self.format(record) + "\n")

    def write(self, text: str) -> None:
        self._buffer.write(text)

    def text(self) -> str:
        return self._buffer.getvalue()

    @contextlib.contextmanager
    def capture(self) -> Iterator[None]:
        """Send this package's log, everybody's warnings and printed lines here."""
        science, root = logging.getLogger("trainables"), logging.getLogger()
        level, is_heard = science.level, science.isEnabledFor(logging.INFO)
        root.addHandler(self)
        if not is_heard:  # only then: it has every logger of the process forget what it knows
            science.setLevel(logging.INFO)
        try:
            with contextlib.redirect_stdout(self._buffer):
                yield
        finally:
            if not is_heard:
                science.setLevel(level)
            root.removeHandler(self)
