"""A study may end when its front has stopped growing, and no sooner."""

import numpy as np

from study.running.flatness import LEAST_TRIALS, Flatness

GOALS = {"loss": "min", "accuracy": "max"}


def fed(values):
    flatness = Flatness(GOALS)
    for value in values:
        flatness.add(value)
    return flatness


def test_a_front_that_grows_is_not_flat():
    growing = [(1.0 / step, 0.1 * step) for step in range(1, 40)]
    assert not fed(growing).is_flat


def test_a_front_is_flat_when_its_last_third_adds_nothing():
    start = [(1.0 / step, 0.01 * step) for step in range(1, 20)]
    assert not fed(start + [(2.0, 0.05)] * (LEAST_TRIALS - 1)).is_flat
    assert fed(start + [(2.0, 0.05)] * LEAST_TRIALS).is_flat
    assert not fed([*start, *[(2.0, 0.05)] * LEAST_TRIALS, (0.01, 0.9)]).is_flat


def test_few_trials_are_never_flat():
    assert not fed([(1.0, 0.5)] * (2 * LEAST_TRIALS - 1)).is_flat
    assert fed([(1.0, 0.5)] * (2 * LEAST_TRIALS)).is_flat


def test_trials_without_a_place_on_a_front_count_as_trials_that_add_nothing():
    assert not fed([None] * 50).is_flat
    assert not fed([*[None] * 50, (1.0, 0.5)]).is_flat
    assert fed([(1.0, 0.5), *[None] * 50]).is_flat


def test_more_objectives_do_not_tire_it():
    draws = np.random.default_rng(0).random((400, 3))
    flatness = Flatness({"a": "min", "b": "min", "c": "max"})
    for draw in draws:
        flatness.add(draw)
    assert flatness.is_flat
