import numpy as np
import pytest
from optuna._hypervolume import compute_hypervolume

from study.fronts.hypervolume import hypervolume, hypervolume_over_time, reference_point


def random_sets(num):
    """1 to 4 objectives: ties, no ties, none dominated."""
    random = np.random.default_rng(0)
    for index in range(num):
        shape = random.integers(1, 30), 1 + index % 4
        kind = index % 3
        costs = random.integers(0, 6, shape).astype(float) if kind == 0 else random.exponential(size=shape)
        yield costs / costs.sum(axis=1, keepdims=True) if kind == 2 and shape[1] > 1 else costs


def test_it_is_optunas_hypervolume():
    for costs in random_sets(600):
        reference = reference_point(costs)
        assert hypervolume(costs, reference) == pytest.approx(compute_hypervolume(costs, reference), rel=1e-9)


@pytest.mark.parametrize(("objectives", "num_rows"), [(2, 1500), (3, 1500), (4, 120), (5, 40)])
def test_it_is_optunas_where_many_are_on_the_front(objectives, num_rows):
    costs = np.random.default_rng(0).exponential(size=(num_rows, objectives))
    costs /= costs.sum(axis=1, keepdims=True)
    reference = np.full(objectives, 1.1)
    assert hypervolume(costs, reference) == pytest.approx(compute_hypervolume(costs, reference), rel=1e-9)


def test_over_time_it_is_the_hypervolume_of_each_beginning():
    for costs in random_sets(200):
        reference = reference_point(costs)
        volumes = hypervolume_over_time(costs, reference)
        assert volumes == pytest.approx([hypervolume(costs[: i + 1], reference) for i in range(len(costs))], rel=1e-9)
        assert (np.diff(volumes) >= 0).all()


def test_over_time_it_is_the_hypervolume_after_more_rows_than_a_block_holds():
    random = np.random.default_rng(0)
    costs = random.random((700, 3)) + np.linspace(1, 0, 700)[:, None]
    volumes = hypervolume_over_time(costs, [2.0] * 3)
    assert volumes[[255, 256, 699]] == pytest.approx([hypervolume(costs[:n], [2.0] * 3) for n in (256, 257, 700)], rel=1e-9)


def test_the_order_of_rows_does_not_matter():
    costs = np.random.default_rng(0).random((300, 3))
    assert hypervolume(costs[::-1], [1.0] * 3) == pytest.approx(hypervolume(costs, [1.0] * 3), rel=1e-12)


def test_rows_that_do_not_beat_the_reference_and_rows_with_nan_add_nothing():
    costs = np.array([[np.nan, 0.0], [1.0, 1.0], [3.0, 0.0], [np.inf, 0.0], [-np.inf, 3.0], [0.0, 2.0], [np.nan, -np.inf]])
    assert hypervolume(costs, [3.0, 3.0]) == 4 + 1
    assert hypervolume_over_time(costs, [3.0, 3.0]).tolist() == [0, 4, 4, 4, 4, 5, 5]


def test_a_cost_of_minus_infinity_makes_it_infinite_from_there_on():
    costs = [[1.0, 1.0, 1.0], [-np.inf, 1.0, 1.0], [0.0, 0.0, 0.0]]
    assert hypervolume(costs, [2.0] * 3) == np.inf
    assert hypervolume_over_time(costs, [2.0] * 3).tolist() == [1, np.inf, np.inf]


@pytest.mark.parametrize("objectives", [1, 2, 3, 4, 5])
def test_no_row_one_row_and_equal_rows(objectives):
    reference = np.full(objectives, 3.0)
    assert hypervolume(np.empty((0, objectives)), reference) == 0
    assert hypervolume_over_time(np.empty((0, objectives)), reference).tolist() == []
    assert hypervolume(np.ones((1, objectives)), reference) == 2.0**objectives
    assert hypervolume_over_time(np.ones((2, objectives)), reference).tolist() == [2.0**objectives] * 2


@pytest.mark.parametrize("reference", [[1.0], [1.0, np.inf], [1.0, np.nan], 1.0])
def test_a_reference_must_be_finite_and_fit(reference):
    for question in (hypervolume, hypervolume_over_time):
        with pytest.raises(ValueError, match="finite value for each of 2 objectives, but got"):
            question(np.zeros((2, 2)), reference)


def test_the_reference_is_a_tenth_of_the_range_beyond_the_worst_finite_cost():
    costs = [[0.0, 5.0, 0.0, -20.0], [10.0, 5.0, 0.0, np.inf], [np.nan, 99.0, 99.0, 99.0], [5.0, 5.0, 0.0, -np.inf]]
    assert reference_point(costs).tolist() == [11.0, 5.5, 1.0, -18.0]


@pytest.mark.parametrize("cost", [0.0, -3.0, 1e300, 5e-324])
def test_the_reference_is_worse_than_any_finite_row(cost):
    costs = np.array([[cost], [np.nextafter(cost, np.inf)]])
    assert (costs < reference_point(costs)).all()


@pytest.mark.parametrize("costs", [np.empty((0, 2)), [[1.0, np.inf]], [[1.0, 2.0], [1.0, np.nan]][1:]])
def test_without_a_finite_cost_there_is_no_reference(costs):
    with pytest.raises(ValueError, match="a finite cost in each column, but got none in"):
        reference_point(costs)
