"""Which models are compared, which are on the front, and what is told of the others."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_trials import candidate, record, trials_of

from search_spaces.space import Constraint
from study.asking.models import ModelSource
from study.asking.trials import Trials, table_of
from study.errors import UserError
from study.fronts.front import Objective, make_front, models_of

LOSS, SIZE = Objective(metric="loss", goal="min"), Objective(metric="size", goal="min")
SCORE = Objective(metric="score", goal="max")


def front_of(*records, candidates=(), objectives=(LOSS, SIZE), bounds=(), **options):
    constraints = {"s": [Constraint.parse(text) for text in bounds]}
    return make_front("s", trials_of(*records), trials_of(*candidates), objectives, constraints=constraints, **options)


def at(trial, loss, size, **fields):
    return record(trial, {"loss": loss, "size": size}, **fields)


def labels(rows):
    return [row.label for row in rows]


def test_the_front_is_what_no_other_beats_best_first_objective_first():
    front = front_of(at(0, 3.0, 1.0), at(1, 1.0, 3.0), at(2, 2.0, 2.0), at(3, 3.0, 3.0), at(4, 2.5, 2.0))
    assert labels(front.rows) == ["1", "2", "0"]
    assert labels(front.dominated) == ["4", "3"]
    assert front.left_out == {}
    assert labels(front.compared) == ["1", "2", "0", "4", "3"]


def test_equal_models_are_all_on_the_front():
    front = front_of(at(0, 1.0, 1.0), at(1, 1.0, 1.0), at(2, 1.0, 2.0), at(3, 1.0, 1.0))
    assert labels(front.rows) == ["0", "1", "3"]


def test_an_objective_that_is_maximised_turns_round():
    front = front_of(record(0, {"score": 1.0}), record(1, {"score": 2.0}), record(2, {"score": -1.0}), objectives=(SCORE,))
    assert labels(front.rows) == ["1"]
    assert front.costs(front.rows).tolist() == [[-2.0]]


def test_what_has_not_finished_is_left_out_by_its_state():
    states = ("failed", "stopped", "running", "interrupted", "running")
    front = front_of(at(9, 5.0, 5.0), *(at(number, 1.0, 1.0, state=state) for number, state in enumerate(states)))
    assert labels(front.rows) == ["9"]
    assert front.left_out == {"failed": 1, "interrupted": 1, "running": 2, "stopped early": 1}


def test_a_trial_that_was_stopped_by_its_runner_before_all_was_done_is_incomplete():
    front = front_of(record(0, {"loss": 0.0, "size": 0.0, "progress": 0.9}), at(1, 1.0, 1.0))
    assert labels(front.rows) == ["1"]
    assert front.left_out == {"incomplete": 1}


def test_progress_means_nothing_where_somebody_else_logged_it():
    source = {"s": ModelSource("sqlite:///m.db", "1", None)}
    trials = Trials(table_of([record(0, {"loss": 0.0, "size": 0.0, "progress": 0.9})]), source)
    assert labels(make_front("s", trials, trials_of(), (LOSS, SIZE), constraints={}).rows) == ["0"]


def test_a_model_without_an_objective_or_with_a_nan_is_left_out_and_infinity_is_a_number():
    front = front_of(
        record(0, {"loss": 1.0}), record(1, {"size": 1.0}), record(2), at(3, math.nan, 1.0), at(4, math.inf, 0.5),
        at(5, -math.inf, 9.0), at(6, 1.0, 1.0), at(7, math.inf, math.inf), at(8, 1.0, math.nan),
    )  # fmt: skip
    assert labels(front.rows) == ["5", "6", "4"]
    assert labels(front.dominated) == ["7"]
    assert front.left_out == {"without loss": 2, "without size": 1, "NaN in loss": 1, "NaN in size": 1}


def test_a_model_that_breaks_a_constraint_or_lacks_its_metric_is_infeasible():
    rows = [record(n, {"loss": 1.0, "size": 1.0} | share) for n, share in enumerate([{"share": 0.4}, {"share": 0.5}, {}])]
    front = front_of(*rows, record(3, {"loss": 1.0, "size": 1.0, "share": math.nan}), bounds=["share >= 0.5", "size <= 2"])
    assert labels(front.rows) == ["1"]
    assert labels(front.infeasible) == ["0", "2", "3"]
    assert front.left_out == {"infeasible": 3}


def test_constraints_bind_the_models_of_their_study_alone():
    records = [at(0, 1.0, 5.0, study="a"), at(0, 1.0, 5.0, study="b")]
    constraints = {"a": [Constraint.parse("size <= 3")], "b": []}
    front = make_front("a+b", trials_of(*records, is_merged=True), trials_of(), (LOSS,), constraints=constraints)
    assert labels(front.rows) == ["b/0"]
    assert labels(front.infeasible) == ["a/0"]


def test_what_was_not_asked_for_is_counted_as_that_whatever_else_it_lacks():
    front = front_of(
        at(0, 1.0, 1.0),
        at(1, math.nan, 1.0),
        at(2, 9.0, 9.0),
        where=lambda models: models.metric("size") > 5,
        bounds=["loss <= 9"],
    )
    assert labels(front.rows) == ["2"]
    assert front.left_out == {"not asked for": 2}


def test_a_trial_with_candidates_stands_by_these_alone():
    made = [candidate(1, 0, {"loss": 2.0, "size": 0.5}), candidate(1, 1, {"loss": 5.0, "size": 5.0})]
    front = front_of(at(0, 3.0, 3.0), at(1, 0.0, 0.0), at(2, 1.0, 1.0), candidates=made)
    assert labels(front.rows) == ["2", "1.0"]
    assert labels(front.dominated) == ["0", "1.1"]
    assert front.has_candidates and not front_of(at(0, 1.0, 1.0)).has_candidates
    assert front.to_json()["front"][1]["candidate"] == 0


def test_candidates_of_a_trial_that_has_not_finished_are_not_compared():
    front = front_of(at(0, 3.0, 3.0), at(1, 0.0, 0.0, state="running"), candidates=[candidate(1, 0, {"loss": 0.0, "size": 0.0})])
    assert labels(front.rows) == ["0"]
    assert front.left_out == {"running": 1}


def test_models_stand_in_the_place_of_their_trial_by_number():
    trials = trials_of(record(0, params={"p": 0}), record(1, {"loss": 9.0}, params={"p": 1}), record(2))
    made = trials_of(candidate(1, 2, {"loss": 1.0}), candidate(2, 0, {}), candidate(7, 0, {}), candidate(1, 0, {"loss": 3.0}))
    models = models_of(trials, made)
    assert labels(models) == ["0", "1.0", "1.2", "2.0"]
    assert [row.metrics for row in models] == [{"progress": 1.0}, {"loss": 3.0}, {"loss": 1.0}, {}]
    assert [row.params for row in models][:3] == [{"p": 0}, {"p": 1}, {"p": 1}]
    assert [row.run_id for row in models][1:3] == ["run-s-1", "run-s-1"]


def test_candidates_are_those_of_their_own_study():
    trials = trials_of(record(0, study="a"), record(0, study="b"), is_merged=True)
    assert labels(models_of(trials, trials_of(candidate(0, 0, {}, study="b")))) == ["a/0", "b/0.0"]


def test_of_no_trials_there_is_no_front_no_knee_and_no_volume():
    front = front_of()
    assert (len(front.rows), front.knee, front.hypervolume(), front.reference) == (0, None, 0.0, {})
    assert front.hypervolume_over_time() == ([], [])
    assert front.beaten_by([]) == []


def test_the_knee_is_a_row_of_the_front():
    front = front_of(at(0, 0.0, 10.0), at(1, 1.0, 1.0), at(2, 10.0, 0.0), at(3, 11.0, 11.0))
    assert front.knee is not None and front.knee.label == "1"


def test_the_volume_is_measured_from_the_corner_that_is_given():
    front = front_of(at(0, 1.0, 2.0), at(1, 2.0, 1.0))
    assert front.hypervolume({"loss": 3.0, "size": 3.0}) == pytest.approx(3.0)
    turned = front_of(record(0, {"score": 3.0}), objectives=(SCORE,))
    assert turned.hypervolume({"score": 1.0}) == pytest.approx(2.0)


@pytest.mark.parametrize("reference", [{"loss": 1.0}, {"loss": 1.0, "size": 1.0, "more": 1.0}, {}])
def test_a_corner_must_have_a_value_for_each_objective(reference):
    with pytest.raises(UserError, match=r"a value for each objective \(loss, size\), but got .*; name all"):
        front_of(at(0, 1.0, 2.0)).hypervolume(reference)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_corner_must_be_finite(value):
    with pytest.raises(UserError, match="a reference must have finite values, but got"):
        front_of(at(0, 1.0, 2.0)).hypervolume({"loss": 3.0, "size": value})


def test_the_volume_grows_as_trials_end():
    front = front_of(at(2, 1.0, 1.0, end_ms=30), at(0, 2.0, 2.0, end_ms=10), at(1, 3.0, 3.0, end_ms=20))
    times, volumes = front.hypervolume_over_time({"loss": 4.0, "size": 4.0})
    assert times == [10, 20, 30]
    assert volumes == pytest.approx([4.0, 4.0, 9.0])


def test_who_beats_whom_and_by_how_much():
    front = front_of(at(0, 0.0, 10.0), at(1, 10.0, 0.0), at(2, 4.0, 4.0), at(3, 5.0, 6.0))
    found = front.beaten_by(front.dominated)
    assert [(by.label, gap) for by, gap in found] == [("2", {"loss": 1.0, "size": 2.0})]
    assert front.beaten_by(front.rows) == [None, None, None]


def test_what_is_better_than_the_front_is_not_beaten_and_beats_no_other():
    front = front_of(at(0, 5.0, 5.0), at(1, 1.0, 1.0), at(2, 2.0, 2.0), at(3, 6.0, 6.0), bounds=["loss >= 4"])
    assert labels(front.infeasible) == ["1", "2"]
    found = front.beaten_by([*front.infeasible, *front.dominated])
    assert found[:2] == [None, None]
    assert (found[2][0].label, found[2][1]) == ("0", {"loss": 1.0, "size": 1.0})


def test_nobody_beats_a_model_without_an_objective():
    front = front_of(at(0, 1.0, 1.0), record(1, {"loss": 5.0}))
    assert front.beaten_by([trials_of(record(1, {"loss": 5.0}))[0]]) == [None]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12))
def test_every_dominated_model_is_beaten_by_one_of_the_front(values):
    front = front_of(*(at(number, float(loss), float(size)) for number, (loss, size) in enumerate(values)))
    assert len(front.rows) + len(front.dominated) == len(values)
    for row, answer in zip(front.dominated, front.beaten_by(front.dominated), strict=True):
        by, gap = answer
        assert by.label in labels(front.rows)
        assert gap == {name: row.metrics[name] - by.metrics[name] for name in ("loss", "size")}
        assert min(gap.values()) >= 0 < max(gap.values())


def test_an_objective_is_read_with_its_goal_or_known():
    known = [Objective(metric="loss", goal="min", unit="nats")]
    assert Objective.parse("loss", known) == known[0]
    assert Objective.parse("loss:max", known) == Objective(metric="loss", goal="max", unit="nats")
    assert Objective.parse("loss/a:b:min") == Objective(metric="loss/a:b", goal="min")


@pytest.mark.parametrize("text", ["loss", "loss:least", ":min", "", "loss:MIN"])
def test_an_objective_without_a_metric_or_goal_is_refused(text):
    with pytest.raises(UserError, match="metric:min or metric:max, but got"):
        Objective.parse(text, [SIZE])


def test_a_front_as_json_has_its_rows_knee_volume_and_counts():
    fields = front_of(at(0, 1.0, 2.0, params={"p": 1}), record(1)).to_json()
    assert fields["front"] == [
        {"label": "0", "study": "s", "trial": 0, "candidate": None, "params": {"p": 1}, "values": {"loss": 1.0, "size": 2.0},
         "run_id": "run-s-0"}
    ]  # fmt: skip
    assert (fields["knee"], fields["num_dominated"], fields["left_out"]) == ("0", 0, {"without loss": 1})
    assert fields["hypervolume"] == pytest.approx(np.prod([fields["reference"]["loss"] - 1.0, fields["reference"]["size"] - 2.0]))
