"""Pareto fronts of cost matrices. Numpy only; lower is better in every column."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Costs = NDArray[np.float64]
Indices = NDArray[np.intp]
Mask = NDArray[np.bool_]

_FIRST_BLOCK, _LARGEST_BLOCK, _ROWS_AT_ONCE = 64, 1024, 16384
_LOWEST_BIT = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").argmax(axis=1)


def non_dominated(costs: ArrayLike) -> Mask:
    """Find the rows that no other row dominates.

    A row dominates another if it is no worse in every column and better in one. Equal rows do not dominate each other:
    all of them are kept. A row with a NaN is compared with nothing and never kept; an infinite cost is a number like others.

    Takes O(n log n) time for up to three objectives, whatever the front. For more, O(n log n + n * front * objectives / 64):
    a word holds 64 comparisons.

    Args:
        costs: (rows, objectives), at least one objective.

    Returns:
        (rows,): True where the row is on the front.

    Raises:
        ValueError: if costs is no matrix with a column.
    """
    costs = as_costs(costs)
    comparable = np.flatnonzero(~np.isnan(costs).any(axis=1))
    order = comparable[np.lexsort(costs[comparable].T[::-1])]
    rows = costs[order]
    is_new = np.ones(len(rows), dtype=bool)
    is_new[1:] = (rows[1:] != rows[:-1]).any(axis=1)
    mask = np.zeros(len(costs), dtype=bool)
    mask[order] = _front_of_sorted(rows[is_new])[np.cumsum(is_new) - 1]
    return mask


def first_not_worse(rows: Costs, others: Costs) -> Indices:
    """Find for each row the first of the others that is no worse in any column.

    Of a block of others and a column, the sets of those at most as large as the k-th smallest are bit strings in a table;
    a row looks its set up in each column, and the intersection is what it asks for. Rows that found one are done.

    Args:
        rows: (rows, objectives), without NaN.
        others: (others, objectives), without NaN; soonest done if those that come first suffice for many rows.

    Returns:
        (rows,): an index of others, -1 where none is.
    """
    first = np.full(len(rows), -1)
    searching = np.arange(len(rows))
    start, width = 0, _FIRST_BLOCK
    while start < len(others) and len(searching):
        block = others[start : start + width]
        tables = [_prefix_sets(column) for column in block.T]
        for index in range(0, len(searching), _ROWS_AT_ONCE):
            chunk = searching[index : index + _ROWS_AT_ONCE]
            found, position = _first_members(rows[chunk], np.sort(block, axis=0), tables)
            first[chunk[found]] = start + position
        searching = searching[first[searching] < 0]
        start, width = start + width, min(4 * width, _LARGEST_BLOCK)
    return first


def as_costs(costs: ArrayLike) -> Costs:
    """Costs as (rows, objectives) in float64; ValueError if it is no matrix with a column."""
    costs = np.asarray(costs, dtype=np.float64)
    if costs.ndim != 2 or costs.shape[1] == 0:
        raise ValueError(f"costs must be (rows, objectives) with an objective, but got shape {costs.shape}; reshape it")
    return costs


def _front_of_sorted(rows: Costs) -> Mask:
    """The front of distinct rows in lexicographic order: a row can only be dominated by one before it."""
    if rows.shape[1] == 1:
        return _front_of_one(rows)
    if rows.shape[1] == 2:
        return _front_of_two(rows)
    return _front_of_three(rows) if rows.shape[1] == 3 else _front_of_many(rows)


def _front_of_one(rows: Costs) -> Mask:
    mask = np.zeros(len(rows), dtype=bool)
    mask[:1] = True
    return mask


def _front_of_two(rows: Costs) -> Mask:
    best = np.minimum.accumulate(rows[:, 1])
    is_kept = np.ones(len(rows), dtype=bool)
    is_kept[1:] = rows[1:, 1] < best[:-1]
    return is_kept


def _front_of_three(rows: Costs) -> Mask:
    """Divide and conquer (Kung, Luccio and Preparata, 1975), all parts of a size at once.

    The rows are halved by their place, down to single rows. In each part, in order of the second column, a running minimum of
    the third over the earlier half tells which rows of the later half have a row below them in both.
    """
    size = 1 << (len(rows) - 1).bit_length()  # what fills it up comes last and dominates nothing
    by_second = np.arange(size)
    by_second[: len(rows)] = np.argsort(rows[:, 1], kind="stable")
    third = np.full(size, size)
    third[: len(rows)] = np.unique(rows[:, 2], return_inverse=True)[1]  # ranks: beyond all of them there is a number left
    is_beaten = np.zeros(size, dtype=bool)
    half = size // 2
    while half:
        is_later = (by_second & half) != 0
        value = third[by_second]
        earlier = np.where(is_later, size + 1, value).reshape(-1, 2 * half)
        is_beaten[by_second] |= is_later & (np.minimum.accumulate(earlier, axis=1).ravel() <= value)
        parts = [by_second[~is_later].reshape(-1, half), by_second[is_later].reshape(-1, half)]
        by_second = np.stack(parts, axis=1).ravel()
        half //= 2
    return ~is_beaten[: len(rows)]


def _front_of_many(rows: Costs) -> Mask:
    """Block by block, best first by the sum of ranks: what dominates a row has a smaller sum, and the best dominate many."""
    ranks = [np.unique(column, return_inverse=True)[1] for column in rows.T]
    remaining = np.argsort(np.sum(ranks, axis=0), kind="stable")
    mask = np.zeros(len(rows), dtype=bool)
    width = _FIRST_BLOCK
    while len(remaining):
        block, remaining = remaining[:width], remaining[width:]
        front = block[first_not_worse(rows[block], rows[block]) == np.arange(len(block))]  # each is no worse than itself
        mask[front] = True
        remaining = remaining[first_not_worse(rows[remaining], rows[front]) < 0]
        width = min(4 * width, _LARGEST_BLOCK)
    return mask


def _prefix_sets(column: Costs) -> NDArray[np.uint64]:
    """Row k: which are among the k smallest of the column, one bit each. (values + 1, words)."""
    place = np.full(-(-len(column) // 64) * 64, len(column))
    place[np.argsort(column, kind="stable")] = np.arange(len(column))
    members = place < np.arange(len(column) + 1)[:, None]
    return np.packbits(members, axis=1, bitorder="little").view(np.uint64)


def _first_members(rows: Costs, sorted_columns: Costs, tables: list[NDArray[np.uint64]]) -> tuple[Indices, Indices]:
    """Which rows have a member of the block that is no worse in any column, and the first of these."""
    sets = np.full((len(rows), tables[0].shape[1]), ~np.uint64(0))
    for column, values, table in zip(rows.T, sorted_columns.T, tables, strict=True):
        sets &= table[np.searchsorted(values, column, side="right")]
    found = np.flatnonzero(sets.any(axis=1))
    octets = sets[found].view(np.uint8)
    octet = (octets != 0).argmax(axis=1)
    return found, 8 * octet + _LOWEST_BIT[octets[np.arange(len(found)), octet]]
