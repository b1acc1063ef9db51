import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from study.fronts.domination import dominated_by, within
from study.fronts.pareto import first_not_worse, non_dominated

ODD = [0.0, -0.0, 1.0, 2.0, 3.0, -1.0, np.inf, -np.inf, np.nan]


def oracle(costs):
    """Straight from the definition, one pair at a time."""

    def comparable(row):
        return not any(value != value for value in row)

    def dominates(a, b):
        return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))

    rows = costs.tolist()
    return [comparable(b) and not any(comparable(a) and dominates(a, b) for a in rows) for b in rows]


def random_set(seed):
    """1 to 4 objectives; every other set of few values, every third with NaN and infinities among them."""
    random = np.random.default_rng(seed)
    shape = random.integers(0, 40), 1 + seed % 4
    costs = random.integers(0, random.integers(2, 9), shape).astype(float) if seed % 2 else random.normal(size=shape)
    return np.where(random.random(shape) < 0.1, random.choice(ODD, shape), costs) if seed % 3 == 0 else costs


def on_a_plane(num_rows, objectives, seed=0):
    """Costs of which none dominates another."""
    costs = np.random.default_rng(seed).exponential(size=(num_rows, objectives))
    return costs / costs.sum(axis=1, keepdims=True)


@settings(max_examples=400, deadline=None)
@given(
    st.integers(1, 4).flatmap(
        lambda columns: arrays(np.float64, st.tuples(st.integers(0, 12), st.just(columns)), elements=st.sampled_from(ODD))
    )
)
def test_the_front_is_what_the_definition_says_with_ties_nan_and_infinities(costs):
    assert non_dominated(costs).tolist() == oracle(costs)


def test_the_front_of_a_thousand_random_sets_is_what_the_definition_says():
    for seed in range(1000):
        costs = random_set(seed)
        assert non_dominated(costs).tolist() == oracle(costs), f"set {seed}"


@pytest.mark.parametrize("objectives", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("noise", [0.0, 0.05, 1.0])
def test_the_front_of_more_rows_than_a_block_holds(objectives, noise):
    costs = (on_a_plane(3000, objectives) + noise * np.random.default_rng(1).random((3000, objectives))).round(3)
    expected = [not ((costs <= row).all(axis=1) & (costs < row).any(axis=1)).any() for row in costs]
    assert non_dominated(costs).tolist() == expected


@pytest.mark.parametrize("objectives", [1, 2, 3, 4, 5])
def test_the_front_knows_no_order_of_rows(objectives):
    costs = np.random.default_rng(0).integers(0, 8, (500, objectives)).astype(float)
    order = np.random.default_rng(1).permutation(500)
    assert (non_dominated(costs[order]) == non_dominated(costs)[order]).all()


def test_equal_rows_are_all_kept():
    assert non_dominated(np.array([[1.0, 2.0], [1.0, 2.0], [2.0, 2.0]])).tolist() == [True, True, False]


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_no_row_one_row_and_nothing_but_nan(objectives):
    assert non_dominated(np.empty((0, objectives))).tolist() == []
    assert non_dominated(np.ones((1, objectives))).tolist() == [True]
    assert non_dominated(np.full((3, objectives), np.nan)).tolist() == [False] * 3


@pytest.mark.parametrize("shape", [(3,), (3, 0), (2, 2, 2)])
def test_a_cost_matrix_must_have_rows_and_objectives(shape):
    with pytest.raises(ValueError, match="costs must be"):
        non_dominated(np.zeros(shape))


def test_asking_for_a_front_loads_numpy_and_no_other_library():
    code = (
        "import sys, numpy; numpy.random; before = set(sys.modules)\n"
        "import study.fronts.domination, study.fronts.hypervolume, study.fronts.knee, study.fronts.seed_bands\n"
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(eval(result.stdout)) <= {"numpy", "study"}


@pytest.mark.parametrize("objectives", [1, 3])
@pytest.mark.parametrize("num_others", [0, 1, 63, 64, 65, 3000])
def test_the_first_row_that_is_no_worse_is_found(objectives, num_others):
    random = np.random.default_rng(num_others)
    rows, others = (random.choice([*range(40), np.inf, -np.inf], (n, objectives)).astype(float) for n in (700, num_others))
    is_no_worse = (others <= rows[:, None]).all(axis=2)
    expected = np.where(is_no_worse.any(axis=1), is_no_worse.argmax(axis=1) if num_others else 0, -1)
    assert first_not_worse(rows, others).tolist() == expected.tolist()


def test_the_row_that_beats_another_by_most_is_named_with_its_gaps():
    costs = np.array([[0.0, 100.0], [1.0, 20.0], [4.0, 0.0], [4.0, 60.0], [0.0, 120.0], [np.nan, 0.0]])
    found = dominated_by(costs)
    assert found.best.tolist() == [-1, -1, -1, 1, 0, -1]  # of row 3: 3/4 + 40/100 by row 1, 0 + 60/100 by row 2
    assert found.gap.tolist() == [[0, 0], [0, 0], [0, 0], [3, 40], [0, 20], [0, 0]]


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_nobody_on_the_front_beats_a_row_by_more(objectives):
    random = np.random.default_rng(objectives)
    costs = (on_a_plane(400, objectives) + random.random((400, objectives))).round(2)
    best, gap = dominated_by(costs)
    is_front = non_dominated(costs)
    spread = np.ptp(costs[is_front], axis=0)
    unit = np.where(spread > 0, spread, 1)
    assert ((best < 0) == is_front).all() and (gap[is_front] == 0).all()
    for row in np.flatnonzero(~is_front):
        gaps = costs[row] - costs[is_front & (costs <= costs[row]).all(axis=1)]
        assert is_front[best[row]] and (gap[row] == costs[row] - costs[best[row]]).all()
        assert (gap[row] / unit).sum() == pytest.approx((gaps / unit).sum(axis=1).max())


def test_gaps_to_infinity_are_infinite_and_between_equal_infinities_none():
    best, gap = dominated_by([[1.0, np.inf], [2.0, np.inf], [3.0, 1.0], [np.inf, 2.0]])
    assert best.tolist() == [-1, 0, -1, 2]
    assert gap.tolist() == [[0, 0], [1, 0], [0, 0], [np.inf, 1]]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 3), st.floats(0, 3))
def test_the_band_holds_the_front_grows_with_its_width_and_is_what_it_says(seed, one, other):
    costs = random_set(seed)
    narrow, wide = within(costs, min(one, other)), within(costs, max(one, other))
    assert (within(costs, 0) == non_dominated(costs)).all()
    assert (non_dominated(costs) <= narrow).all() and (narrow <= wide).all()
    assert not wide[np.isnan(costs).any(axis=1)].any()


def test_a_band_is_measured_in_ranges_of_the_front():
    costs = np.array([[0.0, 100.0], [10.0, 0.0], [11.0, 9.0], [11.0, 11.0], [0.5, 104.0], [1.5, 112.0]])
    assert within(costs, 0.1).tolist() == [True, True, True, False, True, False]
    assert within(costs * [3.0, 0.01] + [5.0, 7.0], 0.11).tolist() == [True, True, True, True, True, False]
    assert within(costs, 0.05).tolist() == [True, True, False, False, True, False]


def test_a_band_around_one_row_is_measured_in_magnitudes():
    assert within([[10.0, 0.0], [10.4, 0.0], [10.6, 0.0], [10.0, 1.0]], 0.05).tolist() == [True, True, False, True]


def test_a_row_comes_back_into_the_band_only_when_the_front_widens():
    costs = np.array([[0.0, 1.0], [1.0, 0.0], [1.2, 0.3]])
    assert within(costs, 0.1).tolist() == [True, True, False]
    assert not within(np.vstack([costs, [[0.5, 0.5], [0.0, 0.9]]]), 0.1)[2]
    assert within(np.vstack([costs, [[-5.0, 10.0]]]), 0.1)[2]


@pytest.mark.parametrize("epsilon", [-0.1, np.nan, np.inf])
def test_a_band_must_have_a_width(epsilon):
    with pytest.raises(ValueError, match="epsilon must be finite and at least 0, but got"):
        within([[1.0]], epsilon)


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_nothing_is_beaten_among_no_rows_and_nan(objectives):
    for costs in (np.empty((0, objectives)), np.full((2, objectives), np.nan)):
        assert (dominated_by(costs).best == -1).all() and not within(costs, 0.5).any()
