"""The strength of a penalty that adjusts itself: up while the loss on the data falls, down when it rises."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from trainables.experiment import DivergedError
from trainables.laws import require

NUM_SEEDING = 10
"""Losses whose mean begins the moving average."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StrengthRule:
    """When a strength goes up, when down, and how far. Defaults: for a training of some hundred updates."""

    smoothing: float = 0.98
    """Share of the old average in the new one, [0, 1). Paper: 0.995..0.9999 were tried."""
    interval: int = 20
    """Updates between two comparisons, >= 1. Paper: 200..500 micro-batches were tried."""
    increase: float = 1.2
    """What the strength is multiplied with where the average has not risen, >= 1. Paper: 1.1..1.35 were tried."""
    decrease: float = 0.7
    """What it is multiplied with where the average has risen, in (0, 1]. Paper: 0.6..0.8 were tried."""
    warmup: int = 20
    """Updates before the average is first noted; the first comparison comes an interval later. At least NUM_SEEDING."""

    def __post_init__(self) -> None:
        require(0 <= self.smoothing < 1, "smoothing must be in [0, 1)", self.smoothing, "use 0.98")
        require(self.interval >= 1, "interval must be at least 1", self.interval, "use 20")
        require(1 <= self.increase < math.inf, "increase must be at least 1 and finite", self.increase, "use 1.2")
        require(0 < self.decrease <= 1, "decrease must be in (0, 1]", self.decrease, "use 0.7")
        law = f"warmup must be at least {NUM_SEEDING}, as so many losses begin the average"
        require(self.warmup >= NUM_SEEDING, law, self.warmup, f"use {NUM_SEEDING} or more")


class AutoStrength:
    """Steers the strength of a penalty by a moving average of the loss on the data.

    The mean of the first losses begins the average; after the warm-up it is compared, once an interval, with what it was an
    interval ago: if it rose the strength goes down, otherwise up. It has no upper end of its own: what ends its growth is
    that the loss rises.

    Args:
        strength: of the penalty in the beginning, > 0.

    Attributes:
        strength: to use in the next update.

    Source: the authors' automatic adjustment of lambda (tuneprune8 to 10 and 12; off in arXiv:2505.15811's published runs).
    Differs: an interval counts updates of the optimizer, where theirs counts micro-batches.
    """

    def __init__(self, strength: float, rule: StrengthRule) -> None:
        law = "the strength of a penalty that adjusts itself must be positive and finite"
        require(0 < strength < math.inf, law, strength, "use 1e-3, as factors do not change 0")
        self.strength, self._rule = strength, rule
        self._num_updates = 0
        self._average_nats = 0.0
        self._noted_nats: float | None = None  # the average an interval ago

    def update(self, loss_nats: float) -> float:
        """Take the loss of one update, on the data and without the penalty; return the strength to use in the next one.

        Raises:
            DivergedError: if the loss is not finite; nothing is then changed.
        """
        if not math.isfinite(loss_nats):
            raise DivergedError(f"the loss must be finite, but is {loss_nats} at strength {self.strength:g}; lower it")
        self._num_updates += 1
        is_seeding = self._num_updates <= NUM_SEEDING
        share = 1 / self._num_updates if is_seeding else 1 - self._rule.smoothing
        self._average_nats += share * (loss_nats - self._average_nats)
        since = self._num_updates - self._rule.warmup
        if since >= 0 and since % self._rule.interval == 0:
            self._compare()
        return self.strength

    def _compare(self) -> None:
        """Change the strength if there is an average to compare with, and note the present one."""
        if self._noted_nats is not None:
            has_risen = self._average_nats > self._noted_nats
            self.strength *= self._rule.decrease if has_risen else self._rule.increase
        self._noted_nats = self._average_nats

    def state_dict(self) -> dict[str, Any]:
        """All that changes."""
        return {
            "strength": self.strength,
            "num_updates": self._num_updates,
            "average_nats": self._average_nats,
            "noted_nats": self._noted_nats,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state that `state_dict()` of one with the same rule returned."""
        self.strength, self._num_updates = state["strength"], state["num_updates"]
        self._average_nats, self._noted_nats = state["average_nats"], state["noted_nats"]
