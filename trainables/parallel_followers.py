"""The followers of `trainables.parallel` as rank 0 sees them: processes that are told what to do, and answer."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

from torch import distributed

from trainables.failures import LostRankError, RankError, failure_of, may_be_an_echo
from trainables.parallel_seat import Seat
from trainables.protocol import Failure
from trainables.storage import StorageError

GRACE_S = 5.0
"""For what should take no time."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RankFailure:
    """What broke a follower.

    Attributes:
        is_echo: it may be what another rank's failure did to this one.
    """

    rank: int
    failure: Failure
    is_echo: bool

    def error(self) -> Exception:
        """What rank 0 raises for it."""
        text = f"{self.failure.error} (on rank {self.rank})"
        sentence = text.partition(": ")[2]
        if self.failure.cause == "storage":
            return StorageError(sentence)
        if self.failure.cause == "worker_lost":
            return LostRankError(sentence)
        return RankError(dataclasses.replace(self.failure, error=text))


class Follower:
    """One process. It ends when its end of the pipe closes, and so whenever rank 0 does.

    (Linux could also signal it, by PR_SET_PDEATHSIG, but at the end of the thread that started it.)
    """

    def __init__(self, seat: Seat) -> None:
        self.rank = seat.rank
        self.connection, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "trainables.parallel_process"),
                    *(str(theirs.fileno()), json.dumps(dataclasses.asdict(seat))),
                ],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is rank 0's to hear
            )

    def tell(self, message: Mapping[str, str | int]) -> None:
        """Send a command. That a follower is gone is not said here: it will be its answer."""
        with contextlib.suppress(OSError):
            self.connection.send_bytes(json.dumps(message).encode())

    def answer(self) -> RankFailure | None:
        """What it says to a command: None if it has obeyed."""
        try:
            answer = json.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            return RankFailure(rank=self.rank, failure=failure_of(self._death()), is_echo=False)
        if answer is None:
            return None
        return RankFailure(rank=self.rank, failure=Failure(**answer["failure"]), is_echo=answer["is_echo"])

    def _death(self) -> LostRankError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE_S)
        status = self.process.returncode or 0
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return LostRankError(f"every rank must live as long as its attempt, but this one {how}; see the worker's standard error")

    def kill(self) -> None:
        """End it at once: it has nothing to save."""
        self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may hold it for a while
            self.process.wait(GRACE_S)


class Answers:
    """What followers say to one command, heard in a thread, as rank 0 is busy with the same command.

    After the first failure the others have `GRACE_S` to answer, then all are killed: rank 0 waits for nobody who will not come.
    """

    def __init__(self, followers: Sequence[Follower]) -> None:
        self._followers = followers
        self._silent = {follower.connection: follower for follower in followers}
        self._failures: list[RankFailure] = []
        self._thread = threading.Thread(target=self._hear, daemon=True)
        self._thread.start()

    @property
    def silent(self) -> list[int]:
        """Ranks that have not answered."""
        return [follower.rank for follower in list(self._silent.values())]

    def wait(self, timeout_s: float) -> None:
        """Wait until all have answered or there is nothing more to wait for."""
        self._thread.join(timeout_s)

    def raise_failure(self, own: Exception | None = None) -> None:
        """Raise what broke a follower, unless it is but an echo of `own`, or the same that broke rank 0, too.

        Raises:
            RankError: if a follower failed.
            LostRankError: if it died.
            StorageError: if the storage failed it.
        """
        first = min(self._failures, key=lambda failure: (failure.is_echo, failure.rank), default=None)
        if first is None:
            return
        if own is not None and not may_be_an_echo(own):
            is_the_same = failure_of(own).cause == first.failure.cause
            if first.is_echo or is_the_same:
                return
        if own is not None and first.is_echo:
            return
        raise first.error() from own

    def _hear(self) -> None:
        until_s: float | None = None
        while self._silent and (until_s is None or time.monotonic() < until_s):
            for connection in wait(list(self._silent), None if until_s is None else max(0.0, until_s - time.monotonic())):
                assert isinstance(connection, Connection)
                failure = self._silent[connection].answer()
                if failure is not None:
                    self._failures.append(failure)
                    until_s = until_s or time.monotonic() + GRACE_S
                    _abort_exchange()
                del self._silent[connection]
        if self._failures:
            for follower in self._followers:
                follower.kill()


def _abort_exchange() -> None:
    """Free rank 0 from an exchange by NCCL, which does not notice that the other side is gone; gloo does."""
    with contextlib.suppress(Exception):  # the failure that is known already is the one to tell
        if distributed.is_initialized() and distributed.group.WORLD is not None:
            distributed.group.WORLD.abort()
