"""Early stopping: who is better at a rung, against plain oracles; who is stopped there, and who never is."""

import itertools
import math

import numpy as np
import pytest

from search_spaces.space import Constraint
from study.errors import UserError
from study.fronts.hypervolume import hypervolume, reference_point
from study.running.rungs import STOPPERS, Rungs, StopRule
from study.running.rungs_order import Order, lost_without

GOALS = {"loss": "min", "accuracy": "max"}
HALF = StopRule.parse("moasha:reduction=2,rungs=0.5")


def is_better(rows, violations, a, b):
    """The plain words: a violates less, or as much and dominates."""
    if violations[a] != violations[b]:
        return violations[a] < violations[b]
    return bool((rows[a] <= rows[b]).all() and (rows[a] < rows[b]).any())


def peeled(rows, violations):
    """Fronts, one after another, by comparing all with all; rows of other violation are never of one front."""
    front_of, left, front = [0] * len(rows), set(range(len(rows))), 0
    while left:
        best = {a for a in left if not any(is_better(rows, violations, b, a) for b in left)}
        for a in best:
            front_of[a] = front
        left, front = left - best, front + 1
    return front_of


@pytest.mark.parametrize("num_columns", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(6))
def test_fronts_that_grow_row_by_row_are_those_of_a_plain_peeling(num_columns, seed):
    random = np.random.default_rng(seed)
    rows = random.integers(0, 6, (40, num_columns)).astype(float)
    violations = random.choice([0.0, 0.0, 0.5, 1.0], 40)
    order = Order(num_columns)
    for count, (row, violation) in enumerate(zip(rows, violations, strict=True), start=1):
        order.add(row, violation)
        if count % 10 == 0:
            assert order.fronts.tolist() == peeled(rows[:count], violations[:count])


@pytest.mark.parametrize("num_columns", [2, 3])
def test_what_a_front_loses_without_a_row_is_the_volume_that_it_alone_dominates(num_columns):
    random = np.random.default_rng(num_columns)
    rows = random.random((12, num_columns))
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    front = 2.0 - rows  # on a sphere about its worst corner: none dominates another
    losses, reference = lost_without(front), reference_point(front)
    whole = hypervolume(front, reference)
    for index, loss in enumerate(losses):
        if math.isinf(loss):
            assert (front[index] == front.min(axis=0)).any()
        else:
            assert loss == pytest.approx(whole - hypervolume(np.delete(front, index, axis=0), reference), abs=1e-12)
    assert np.isinf(losses).sum() >= num_columns


def test_equal_rows_share_what_they_are_worth():
    front = np.array([[0.0, 3.0], [1.0, 1.0], [1.0, 1.0], [3.0, 0.0]])
    assert lost_without(front).tolist() == [math.inf, 4.0, 4.0, math.inf]


def shown(loss, accuracy=0.5):
    return {"loss": loss, "accuracy": accuracy}


def test_the_better_half_goes_on_and_who_is_dominated_stops_with_the_reason():
    rungs = Rungs(HALF, GOALS)
    assert rungs.judge(0, 0.4, shown(1.0)) is None  # not there yet
    assert rungs.judge(0, 0.5, shown(0.2, 0.9)) is None
    stop = rungs.judge(1, 0.6, shown(0.9, 0.1))
    assert (stop.rung, stop.level, stop.rank, stop.num_there) == (0, 0.5, 2, 2)
    assert stop.values == {"loss": 0.9, "accuracy": 0.1}
    assert stop.why == "at 0.5 of its way it was number 2 of 2 trials, and the best 1 go on (loss = 0.9, accuracy = 0.1)"
    assert rungs.judge(2, 0.5, shown(0.1, 0.1)) is None  # the best of all in one column


def test_infeasible_trials_stop_first_and_those_that_violate_more_before_those_that_violate_less():
    rungs = Rungs(HALF, GOALS, [Constraint.parse("accuracy >= 0.4")])
    assert rungs.judge(0, 0.5, shown(0.9, 0.4)) is None
    assert rungs.judge(1, 0.5, shown(0.1, 0.3)).values == {"loss": 0.1, "accuracy": 0.3}
    rungs.judge(2, 0.5, shown(0.9, 0.2))
    assert rungs.judge(3, 0.5, shown(0.9, 0.35)) is None  # the second of four


def test_a_measurement_that_is_heard_again_changes_nothing():
    rungs = Rungs(HALF, GOALS)
    answers = [rungs.judge(trial, 0.5, shown(loss)) for trial, loss in enumerate((0.5, 0.9, 0.1, 0.8))]
    again = [rungs.judge(trial, 0.5, shown(loss)) for trial, loss in enumerate((0.5, 0.9, 0.1, 0.8))]
    assert again == answers
    assert [answer is not None for answer in answers] == [False, True, False, True]
    assert rungs.judge(4, 0.5, shown(0.95)).num_there == 5


def test_a_trial_at_its_end_is_compared_with_and_never_stopped():
    rungs = Rungs(StopRule.parse("moasha:reduction=2,rungs=0.2/0.5"), GOALS)
    for trial in range(4):
        assert rungs.judge(trial, 1.0, shown(0.1, 0.9)) is None
    assert rungs.judge(4, 1.0, shown(0.9, 0.1)) is None
    assert rungs.judge(5, 0.2, shown(0.9, 0.1)).num_there == 6


def test_of_rungs_that_are_reached_at_once_the_highest_decides():
    rungs = Rungs(StopRule.parse("moasha:reduction=2,rungs=0.2/0.5"), GOALS)
    for trial in range(3):
        rungs.judge(trial, 0.2, shown(0.1, 0.9))
    assert rungs.judge(3, 0.6, shown(0.9, 0.1)) is None  # nobody has been at the second rung
    assert rungs.judge(4, 0.6, shown(0.95, 0.1)).rung == 1


def test_what_is_remembered_is_as_if_it_had_been_heard_in_any_order():
    values = {trial: shown(loss, 0.5) for trial, loss in enumerate((0.3, 0.7, 0.2, 0.6, 0.9, 0.1))}
    verdicts = []
    for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 17):
        rungs = Rungs(HALF, GOALS)
        for trial in order:
            rungs.remember(trial, 0.5, values[trial])
        verdicts.append((rungs.judge(5, 0.5, values[5]), rungs.judge(6, 0.5, shown(0.65))))
    assert all(verdict == verdicts[0] for verdict in verdicts)
    best, behind = verdicts[0]
    assert best is None
    assert (behind.rank, behind.num_there) == (5, 7)


def test_what_is_not_finite_is_not_taken_in():
    rungs = Rungs(HALF, GOALS)
    assert rungs.judge(0, 0.5, shown(math.nan)) is None
    assert rungs.judge(1, 0.5, shown(0.5)) is None
    assert rungs.judge(2, 0.5, shown(0.6)).num_there == 2


def test_with_one_objective_asha_is_the_textbooks():
    random = np.random.default_rng(0)
    losses, rule = random.random(60), StopRule.parse("asha:reduction=3,first=0.1")
    rungs = Rungs(rule, {"loss": "min"})
    for count, loss in enumerate(losses, start=1):
        stop = rungs.judge(count, 0.1, {"loss": loss})
        rank = int((losses[:count] < loss).sum()) + 1
        assert (stop is None) == (rank <= math.ceil(count / 3) or count == 1)


def test_the_median_rule_stops_who_is_worse_than_the_others_median():
    rungs = Rungs(StopRule.parse("median:rungs=0.5,num_before=3"), {"accuracy": "max"})
    heard = [rungs.judge(trial, 0.5, {"accuracy": value}) for trial, value in enumerate((0.1, 0.2, 0.3, 0.19, 0.25))]
    assert [stop is not None for stop in heard] == [False, False, False, True, False]


def test_without_a_rule_nobody_is_ever_stopped():
    rungs = Rungs(StopRule(), GOALS)
    assert all(rungs.judge(trial, 0.5, shown(trial)) is None for trial in range(20))


@pytest.mark.parametrize("name", STOPPERS)
def test_a_rule_reads_as_it_is_written(name):
    assert str(StopRule.parse(name)) == name
    text = f"{name}:reduction=5.0,first=0.03"
    assert StopRule.parse(str(StopRule.parse(text))) == StopRule.parse(text)
    assert StopRule(**StopRule.parse(text).to_json()) == StopRule.parse(text)


def test_rungs_are_where_the_rule_says():
    assert StopRule.parse("moasha:reduction=3,first=0.1").levels == (0.1, 0.3, 0.9)
    assert StopRule.parse("moasha").levels == (0.15, 0.6)
    assert StopRule.parse("moasha:rungs=0.2/0.7").levels == (0.2, 0.7)
    assert StopRule.parse("none").levels == ()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("halving", "early stopping must be one of"),
        ("moasha:reduction=1", "reduction must be finite and at least 1.1, but got 1"),
        ("moasha:first=1", r"first must be in \(0, 1\), but got 1"),
        ("moasha:rungs=0.5/0.2", r"rungs must rise within \(0, 1\), but got 0.5/0.2"),
        ("moasha:num_before=0", "num_before must be at least 1, but got 0"),
        ("moasha:speed=3", "early stopping must read like"),
        ("moasha:first=soon", "early stopping must read like"),
    ],
)
def test_a_rule_that_is_none_is_refused_with_the_remedy(text, told):
    with pytest.raises(UserError, match=told):
        StopRule.parse(text)


@pytest.mark.parametrize("name", ["asha", "median"])
def test_rules_for_one_objective_refuse_several(name):
    with pytest.raises(UserError, match="use moasha"):
        Rungs(StopRule.parse(name), GOALS)


def test_recorded_curves_of_cmsp_need_less_than_half_the_updates_with_stopping(monkeypatch):
    monkeypatch.syspath_prepend("tests/benchmarks")
    import search_quality

    table, needed = search_quality.Table("cmsp"), {}
    for text in ("none", "moasha"):
        replays = [
            search_quality.replay(table, search_quality.InRandomOrder(table, seed), StopRule.parse(text)) for seed in range(5)
        ]
        needed[text] = np.median([one.updates_until(table, search_quality.ENOUGH) for one in replays])
    assert needed["moasha"] < 0.5 * needed["none"]
