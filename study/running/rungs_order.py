"""Who is better at a rung: by constraints, then by fronts, then by what a front would lose. Numpy only; lower is better."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from study.fronts.hypervolume import hypervolume, reference_point
from study.fronts.knee import scaled
from study.fronts.pareto import Costs, Indices, Mask

_FIRST_ROOM = 64
_MOST_MENDED = 0.2
"""Share of a front that may have changed for what is known of the rest to be worth a look."""
_MOST_MEASURED = 128
"""Rows of a front of three columns or more whose volumes are measured: some 0.1 ms each."""


class Order:
    """Rows that come one by one, and the place of each.

    A row is better than another if it violates its constraints less; of equal violation, if it is of a better front (the first
    are the rows that no other dominates, the second those that only these dominate, and so on: Goldberg, "Genetic algorithms in
    search, optimization and machine learning", 1989); within a front, if the front would lose more by it (`lost_without`).

    A new row takes O(rows), and O(fronts) steps where it pushes others into worse fronts.
    """

    def __init__(self, num_columns: int) -> None:
        self._num_rows = 0
        self._costs = np.empty((_FIRST_ROOM, num_columns))
        self._violations = np.empty(_FIRST_ROOM)
        self._fronts = np.empty(_FIRST_ROOM, dtype=np.intp)
        self._losses = _Losses()

    def __len__(self) -> int:
        return self._num_rows

    @property
    def fronts(self) -> Indices:
        """(rows,) the front of each, from 0."""
        return self._fronts[: self._num_rows]

    def add(self, cost: NDArray[np.float64], violation: float) -> int:
        """Take a row in; returns its index.

        Args:
            cost: (columns,), finite.
            violation: of its constraints, at least 0, finite.
        """
        index = self._num_rows
        if index == len(self._costs):
            self._grow()
        costs, violations, fronts = self._costs[:index], self._violations[:index], self.fronts
        is_equal = violations == violation
        is_better = (violations < violation) | (is_equal & _dominate(costs, cost))
        is_worse = (violations > violation) | (is_equal & _dominate(-costs, -cost))
        front = int(fronts[is_better].max(initial=-1)) + 1
        self._push(np.flatnonzero(is_worse), front)
        self._costs[index], self._violations[index], self._fronts[index] = cost, violation, front
        self._num_rows += 1
        return index

    def _push(self, worse: Indices, front: int) -> None:
        """Move rows of a front that a new one of this front is better than, then those that they push, and so on.

        Only rows that the new one is better than can move, each by one front. Where a whole front moves, all behind it do.
        """
        fronts = self.fronts
        worse = worse[np.argsort(fronts[worse], kind="stable")]
        ends = np.searchsorted(fronts[worse], np.arange(front, fronts.max(initial=-1) + 2), side="right")
        moved, movers = [], worse[: ends[0]]
        for start, end in pairwise(ends):
            if not len(movers):
                break
            if len(movers) == np.count_nonzero(fronts == front):
                fronts[fronts >= front] += 1
                break
            following = worse[start:end]
            moved.append(movers)
            movers = following[self._are_worse(following, movers)]
            front += 1
        else:
            moved.append(movers)
        for rows in moved:
            fronts[rows] += 1

    def _are_worse(self, rows: Indices, others: Indices) -> Mask:
        """Which rows of one front some row of the front before it is better than."""
        if not len(rows) or self._violations[rows[0]] > self._violations[others[0]]:
            return np.ones(len(rows), dtype=bool)
        mask = np.zeros(len(rows), dtype=bool)
        for start in range(0, len(others), _FIRST_ROOM):
            part = self._costs[others[start : start + _FIRST_ROOM]]
            mask |= _dominate(part[None], self._costs[rows][:, None]).any(axis=1)
        return mask

    def place(self, index: int, most: int) -> int:
        """How many rows are better than one, and one more.

        Args:
            most: the place that matters: within its front the row is compared only if this decides which side of it it is on;
                else it shares its front's first place.
        """
        front = self._fronts[index]
        ahead = int(np.count_nonzero(self.fronts < front))
        members = np.flatnonzero(self.fronts == front)
        if not ahead < most < ahead + len(members):
            return ahead + 1
        losses = self._losses.of(self._costs[members])
        return ahead + int(np.count_nonzero(losses > losses[members == index])) + 1

    def _grow(self) -> None:
        for name in ("_costs", "_violations", "_fronts"):
            known = getattr(self, name)
            setattr(self, name, np.concatenate([known, np.empty_like(known)]))


def _dominate(rows: NDArray[np.float64], others: NDArray[np.float64]) -> Mask:
    """Whether rows dominate others, by the last axis."""
    return np.asarray((rows <= others).all(axis=-1) & (rows < others).any(axis=-1))


class _Losses:
    """What a front would lose by each of its rows; what a change of the front leaves as it was is not counted again."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[float, NDArray[np.float64]]] = {}  # by row, with the corner of what is its own
        self._reference = np.empty(0)

    def of(self, front: Costs) -> NDArray[np.float64]:
        """(rows,) as `lost_without`."""
        rows, inverse = np.unique(front, axis=0, return_inverse=True)
        if rows.shape[1] <= 2 or len(rows) < 3:
            return _with_extremes(rows, _steps(rows))[inverse.ravel()]
        if len(rows) > _MOST_MEASURED:
            return _with_extremes(rows, _room(rows))[inverse.ravel()]
        reference = reference_point(rows)
        keys = [row.tobytes() for row in rows]
        self._forget(rows, keys, reference)
        for index, key in enumerate(keys):
            if key not in self._known:
                self._known[key] = _own_volume(rows[index], np.delete(rows, index, axis=0), reference)
        return _with_extremes(rows, np.array([self._known[key][0] for key in keys]))[inverse.ravel()]

    def _forget(self, rows: Costs, keys: list[bytes], reference: NDArray[np.float64]) -> None:
        """Forget the rows that came or went, and those whose own volume they may reach into."""
        changed = self._known.keys() ^ set(keys)
        is_other = not np.array_equal(reference, self._reference) or len(changed) > _MOST_MENDED * len(keys)
        self._reference = reference
        if is_other:
            self._known = {}
            return
        staying = [index for index, key in enumerate(keys) if key in self._known]
        corners = np.array([self._known[keys[index]][1] for index in staying]).reshape(-1, rows.shape[1])
        is_touched = np.zeros(len(staying), dtype=bool)
        for key in changed:
            is_touched |= (np.maximum(rows[staying], np.frombuffer(key)) <= corners).all(axis=1)
        kept = [keys[index] for index, touched in zip(staying, is_touched, strict=True) if not touched]
        self._known = {key: self._known[key] for key in kept}


def lost_without(front: Costs) -> NDArray[np.float64]:
    """What a front would lose by each of its rows: the volume that it alone dominates (Beume, Naujoks and Emmerich, "SMS-EMOA:
    Multiobjective selection based on dominated hypervolume", 2007).

    Infinite for the best of each column; of several that are equally good there, for the one that would be missed most. Equal
    rows count as one, and share what it is worth. Volumes are measured from a tenth of the front's range beyond its worst, so
    that columns' units do not matter.

    Differs: in a front of more than 128 distinct rows and three columns or more, where that would take long, it is the distance
    between a row's neighbours in each column, summed (crowding distance: Deb et al., "A fast and elitist multiobjective genetic
    algorithm: NSGA-II", 2002).

    Args:
        front: (rows, columns), none dominates another.

    Returns:
        (rows,).
    """
    return _Losses().of(front)


def _with_extremes(rows: Costs, losses: NDArray[np.float64]) -> NDArray[np.float64]:
    best = [np.where(column == column.min(), losses, -np.inf).argmax() for column in rows.T]
    losses = losses.copy()
    losses[best] = np.inf
    return losses


def _steps(rows: Costs) -> NDArray[np.float64]:
    """Of at most two columns, or two rows: what a row takes of the staircase; its ends are the best of a column."""
    losses = np.zeros(len(rows))
    if rows.shape[1] == 2:  # sorted by the first column, so falling in the second
        losses[1:-1] = (rows[2:, 0] - rows[1:-1, 0]) * (rows[:-2, 1] - rows[1:-1, 1])
    return losses


def _room(rows: Costs) -> NDArray[np.float64]:
    """How far a row's neighbours in each scaled column are apart, summed."""
    room = np.zeros(len(rows))
    for column in scaled(rows).T:
        order = np.argsort(column, kind="stable")
        gaps = np.diff(column[order])
        room[order] += np.append(gaps, gaps[-1]) + np.append(gaps[0], gaps)
    return room


def _own_volume(row: NDArray[np.float64], others: Costs, reference: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """The volume that only a row dominates, and the corner of a box that holds it.

    Another row that is no worse in all columns but one cuts the whole box off there.
    """
    is_lower = others <= row
    is_cut = is_lower.sum(axis=1) == len(row) - 1
    corner = np.where(is_lower[is_cut], reference, others[is_cut]).min(axis=0, initial=np.inf)
    corner = np.minimum(corner, reference)
    limited = np.maximum(others, row)
    limited = limited[(limited < corner).all(axis=1)]
    return float(np.prod(corner - row)) - hypervolume(limited, corner), corner
