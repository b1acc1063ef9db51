import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from study.fronts.knee import knee
from study.fronts.pareto import non_dominated
from study.fronts.seed_bands import bootstrap_means


def random_costs(seed):
    """1 to 4 objectives; every other set has many ties."""
    random = np.random.default_rng(seed)
    shape = random.integers(1, 40), 1 + seed % 4
    return random.integers(0, 7, shape).astype(float) if seed % 2 else random.exponential(size=shape)


def test_the_knee_is_farthest_from_the_chord_between_the_ends():
    costs = np.array([[0.0, 10.0], [1.0, 4.0], [2.0, 1.0], [6.0, 0.5], [10.0, 0.0], [9.0, 9.0]])
    chord = (costs[4] - costs[0]) / 10
    distances = np.abs(chord[0] * (costs[:5, 1] - 10) - chord[1] * costs[:5, 0])
    assert knee(costs) == distances.argmax() == 2


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.floats(1e-3, 1e3), min_size=4), st.lists(st.floats(-1e3, 1e3), min_size=4))
def test_no_unit_no_shift_and_no_order_of_rows_moves_the_knee(seed, factors, shifts):
    costs = random_costs(seed)
    num_columns = costs.shape[1]
    moved = costs * factors[:num_columns] + shifts[:num_columns]
    order = np.random.default_rng(seed).permutation(len(costs))
    chosen = costs[knee(costs)]
    assert (costs[knee(moved)] == chosen).all()
    assert (costs[order][knee(moved[order])] == chosen).all()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-6, 1e6))
def test_no_unit_of_a_logarithmic_axis_moves_the_knee(seed, factor):
    costs = 1 + random_costs(seed)
    assert (costs[knee(costs * factor, log_columns=range(costs.shape[1]))] == costs[knee(costs, range(costs.shape[1]))]).all()


def test_dominated_rows_do_not_move_the_knee():
    costs = random_costs(2)
    assert knee(np.vstack([costs, costs + 1e6, np.full((1, costs.shape[1]), np.nan)])) == knee(costs)


def test_of_a_straight_front_the_middle_is_the_knee():
    assert knee([[0.0, 0.4], [0.1, 0.3], [0.2, 0.2], [0.3, 0.1], [0.4, 0.0]]) == 2


def test_of_equal_knees_the_first_row_is_named():
    assert knee([[9.0, 9.0], [1.0, 2.0], [1.0, 2.0]]) == 1


def test_a_logarithmic_axis_has_another_knee_unless_a_cost_is_not_positive():
    costs = np.array([[1.0, 1.0], [10.0, 0.5], [100.0, 0.3], [1000.0, 0.0]])
    assert (knee(costs), knee(costs, log_columns=(0,))) == (2, 1)
    assert knee(costs - [1.0, 0.0], log_columns=(0,)) == 2


def test_a_column_of_equal_costs_does_not_count():
    costs = np.array([[0.0, 10.0], [2.0, 1.0], [10.0, 0.0]])
    assert knee(np.insert(costs, 1, 5.0, axis=1)) == knee(costs) == 1


def test_infinite_costs_are_asked_only_where_there_are_no_others():
    assert knee([[-np.inf, 5.0], [3.0, 3.0], [4.0, 2.0]]) == 1
    assert knee([[-np.inf, 5.0, 1.0], [np.inf, 3.0, 1.0], [np.inf, 3.0, 2.0]]) == 0
    assert knee([[np.inf, np.inf]]) == 0


def test_costs_at_the_end_of_what_floats_hold_have_a_knee():
    assert knee([[-1.7e308, 1.7e308], [-1e308, -1e308], [1.7e308, -1.7e308]]) == 1


@pytest.mark.parametrize("costs", [np.empty((0, 2)), [[np.nan, 1.0], [1.0, np.nan]]])
def test_without_a_comparable_row_there_is_no_knee(costs):
    assert knee(costs) is None


@pytest.mark.parametrize("columns", [(2,), (-1,)])
def test_a_logarithmic_column_must_exist(columns):
    with pytest.raises(ValueError, match="log_columns must be among the 2 columns"):
        knee([[1.0, 2.0]], columns)


def bands(values, seed=0, **options):
    return bootstrap_means(values, generator=np.random.default_rng(seed), **({"num_resamples": 400} | options))


def test_a_band_is_about_the_mean_and_as_wide_as_its_standard_error_says():
    seeds = np.random.default_rng(0).normal(size=(100, 2)) * [1.0, 10.0]
    found = bands([seeds, seeds[:25] + 5], num_resamples=2000)
    assert (found.mean == [seeds.mean(axis=0), (seeds[:25] + 5).mean(axis=0)]).all()
    expected = 2 * 1.96 * np.stack([seeds.std(axis=0) / 10, seeds[:25].std(axis=0) / 5])
    assert np.diff(found.interval, axis=1)[:, 0] == pytest.approx(expected, rel=0.1)
    assert ((found.interval[:, 0] < found.mean) & (found.mean < found.interval[:, 1])).all()


def test_the_share_on_the_front_tells_sure_from_unsure():
    spread = np.linspace(-1, 1, 5)[:, None]
    sure, beaten, unsure = [[0.0, 0.0]] * 5, [[9.0, 9.0]] * 5, np.hstack([spread, np.full((5, 1), 5.0)])
    share = bands([sure, beaten, unsure]).front_share
    assert share[:2].tolist() == [1, 0] and 0.2 < share[2] < 0.8


def test_configs_have_seeds_of_their_own_number_and_one_seed_has_no_interval():
    found = bands([[[1.0, 4.0]], [[2.0, 2.0], [2.0, 3.0]]], reference=[5.0, 5.0])
    assert np.isnan(found.interval[0]).all() and np.isfinite(found.interval[1]).all()
    assert found.front_share.tolist() == [1, 1]
    assert found.hypervolume_interval.tolist() == [4 + 6 - 3, 4 + 9 - 3] and found.hypervolume_median == 4 + 7.5 - 3


def test_of_single_seeds_the_hypervolume_has_no_interval():
    found = bands([[[1.0, 4.0]], [[2.0, 2.0]]], reference=[5.0, 5.0])
    assert found.hypervolume_median == 4 + 9 - 3 and np.isnan(found.hypervolume_interval).all()


def test_a_seed_with_nan_or_infinity_spoils_its_own_config_only():
    found = bands([[[np.nan], [0.0]], [[np.inf], [1.0]], [[2.0], [3.0]]])
    assert np.isnan(found.mean[0, 0]) and found.front_share[0] == 0
    assert found.interval[1].tolist() == [[1.0], [np.inf]]
    assert np.isfinite(found.interval[2]).all()


def test_the_same_generator_gives_the_same_bands_however_many_are_drawn_at_once(monkeypatch):
    values = [np.random.default_rng(1).random((n, 2)) for n in (1, 2, 5)]
    found = bands(values, reference=[1.0, 1.0])
    monkeypatch.setattr("study.fronts.seed_bands._DRAWS_AT_ONCE", 20)
    for one, other in zip(found, bands(values, reference=[1.0, 1.0]), strict=True):
        assert np.array_equal(one, other, equal_nan=True)


@pytest.mark.parametrize(
    ("values", "options", "law"),
    [
        ([], {}, "there must be a config"),
        ([np.empty((0, 2))], {}, "each with a seed"),
        ([[[1.0]], [[1.0, 2.0]]], {}, "as many objectives"),
        ([[[1.0]]], {"num_resamples": 0}, "num_resamples must be at least 1, but got 0"),
        ([[[1.0]]], {"level": 1.0}, "level must lie between 0 and 1, but got 1.0"),
        ([[[1.0]]], {"reference": [1.0, 2.0]}, "a reference point must have"),
    ],
)
def test_what_cannot_be_resampled_is_refused(values, options, law):
    with pytest.raises(ValueError, match=law):
        bands(values, **options)


def test_of_seeds_without_spread_the_share_is_the_front_of_the_means():
    values = [np.full((3, 2), n) for n in range(4)]
    found = bands(values)
    assert (found.front_share == non_dominated(found.mean)).all()
