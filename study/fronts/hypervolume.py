"""How much a front achieves: the volume it dominates within a reference point. Numpy only; lower is better in every column."""

from bisect import bisect_right

import numpy as np
from numpy.typing import ArrayLike, NDArray

from study.fronts.pareto import Costs, as_costs, first_not_worse, non_dominated

_ROWS_AT_ONCE = 256


def reference_point(costs: ArrayLike) -> NDArray[np.float64]:
    """A reference that every finite row beats in every column: the worst finite cost and a tenth of the range of the finite.

    Where they are all equal: a tenth of their magnitude, and 1 where that is 0. Rows with a NaN take no part. It moves with the
    rows: hypervolumes compare only within one reference, so ask once, of all rows that shall be compared.

    Args:
        costs: (rows, objectives).

    Returns:
        (objectives,), finite.

    Raises:
        ValueError: if a column has no finite cost.
    """
    costs = as_costs(costs)
    costs = costs[~np.isnan(costs).any(axis=1)]
    is_finite = np.isfinite(costs)
    if not is_finite.any(axis=0).all():
        empty = np.flatnonzero(~is_finite.any(axis=0)).tolist()
        raise ValueError(
            f"a reference point needs a finite cost in each column, but got none in {empty}; leave these columns out"
        )
    best = np.where(is_finite, costs, np.inf).min(axis=0)
    worst = np.where(is_finite, costs, -np.inf).max(axis=0)
    margin = np.where(worst > best, worst - best, np.where(worst != 0, np.abs(worst), 10.0)) / 10
    return np.asarray(np.maximum(worst + margin, np.nextafter(worst, np.inf)), dtype=np.float64)


def hypervolume(costs: ArrayLike, reference: ArrayLike) -> float:
    """The volume that is dominated by a row and within the reference point.

    Rows that are not better than the reference in every column, and rows with a NaN, add nothing. A row that is, with a cost of
    minus infinity, makes it infinite.

    Sweeps along the last column: a row adds its depth there times what it adds to the others, so that n rows take O(n log n)
    time for two and three objectives, O(n * front) as a rule for four, and more for each further one (Fonseca, Paquete and
    López-Ibáñez, "An improved dimension-sweep algorithm for the hypervolume indicator", CEC 2006).

    Args:
        costs: (rows, objectives).
        reference: (objectives,), finite.

    Returns:
        A volume in the product of the columns' units, at least 0.

    Raises:
        ValueError: if the reference is not finite or not of as many objectives.
    """
    costs, reference = _checked(costs, reference)
    rows = costs[(costs < reference).all(axis=1)]
    return float("inf") if np.isneginf(rows).any() else _volume(rows[non_dominated(rows)], reference)


def hypervolume_over_time(costs: ArrayLike, reference: ArrayLike) -> NDArray[np.float64]:
    """The hypervolume of the first i + 1 rows, for every i.

    As `hypervolume` of each beginning, to rounding. A row that enters the front costs O(front), one that does not
    next to nothing.

    Args:
        costs: (rows, objectives), in the order in which they came.
        reference: (objectives,), finite.

    Returns:
        (rows,), never falling.

    Raises:
        ValueError: if the reference is not finite or not of as many objectives.
    """
    costs, reference = _checked(costs, reference)
    gains = np.zeros(len(costs))
    is_inside = (costs < reference).all(axis=1)
    is_endless = is_inside & np.isneginf(costs).any(axis=1)
    is_inside &= ~is_endless
    gains[is_inside] = _gains(costs[is_inside], reference)
    gains[is_endless] = np.inf
    return np.cumsum(gains)


def _checked(costs: ArrayLike, reference: ArrayLike) -> tuple[Costs, NDArray[np.float64]]:
    costs, reference = as_costs(costs), np.asarray(reference, dtype=np.float64)
    if reference.shape != costs.shape[1:] or not np.isfinite(reference).all():
        law = f"a reference point must have a finite value for each of {costs.shape[1]} objectives"
        raise ValueError(f"{law}, but got {reference.tolist()}; take reference_point(costs)")
    return costs, reference


def _volume(rows: Costs, reference: NDArray[np.float64]) -> float:
    """Of rows within the reference."""
    rows = rows[np.argsort(rows[:, -1], kind="stable")]
    depths = reference[-1] - rows[:, -1]
    if rows.shape[1] == 1:
        return float(depths.max(initial=0.0))
    return float(_gains(rows[:, :-1], reference[:-1]) @ depths)


def _gains(rows: Costs, reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much each row adds to the volume of those before it; all are within the reference. Each is at least 0."""
    if rows.shape[1] == 1:
        return -np.diff(np.minimum.accumulate(rows[:, 0]), prepend=reference[0])
    return _areas_gained(rows, reference) if rows.shape[1] == 2 else _volumes_gained(rows, reference)


def _areas_gained(rows: Costs, reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of two columns: the front so far is a staircase, of which a row takes the steps that it dominates."""
    xs, ys = [-np.inf, float(reference[0])], [float(reference[1]), -np.inf]  # falling from left to right
    gains = np.zeros(len(rows))
    for index, (x, y) in enumerate(rows.tolist()):
        first = step = bisect_right(xs, x)
        left, gain = x, 0.0
        while ys[step - 1] > y:
            gain += (xs[step] - left) * (ys[step - 1] - y)
            left = xs[step]
            step += 1
        if step > first:
            xs[first : step - 1], ys[first : step - 1] = [x], [y]
            gains[index] = gain
    return gains


def _volumes_gained(rows: Costs, reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of three columns and more: each row beside the front so far, by columns (objectives, front)."""
    gains = np.zeros(len(rows))
    front = np.empty((rows.shape[1], 0))
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        open_rows = first_not_worse(rows[start : start + _ROWS_AT_ONCE], front.T) < 0
        for index in start + np.flatnonzero(open_rows):
            gains[index] = _volume_gained(rows[index], front, reference)
            if gains[index] > 0:
                is_kept = (front < rows[index][:, None]).any(axis=0)
                front = np.column_stack([np.compress(is_kept, front, axis=1), rows[index]])
    return gains


def _volume_gained(row: NDArray[np.float64], front: Costs, reference: NDArray[np.float64]) -> float:
    """The part of the box between a row and the reference that the front leaves.

    A row of the front that is better in all columns but one cuts the whole box off there: what is left is small, and few others
    reach into it (after While, Bradstreet and Barone, "A fast way of calculating exact hypervolumes", 2012).
    """
    is_lower = front <= row[:, None]
    num_lower = is_lower.sum(axis=0, dtype=np.int8)
    if (num_lower == len(row)).any():
        return 0.0
    is_cut = num_lower == len(row) - 1
    cuts = np.where(is_lower[:, is_cut], np.inf, front[:, is_cut])
    corner = cuts.min(axis=1, initial=np.inf)
    corner = np.minimum(corner, reference)
    limited = np.maximum(front, row[:, None])
    limited = limited[:, (limited < corner[:, None]).all(axis=0)]
    return max(0.0, float(np.prod(corner - row)) - _volume(limited.T, corner))
