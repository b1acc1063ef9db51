"""Has a study's front stopped growing?"""

from collections.abc import Mapping, Sequence

import numpy as np

from study.fronts.hypervolume import hypervolume_over_time, reference_point

LEAST_TRIALS = 10
SHARE = 1 / 3
"""Of the trials that ended, those at the end that must have added next to nothing; at least `LEAST_TRIALS`."""
LEAST_GROWTH = 0.01
"""Of the hypervolume that there was before them."""


class Flatness:
    """Follows the hypervolume of a study's front, trial by trial that finished or was stopped early.

    Args:
        goals: "min" or "max" of each objective, in their order.
    """

    def __init__(self, goals: Mapping[str, str]) -> None:
        self._signs = np.array([1.0 if goal == "min" else -1.0 for goal in goals.values()])
        self._costs: list[np.ndarray] = []

    def add(self, values: Sequence[float] | None) -> None:
        """Take in a trial that ended.

        Args:
            values: its objectives; None for one that has no place on a front.
        """
        worst = np.full(len(self._signs), np.inf)
        self._costs.append(worst if values is None else np.asarray(values, dtype=np.float64) * self._signs)

    @property
    def is_flat(self) -> bool:
        """Whether the last trials, a third of all and at least ten, grew the hypervolume by less than a hundredth."""
        num_last = max(LEAST_TRIALS, round(SHARE * len(self._costs)))
        costs = np.array(self._costs)
        if len(costs) < 2 * num_last or not np.isfinite(costs[:-num_last]).all(axis=1).any():
            return False
        volumes = hypervolume_over_time(costs, reference_point(costs))
        return bool(volumes[-1] <= (1 + LEAST_GROWTH) * volumes[-num_last - 1])
