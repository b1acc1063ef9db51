"""What workers are sent for: which trials each has, which wait there for their turn, and how many that should be."""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from study.running.record import Draw
from study.spec import StudySpec

SLICE_SECONDS = 0.1
"""For so long a worker makes steps before it reports of them."""
_ERRAND_SECONDS = 1.0
_TINY_SECONDS = 0.3
_MAX_PARCELS = 64
_LAST = 8
_LEARN_NOTHING = ("random", "qmc")
"""Samplers whose draws are the same whatever is known of trials before them."""


@dataclass(slots=True)
class _Errand:
    """What one worker has.

    Attributes:
        out: trials of the parcel that it is at, if they have not ended.
        later: parcels that come after it.
        at_ms: when something was heard of it last, milliseconds since 1970; at first, when it was handed out.
    """

    later: deque[list[Draw]]
    at_ms: int
    out: set[int] = field(default_factory=set)


class Errands:
    """What is out, by what Tune calls each errand. One is over when all of its trials have left."""

    def __init__(self) -> None:
        self._errands: dict[str, _Errand] = {}

    def __len__(self) -> int:
        return len(self._errands)

    def __contains__(self, trial_id: str) -> bool:
        return trial_id in self._errands

    def begin(self, trial_id: str, parcels: Iterable[list[Draw]], at_ms: int) -> None:
        """Note that a worker takes parcels, one after the other."""
        self._errands[trial_id] = _Errand(deque(parcels), at_ms)

    def next_parcel(self, trial_id: str) -> list[Draw]:
        """The parcel that a worker begins now; none while it is at another, or if that was the last."""
        errand = self._errands.get(trial_id)
        if errand is None or errand.out or not errand.later:
            return []
        parcel = errand.later.popleft()
        errand.out = {draw.number for draw in parcel}
        return parcel

    def out(self, trial_id: str) -> set[int]:
        """Numbers of the trials that a worker is at."""
        errand = self._errands.get(trial_id)
        return set(errand.out) if errand else set()

    def take_back(self, trial_id: str) -> list[Draw]:
        """Trials whose turn has not come; they are no longer of the errand."""
        errand = self._errands.get(trial_id)
        later, draws = (errand.later if errand else deque()), []
        while later:
            draws += later.popleft()
        return draws

    def leave(self, number: int) -> None:
        """A trial has ended, or its worker has."""
        trial_id, errand = next(item for item in self._errands.items() if number in item[1].out)
        errand.out.remove(number)
        if not errand.out and not errand.later:
            del self._errands[trial_id]

    def date(self, trial_id: str, at_ms: int) -> int:
        """When something happened: not before what was heard of the errand last, and not in the future of who says it."""
        errand = self._errands[trial_id]
        errand.at_ms = max(errand.at_ms, at_ms)
        return errand.at_ms

    @property
    def num_waiting(self) -> int:
        """Trials whose turn has not come."""
        return sum(len(parcel) for errand in self._errands.values() for parcel in errand.later)


class ErrandSize:
    """How many trials a worker takes with it: several parcels only if they are tiny and knowing more would change no draw."""

    def __init__(self, spec: StudySpec) -> None:
        self._pack = spec.pack
        self._may_queue = spec.sampler in _LEARN_NOTHING and spec.early_stopping == "none" and spec.lookahead is None
        self._seconds: deque[float] = deque(maxlen=_LAST)
        self.slice_s = SLICE_SECONDS if spec.early_stopping == "none" else 0.0

    def hear(self, seconds: float) -> None:
        """Note how long a trial kept its worker."""
        self._seconds.append(seconds)

    @property
    def num_parcels(self) -> int:
        """Parcels that make an errand of about a second."""
        longest = max(self._seconds, default=math.inf)
        if not self._may_queue or longest > _TINY_SECONDS:
            return 1
        return min(_MAX_PARCELS, max(1, int(_ERRAND_SECONDS / max(longest, 1e-3))))

    def num_trials(self, left: int, num_workers: int) -> int:
        """Trials of one errand, so that the other workers have something to do, too.

        Args:
            left: trials that are to be handed out.
        """
        share = math.ceil(left / num_workers)
        queued = min(self._pack * self.num_parcels, math.ceil(share / 2)) if self.num_parcels > 1 else 1
        return max(min(self._pack, share), queued)
