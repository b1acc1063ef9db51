"""Pareto fronts of cost matrices. Numpy only; lower is better in every column."""

import numpy as np
from numpy.typing import NDArray


def non_dominated(costs: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Find the rows that no other row dominates.

    A row dominates another if it is no worse in every column and better in one. Equal rows do not dominate each other:
    all of them are kept. A row with a NaN is compared with nothing and never kept; an infinite cost is a number like others.

    Args:
        costs: (rows, objectives), at least one objective.

    Returns:
        (rows,): True where the row is on the front.

    Raises:
        ValueError: if costs is no matrix with a column.
    """
    costs = np.asarray(costs, dtype=np.float64)
    if costs.ndim != 2 or costs.shape[1] == 0:
        raise ValueError(f"costs must be (rows, objectives) with an objective, but got shape {costs.shape}; reshape it")
    mask = np.zeros(len(costs), dtype=bool)
    comparable = np.flatnonzero(~np.isnan(costs).any(axis=1))
    distinct, inverse = np.unique(costs[comparable], axis=0, return_inverse=True)
    mask[comparable] = _front_of_sorted(distinct)[inverse]
    return mask


def _front_of_sorted(rows: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The front of distinct rows in lexicographic order: a row can only be dominated by one before it."""
    if rows.shape[1] == 2 and len(rows):
        best_before = np.minimum.accumulate(np.concatenate([[np.inf], rows[:-1, 1]]))
        first = np.arange(len(rows)) == 0
        return np.asarray(first | (rows[:, 1] < best_before))
    mask = np.zeros(len(rows), dtype=bool)
    front = np.empty((0, rows.shape[1]))
    for index, row in enumerate(rows):
        if not (front <= row).all(axis=1).any():
            mask[index] = True
            front = np.vstack([front, row])
    return mask
