"""The best compromise of a front. Numpy only; lower is better in every column."""

from collections.abc import Collection

import numpy as np
from numpy.typing import ArrayLike, NDArray

from study.fronts.pareto import Costs, as_costs, non_dominated

_TIED = 1e-9
"""Scaled costs that differ by less are equal: scaling an axis must not decide."""


def knee(costs: ArrayLike, log_columns: Collection[int] = ()) -> int | None:
    """Find the row of the front that gives up least: the least sum of its costs, each scaled to 0..1 over the front.

    It is the row farthest from the plane through the corners of the scaled front, where one cost is worst and the others best,
    towards the ideal. With two objectives, the row farthest from the chord between the front's ends (Das, "On characterizing the
    knee of the Pareto curve based on normal-boundary intersection", 1999). Nothing moves it but the front: no unit, no shift of
    an axis (as far as floats keep the differences), no dominated row, no order of rows. It depends on the front's ends: one
    more extreme row may move it. A front without a bulge has a row with the least sum, too; that is then no remarkable one.

    Of rows with equal sums: the one whose worst scaled cost is least, then the first in lexicographic order of scaled costs, so
    that an end of a straight front is not taken for its knee. A column where all are equal counts nothing. Rows with an
    infinite cost are asked only where the front has no others; an infinite cost then counts as the best or worst finite one.

    Differs: Das measures from the plane through the rows that are best in one objective each. With three objectives
    and more that plane may tilt, or not exist. Branke et al., "Finding knees in multi-objective optimization", 2004, ask which
    row is best for most weights; here all weights are equal.

    Args:
        costs: (rows, objectives).
        log_columns: columns whose logarithm is scaled, if all their costs on the front are positive.

    Returns:
        Index of the row; None if no row can be compared.

    Raises:
        ValueError: if a column does not exist.
    """
    costs = as_costs(costs)
    if not set(log_columns) <= set(range(costs.shape[1])):
        law = f"log_columns must be among the {costs.shape[1]} columns, counted from 0"
        raise ValueError(f"{law}, but got {sorted(log_columns)}; leave the others out")
    front = np.flatnonzero(non_dominated(costs))
    if not len(front):
        return None
    is_finite = np.isfinite(costs[front]).all(axis=1)
    front = front[is_finite] if is_finite.any() else front
    shares = scaled(_with_logs(costs[front], log_columns))
    tied = np.arange(len(front))
    for key in (shares.sum(axis=1), shares.max(axis=1), *shares.T):
        tied = tied[key[tied] <= key[tied].min() + _TIED]
    front = front[tied]
    return int(front[np.lexsort(costs[front].T[::-1])[0]])


def scaled(costs: Costs) -> NDArray[np.float64]:
    """Each column from 0, its best finite cost, to 1, its worst; 0 where they are equal, and infinite costs at the ends.

    Args:
        costs: (rows, objectives), without NaN.

    Returns:
        (rows, objectives), 0..1.
    """
    halves = costs / 2  # their range is a float, too
    best, spread = finite_range(halves)
    return np.clip((halves - best) / np.where(spread > 0, spread, 1.0), 0.0, 1.0)


def finite_range(costs: Costs) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each column's least finite cost and how far the others reach beyond; 0 and 0 without one. (objectives,) each."""
    is_finite = np.isfinite(costs)
    best = np.where(is_finite, costs, np.inf).min(axis=0, initial=np.inf)
    worst = np.where(is_finite, costs, -np.inf).max(axis=0, initial=-np.inf)
    has_any = is_finite.any(axis=0)
    return np.where(has_any, best, 0.0), np.where(has_any, worst, 0.0) - np.where(has_any, best, 0.0)


def _with_logs(costs: Costs, log_columns: Collection[int]) -> Costs:
    costs = costs.copy()
    for column in log_columns:
        if (costs[:, column] > 0).all():
            costs[:, column] = np.log10(costs[:, column])
    return costs
