"""A search of some of the ways to a narrow classifier."""

import optuna
import pytest

from search_spaces import mnist_narrowing


def test_only_the_named_ways_are_drawn_and_come_first():
    space = mnist_narrowing.cpu(ways="random, distillation")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = {space.suggest(study.ask())["method"] for _ in range(20)}
    assert drawn == {trial["method"] for trial in space.first_trials} == {"random", "distillation"}


def test_all_six_are_searched_by_default():
    assert {trial["method"] for trial in mnist_narrowing.cpu().first_trials} == set(mnist_narrowing._OWN)


@pytest.mark.parametrize("ways", ["lasso", "random,random", ""])
def test_ways_must_be_known_and_differ(ways):
    with pytest.raises(ValueError, match=r"ways must be some of group_lasso, .*, but got .*; name each once, with commas"):
        mnist_narrowing.cpu(ways=ways)
