"""How long work takes, in wall time and in CPU time of this process, all its threads counted."""

import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch


@dataclass(frozen=True, slots=True)
class Moment:
    """A point on two clocks, or what went by between two points.

    Attributes:
        seconds: wall time, on a clock that never goes back.
        cpu_seconds: of this process since it began.
    """

    seconds: float
    cpu_seconds: float

    @classmethod
    def now(cls) -> Self:
        return cls(time.monotonic(), time.process_time())

    def __sub__(self, earlier: "Moment") -> "Moment":
        return Moment(self.seconds - earlier.seconds, self.cpu_seconds - earlier.cpu_seconds)

    def __add__(self, span: "Moment") -> "Moment":
        return Moment(self.seconds + span.seconds, self.cpu_seconds + span.cpu_seconds)


class _Stopwatch:
    """Adds up what goes by inside, nested uses and those of several threads at once counted once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._begun = self._total = Moment(0.0, 0.0)

    def __enter__(self) -> None:
        with self._lock:
            self._depth += 1
            if self._depth == 1:
                _finish_queued()
                self._begun = Moment.now()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                if kind is None:
                    _finish_queued()
                self._total += Moment.now() - self._begun

    def total(self) -> Moment:
        """Everything so far, what is under way included."""
        with self._lock:
            return self._total + (Moment.now() - self._begun) if self._depth else self._total


def _finish_queued() -> None:
    """Wait for what a GPU has yet to do: it belongs to what came before this point."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()


_evaluation = _Stopwatch()


def evaluating() -> _Stopwatch:
    """A context inside which an experiment measures and does not train. It may be nested.

    On a GPU it waits, first and last, until what is queued is done, so that each pays for its own. Not for use while a CUDA
    graph is captured.
    """
    return _evaluation


def evaluation_so_far() -> Moment:
    """What this process has spent on measuring since it began."""
    return _evaluation.total()


class CpuMeter:
    """Tells how much CPU time this process has used since it was asked last; at first, since the process began."""

    def __init__(self) -> None:
        self._told = 0.0

    def take(self) -> float:
        """Seconds since the last call."""
        before, self._told = self._told, time.process_time()
        return self._told - before


PROCESS_CPU = CpuMeter()
"""Of the worker: what its reports tell, one after the other, is all that it has used, whichever trial it worked for."""
