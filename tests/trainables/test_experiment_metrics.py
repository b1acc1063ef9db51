import math

import pytest

from trainables.experiment import DivergedError, Metric, check_declared, check_finite, metric_named


def metric(name, goal=None):
    return Metric(name=name, goal=goal, unit="1", meaning="a number")


LOSS, FAMILY, PLAIN = metric("loss_nats", "min"), metric("loss_nats/*"), metric("size/of/all", "min")
METRICS = (LOSS, FAMILY, PLAIN)


@pytest.mark.parametrize(
    ("name", "declared"),
    [
        ("loss_nats", LOSS),
        ("loss_nats/python", FAMILY),
        ("loss_nats/a/b", FAMILY),
        ("size/of/all", PLAIN),
        ("size/of", None),
        ("size", None),
        ("loss", None),
        ("loss_nats_2", None),
        ("", None),
    ],
)
def test_a_reported_name_is_declared_by_itself_or_by_its_family(name, declared):
    assert metric_named(METRICS, name) is declared


def test_a_name_may_be_declared_beside_a_family_that_would_have_it():
    own = metric("loss_nats/python", "min")
    assert metric_named((own, FAMILY), "loss_nats/python") is own
    assert metric_named((own, FAMILY), "loss_nats/prose") is FAMILY


@pytest.mark.parametrize("others", [["loss_nats/python"], ["loss_nats/python", "loss_nats/prose"]])
def test_a_report_has_every_metric_and_of_a_family_one_or_more(others):
    check_declared(["loss_nats", "size/of/all", *others], METRICS, where="step 1")


@pytest.mark.parametrize(
    ("names", "missing", "undeclared"),
    [
        (["loss_nats", "size/of/all"], ["loss_nats/*"], []),
        (["loss_nats/a", "size/of/all"], ["loss_nats"], []),
        ([], ["loss_nats", "loss_nats/*", "size/of/all"], []),
        (["loss_nats", "loss_nats/a", "size/of/all", "size/other", "extra"], [], ["extra", "size/other"]),
        (["loss_nats", "loss_nats/a", "size"], ["size/of/all"], ["size"]),
    ],
)
def test_a_report_with_other_names_is_refused_by_all_of_them(names, missing, undeclared):
    with pytest.raises(ValueError, match="step 3 must have exactly METRICS") as told:
        check_declared(names, METRICS, where="step 3")
    assert f"missing are {missing} and undeclared {undeclared}; declare a Metric for each" in str(told.value)


def test_numbers_that_are_not_finite_are_all_named():
    check_finite({"a": 1e300, "b": -0.0}, where="step 1")
    with pytest.raises(DivergedError, match="step 2 reported b = nan, c = -inf, d = inf; lower the learning rate"):
        check_finite({"a": 1.0, "b": math.nan, "c": -math.inf, "d": math.inf}, where="step 2")
