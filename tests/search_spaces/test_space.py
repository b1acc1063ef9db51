"""Which of a trial's candidates stands for it."""

import pytest

from search_spaces.space import Constraint, choose_representative

CONSTRAINTS = [Constraint.parse("accuracy >= 0.9"), Constraint.parse("size <= 100")]


def curve(*points):
    return {number: {"accuracy": accuracy, "size": size} for number, (accuracy, size) in enumerate(points)}


@pytest.mark.parametrize(("metric", "goal", "chosen"), [("size", "min", 2), ("size", "max", 0), ("accuracy", "max", 1)])
def test_the_best_of_those_that_meet_the_constraints(metric, goal, chosen):
    candidates = curve((0.95, 100.0), (0.99, 60.0), (0.9, 50.0), (0.5, 10.0), (1.0, 101.0))
    assert choose_representative(candidates, CONSTRAINTS, metric, goal) == chosen


def test_where_none_meets_them_the_one_that_misses_least_in_all():
    assert choose_representative(curve((0.5, 10.0), (0.8, 90.0), (0.85, 101.0)), CONSTRAINTS, "size", "min") == 1


def test_of_those_that_miss_as_much_the_best_by_the_metric_and_of_equals_the_first():
    assert choose_representative(curve((0.5, 30.0), (0.5, 20.0), (0.5, 20.0)), CONSTRAINTS, "size", "min") == 1


def test_without_constraints_the_best_by_the_metric():
    assert choose_representative(curve((0.5, 30.0), (0.4, 20.0)), [], "accuracy", "max") == 0


def test_a_constraint_may_bound_one_of_a_family_of_metrics():
    constraint = Constraint.parse("loss_nats/C-like.x <= 3")
    assert constraint.metric == "loss_nats/C-like.x"
    assert constraint.violation({"loss_nats/C-like.x": 4.0}) == 1.0


@pytest.mark.parametrize("bound", ["nan", "inf", "-inf"])
def test_the_bound_of_a_constraint_must_be_finite(bound):
    with pytest.raises(ValueError, match="the number finite, but got"):
        Constraint.parse(f"size <= {bound}")
