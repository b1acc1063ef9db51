"""The books of a trial: they follow from its events alone, in their order, whatever was killed between two of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from study.running.ledger import KINDS, Ledger

_BUSY_CPUS = 1.0
"""Of an attempt that was lost before anything was heard of it: it was starting a worker, and imports take one CPU at most."""


class Happening(Protocol):
    """What of `study.recording.outbox.Event` the books need."""

    @property
    def kind(self) -> str: ...
    @property
    def time_ms(self) -> int: ...
    @property
    def data(self) -> Mapping[str, Any]: ...


def keep_books(events: Iterable[Happening]) -> Ledger:
    """Book the time of one trial's attempts that are over.

    An attempt holds its slot, or its share of one, from its trial_start to its trial_interrupted or trial_end. Steps are booked
    when they are heard of, those that were heard of before as repeated. The end of an attempt that was lost, from when it was
    heard last, is repeated, too, as it must be made again; but what the next attempt brings of it out of a checkpoint is not.

    Args:
        events: of the trial, in order; those of other kinds do not count.
    """
    books = _Books()
    for event in events:
        books.note(event)
    return books.ledger()


@dataclass(slots=True)
class _Time:
    """Wall and CPU seconds."""

    wall: float = 0.0
    cpu: float = 0.0

    def add(self, other: "_Time") -> None:
        self.wall += other.wall
        self.cpu += other.cpu

    def take(self, wanted: "_Time") -> "_Time":
        """Take out what is wanted, or as much as there is."""
        taken = _Time(min(self.wall, wanted.wall), min(self.cpu, wanted.cpu))
        self.wall -= taken.wall
        self.cpu -= taken.cpu
        return taken


@dataclass(slots=True)
class _Attempt:
    """An attempt that is not over.

    Attributes:
        heard_ms: when something was heard of it last; at first, when it began.
        cpu_heard: CPU seconds that its worker has reported.
        shares: of a slot, each with its time: several trials may hold one together, and some leave before others.
        steps: what its steps took, by kind.
    """

    heard_ms: int
    shares: list[tuple[int, float]]
    cpu_heard: float = 0.0
    steps: dict[str, _Time] = field(default_factory=dict)

    def hear(self, event: Happening) -> None:
        self.heard_ms = max(self.heard_ms, event.time_ms)
        self.cpu_heard += event.data.get("cpu_seconds", 0.0)

    def book(self, kind: str, time: _Time) -> None:
        self.steps.setdefault(kind, _Time()).add(time)

    @property
    def rate(self) -> float:
        """CPU seconds a second, as far as it was heard; 0 where nothing was."""
        return self.cpu_heard / self.heard_seconds if self.heard_seconds > 0 else 0.0

    @property
    def heard_seconds(self) -> float:
        return self._held_seconds(self.heard_ms)

    def _held_seconds(self, until_ms: int) -> float:
        ends = [*(time_ms for time_ms, _ in self.shares[1:]), until_ms]
        spans = ((share, min(end_ms, until_ms) - begin_ms) for (begin_ms, share), end_ms in zip(self.shares, ends, strict=True))
        return sum(share * max(0, span_ms) for share, span_ms in spans) / 1000

    def booked(self) -> dict[str, _Time]:
        """What was heard of it, by kind. Steps take no more than there was: the clocks of two hosts may differ."""
        room, wanted = _Time(self.heard_seconds, self.cpu_heard), _Time()
        for time in self.steps.values():
            wanted.add(time)
        wall, cpu = _share(room.wall, wanted.wall), _share(room.cpu, wanted.cpu)
        found = {kind: _Time(time.wall * wall, time.cpu * cpu) for kind, time in self.steps.items()}
        for time in found.values():
            room.take(time)
        return found | {"idle": room}

    def unheard(self, end_ms: int) -> _Time:
        """What went by since it was heard of; the CPU seconds are an estimate."""
        wall = max(0.0, self._held_seconds(end_ms) - self.heard_seconds)
        return _Time(wall, wall * (self.rate if self.heard_seconds > 0 else _BUSY_CPUS))


def _share(room: float, wanted: float) -> float:
    return min(1.0, room / wanted) if wanted > 0 else 1.0


class _Books:
    """Takes the events of one trial in."""

    def __init__(self) -> None:
        self._spent = {kind: _Time() for kind in KINDS}
        self._lost = _Time()  # part of what is repeated: done unheard by attempts that were lost, and not brought back
        self._lost_unheard = 0.0  # wall seconds of attempts that were lost before anything was heard of them
        self._attempt: _Attempt | None = None
        self._training = "useful"  # the kind of all training, by how the trial ended
        self._flops: dict[int, float] = {}  # of the trial after each step
        self._repeated_flops = 0.0

    def note(self, event: Happening) -> None:
        attempt = self._attempt
        if event.kind == "trial_start":
            self._attempt = _Attempt(event.time_ms, [(event.time_ms, event.data.get("share", 1.0))])
        elif attempt is not None and event.kind == "share":
            attempt.shares.append((event.time_ms, event.data["share"]))
        elif attempt is not None and event.kind == "measurement":
            self._note_step(attempt, event)
        elif attempt is not None and event.kind == "repeat":
            self._note_repeat(attempt, event)
        elif attempt is not None and event.kind in ("trial_interrupted", "trial_end"):
            self._close(attempt, event)

    def _note_step(self, attempt: _Attempt, event: Happening) -> None:
        if "flops" in event.data:
            self._flops[event.data["step"]] = event.data["flops"]
        if event.data.get("is_brought"):
            for kind, time in _took(event).items():
                found = self._lost.take(time)
                self._spent[kind].add(self._spent["repeated"].take(found))
            return
        self._hear(attempt, event)
        for kind, time in _took(event).items():
            attempt.book(kind, time)

    def _note_repeat(self, attempt: _Attempt, event: Happening) -> None:
        self._hear(attempt, event)
        for time in _took(event).values():
            attempt.book("repeated", time)
        step = event.data.get("step", 0)
        self._repeated_flops += max(0.0, self._flops.get(step, 0.0) - self._flops.get(step - 1, 0.0))

    def _hear(self, attempt: _Attempt, event: Happening) -> None:
        """What is heard first of an attempt tells, too, how busy those before it were that were lost in their start."""
        attempt.hear(event)
        if self._lost_unheard and attempt.rate:
            too_much = min(self._lost.cpu, self._lost_unheard * max(0.0, _BUSY_CPUS - attempt.rate))
            self._lost.cpu -= too_much
            self._spent["repeated"].cpu -= too_much
            self._lost_unheard = 0.0

    def _close(self, attempt: _Attempt, event: Happening) -> None:
        """An attempt is over, and with it what went by since it was heard of last."""
        for kind, time in attempt.booked().items():
            self._spent[kind].add(time)
        reported, tail = event.data.get("cpu_seconds", 0.0), attempt.unheard(event.data.get("until_ms", event.time_ms))
        state = event.data.get("state", "finished")
        if event.kind == "trial_interrupted":
            self._lost.add(tail)
            self._lost_unheard += 0.0 if attempt.heard_seconds else tail.wall
            self._spent["repeated"].add(tail)
        else:
            self._training = state if state in KINDS else "useful"
            is_lost = state == "failed" and not reported  # it failed for having been lost once too often
            self._spent["failed" if state == "failed" else "idle"].add(tail if is_lost else _Time(tail.wall, reported))
        self._attempt = None

    def ledger(self) -> Ledger:
        spent = dict(self._spent)
        training = spent.pop("useful")
        spent.setdefault(self._training, _Time()).add(training)
        flops = {self._training: max(self._flops.values(), default=0.0), "repeated": self._repeated_flops}
        return Ledger(
            {kind: time.wall for kind, time in spent.items() if time.wall},
            {kind: time.cpu for kind, time in spent.items() if time.cpu},
            {kind: value for kind, value in flops.items() if value},
        )


def _took(event: Happening) -> dict[str, _Time]:
    """What a step took: training, which is useful at first, and evaluation. Older events do not say."""
    took = event.data.get("took", {})
    evaluation = _Time(took.get("evaluation_seconds", 0.0), took.get("evaluation_cpu_seconds", 0.0))
    rest = took.get("seconds", 0.0) - evaluation.wall, took.get("cpu_seconds", 0.0) - evaluation.cpu
    return {"useful": _Time(*(max(0.0, value) for value in rest)), "evaluation": evaluation}
