"""How far rows are from a front: who beats them, by how much, and who is close. Numpy only; lower is better in every column."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from study.fronts.knee import finite_range, scaled
from study.fronts.pareto import Costs, Indices, Mask, as_costs, first_not_worse, non_dominated


class Domination(NamedTuple):
    """Who beats each row by most.

    Args:
        best: (rows,) index of a row of the front; -1 for rows of the front and for rows with a NaN.
        gap: (rows, objectives) by how much it is better, in the columns' units, at least 0; 0 where there is none.
    """

    best: Indices
    gap: NDArray[np.float64]


def dominated_by(costs: ArrayLike) -> Domination:
    """Find for each row that is not on the front the row of the front that beats it by most.

    By most: the greatest sum of gaps, each in units of the front's range in its column; where the range is 0, in the column's
    own unit. Of several, the first in lexicographic order of costs, then of rows. The sum of a row's scaled costs less that of
    the one that beats it is the sum of gaps: so it is the first in the order of those sums that dominates, and one search
    suffices. An infinite cost of the front counts as its best or worst finite one there; the gap to one is infinite.

    Args:
        costs: (rows, objectives).
    """
    costs = as_costs(costs)
    is_front = non_dominated(costs)
    best, gap = np.full(len(costs), -1), np.zeros(costs.shape)
    beaten = np.flatnonzero(~is_front & ~np.isnan(costs).any(axis=1))
    front = _least_sum_first(costs, np.flatnonzero(is_front))
    best[beaten] = front[first_not_worse(costs[beaten], costs[front])]
    worse, better = costs[beaten], costs[best[beaten]]
    gap[beaten] = np.subtract(worse, better, out=np.zeros_like(worse), where=worse != better)  # equal infinities: no gap
    return Domination(best, gap)


def within(costs: ArrayLike, epsilon: float) -> Mask:
    """Find the rows in a band around the front, epsilon wide.

    The front is in it. Another row is out if a row of the front is better by epsilon units or more in every column: it would
    not be on the front even if it were better by as much (additive epsilon-dominance: Laumanns et al., "Combining convergence
    and diversity in evolutionary multiobjective optimization", 2002). A column's unit is the front's range there, of finite
    costs; where that is 0, the magnitude of the cost. At epsilon = 0 the band is the front; a larger epsilon never loses a row.

    When rows are added, a row of the band may fall out, as the front moves on or its range shrinks. One that fell out comes back
    only if a unit grows, as when the front finds a new extreme: what is thrown away for being out may later be missed.

    Args:
        costs: (rows, objectives).
        epsilon: width, at least 0, finite; 0.05 is a twentieth of the front's range.

    Returns:
        (rows,): True in the band; False for rows with a NaN.

    Raises:
        ValueError: if epsilon is negative or not finite.
    """
    if not 0 <= epsilon < np.inf:
        raise ValueError(f"epsilon must be finite and at least 0, but got {epsilon}; 0 asks for the front alone")
    costs = as_costs(costs)
    mask = non_dominated(costs)
    others = np.flatnonzero(~mask & ~np.isnan(costs).any(axis=1))
    front = costs[_least_sum_first(costs, np.flatnonzero(mask))]
    best, spread = finite_range(front)
    unit = np.where(spread > 0, spread, np.abs(best))
    mask[others] = first_not_worse(costs[others] - epsilon * unit, front) < 0
    return mask


def _least_sum_first(costs: Costs, front: Indices) -> Indices:
    sums = scaled(costs[front]).sum(axis=1)
    return front[np.lexsort((*costs[front].T[::-1], sums))]
