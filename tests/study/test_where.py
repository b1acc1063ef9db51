"""Filters: what MLflow's own mean, what ours mean beyond them, and what is told of those that mean nothing."""

import math
import operator
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_runs import MadeStudy, foreign_run
from made_trials import candidate, record, trials_of

from study.asking.query import open_study
from study.asking.several import open_studies
from study.asking.where import _pattern, read_where
from study.errors import UserError
from study.fronts.front import models_of
from study.recording.tracking import connect

MODELS = trials_of(
    record(0, {"loss": 1.0, "other": 2.0, "loss/a-b": 5.0}, params={"width": 32, "way": "lasso", "share": 0.5, "deep": True}),
    record(1, {"loss": 3.0, "other": 2.0, "odd name": 1.0}, params={"width": 128, "way": "Random", "share": "auto"}),
    record(2, {"loss": math.nan, "other": 0.0}, params={"width": 64, "way": "it's"}, state="failed", end_ms=None),
    record(3, {"loss": math.inf}, params={"way": "lasso_2"}, status="FINISHED"),
)


def numbers(text, models=MODELS):
    return np.array(models.column("trial"))[read_where(text)(models)].tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("metrics.loss < 3", [0]),
        ("metrics.loss <= 3", [0, 1]),
        ("metric.loss >= 3.0", [1, 3]),
        ("metrics.loss > -1e0", [0, 1, 3]),
        ("metrics.loss = 1", [0]),
        ("metrics.loss != 1", [1, 3]),
        ("metrics.other != 2", [2]),
        ("metrics.`odd name` = 1", [1]),
        ('metrics."odd name" = 1', [1]),
        ("metrics.loss/a-b > 4", [0]),
        ("params.way = 'lasso'", [0]),
        ('params.way = "lasso"', [0]),
        ("param.way != 'lasso'", [1, 2, 3]),
        ("parameters.way LIKE 'lasso%'", [0, 3]),
        ("params.way like 'LASSO%'", []),
        ("params.way ILIKE 'LASSO%'", [0, 3]),
        ("params.way LIKE 'lasso__'", [3]),
        ('params.way = "it\'s"', [2]),
        ("params.way IN ('lasso', 'Random')", [0, 1]),
        ("params.way NOT IN ('lasso', 'Random')", [2, 3]),
        ("params.width = '32'", [0]),
        ("params.deep = 'True'", [0]),
        ("params.width IS NULL", [3]),
        ("params.width is not null", [0, 1, 2]),
        ("params.never IS NULL", [0, 1, 2, 3]),
        ("metrics.other IS NULL", [3]),
        ("metrics.loss IS NOT NULL", [0, 1, 2, 3]),
        ("params.width > 32", [1, 2]),
        ("params.width = 32", [0]),
        ("params.share > 0", [0]),
        ("params.deep >= 0", []),
        ("metrics.loss < metrics.other", [0]),
        ("metrics.loss != metrics.other", [0, 1]),
        ("metrics.other < params.width", [0, 1, 2]),
        ("loss < other", [0]),
        ("2 < loss", [1, 3]),
        ("width > 32 AND loss > other", [1]),
        ("way = 'lasso' AND loss < 2", [0]),
        ("way='lasso'AND loss<2", [0]),
        ("attributes.run_id = 'run-s-2'", [2]),
        ("run_id IN ('run-s-2', 'run-s-0')", [0, 2]),
        ("attributes.run_id NOT IN ('run-s-2')", [0, 1, 3]),
        ("attr.start_time >= 2000", [2, 3]),
        ("run.end_time < 2000", [0, 1]),
        ("attributes.status = 'FINISHED'", [3]),
        ("status LIKE 'FIN%'", [3]),
    ],
)
def test_what_a_filter_lets_through(text, expected):
    assert numbers(text) == expected


def test_of_a_candidate_its_own_metrics_count_and_the_parameters_of_its_trial():
    made = [candidate(0, 0, {"loss": 9.0}), candidate(0, 1, {"loss": 2.0})]
    models = models_of(trials_of(record(0, {"loss": 1.0}, params={"width": 3}), record(1, {"loss": 5.0})), trials_of(*made))
    found = read_where("loss < 6 AND params.width IS NOT NULL")(models)
    assert [row.label for row in models.take(found)] == ["0.1"]


def test_of_no_models_nothing_is_asked_for_whatever_the_names():
    assert read_where("anything = 'x' AND tags.team = 'y'")(trials_of()).tolist() == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "'', which ends too soon"),
        ("loss", "'loss', which ends too soon"),
        ("loss <", "ends too soon"),
        ("loss < 3 AND", "ends too soon"),
        ("loss < 3 OR loss > 5", "OR in"),
        ("loss == 3", "= in"),
        ("loss <> 3", "> in"),
        ("loss < 3 loss > 1", "loss in"),
        ("(loss < 3)", r"\( in"),
        ("loss < ; DROP", "; in"),
        ("way IN ()", r"\) in"),
        ("way IN ('a' 'b')", "'b' in"),
        ("way IN (3)", "3 in"),
        ("way LIKE 3", "3 in"),
        ("'lasso' = way", "'lasso' in"),
        ("loss IS 3", "3 in"),
        ("loss NOT 3", "3 in"),
        ("loss < 'it", "'it in"),
        ("loss < 3abc", "3abc in"),
    ],
)
def test_what_is_no_filter_is_refused_at_once_with_the_place_and_an_example(text, told):
    with pytest.raises(UserError, match=rf"comparisons joined by AND, but got .*{told}.*; for example: params.way"):
        read_where(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("metrics.los < 3", r"what a model has \(loss, .*\), but got 'los'; did you mean 'loss'"),
        ("metrics.width < 3", "but got 'width'"),
        ("params.widht > 3", r"\(deep, share, way, width\), but got 'widht'; did you mean 'width'"),
        ("nonsense > 3", r"\(deep, loss, loss/a-b, odd name, .*\), but got 'nonsense'; see"),
        ("loss < metrics.nonsense", "but got 'nonsense'"),
        ("metrics.loss = '3'", "a number must be compared with a number, but got .*; leave the quotes out"),
        ("start_time = 'now'", "leave the quotes out"),
        ("params.way < 'b'", "a text is equal to another or not"),
        ("attributes.run_id = 3", "put it in single quotes"),
        ("attributes.end_time IS NULL", "only metrics, parameters and tags may be NULL"),
        ("tags.team = loss", "name a value"),
        ("tags.team = 'x'", "must be of runs in MLflow"),
    ],
)
def test_what_means_nothing_for_these_models_is_refused_with_what_there_is(text, told):
    with pytest.raises(UserError, match=told):
        read_where(text)(MODELS)


VALUES = st.none() | st.sampled_from([0.0, 1.0, 2.0, math.nan, math.inf])
NUMERIC = st.sampled_from(["metrics.a", "b", "params.p", "q", "1", "2.0"])
RELATIONS = {"=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def naive_value(operand, row):
    """A number, or None where there is none."""
    metrics, params = row
    name = operand.split(".")[-1]
    value = metrics.get(name, params.get(name)) if not operand[0].isdigit() else float(operand)
    return value if isinstance(value, int | float) and not isinstance(value, bool) and value == value else None


def naive(clauses, row):
    for left, relation, right in clauses:
        first, second = naive_value(left, row), naive_value(right, row)
        if first is None or second is None or not RELATIONS[relation](first, second):
            return False
    return True


@given(
    st.lists(st.tuples(VALUES, VALUES, st.sampled_from([None, 1, 2, "x", True]), VALUES), min_size=1, max_size=8),
    st.lists(st.tuples(NUMERIC, st.sampled_from([*RELATIONS]), NUMERIC), min_size=1, max_size=3),
)
def test_numeric_filters_agree_with_a_naive_evaluator(values, clauses):
    rows = [
        (
            {name: value for name, value in (("a", a), ("b", b)) if value is not None},
            {name: value for name, value in (("p", p), ("q", q)) if value is not None and value not in (math.inf,)},
        )
        for a, b, p, q in values
    ]
    anything = ({"a": 1.0, "b": 1.0}, {"p": 1, "q": 1})  # a row that has every name
    records = [record(number, metrics, params=params) for number, (metrics, params) in enumerate([*rows, anything])]
    found = numbers(" AND ".join(map(" ".join, clauses)), trials_of(*records))
    assert found == [number for number, row in enumerate([*rows, anything]) if naive(clauses, row)]


@pytest.fixture(scope="module")
def study(store):
    made = MadeStudy(store, "where")
    runs = [
        made.trial(0, params={"width": 32, "way": "lasso", "deep": True, "share": 0.1}, loss=1.0, other=2.0),
        made.trial(1, params={"width": 128, "way": "Random", "deep": False}, loss=2.0),
        made.trial(2, params={"way": "lasso_2"}, loss=-3.5, other=1.0),
        made.trial(3, "failed", params={"way": "line one\nline two"}),
    ]
    made.client.set_tag(runs[0], "team", "alice")
    made.client.set_tag(runs[2], "team", "it's bob")
    return made


@pytest.mark.parametrize(
    "text",
    [
        "metrics.loss < 2",
        "metrics.loss >= 1 AND metrics.other > 0",
        "metrics.loss != 1.0",
        "metrics.`loss` = -3.5",
        "params.way = 'lasso'",
        "params.way != 'lasso'",
        "params.width = '32'",
        "params.deep = 'True'",
        "params.share = '0.1'",
        "params.way LIKE 'lasso%'",
        "params.way LIKE '%two'",
        "params.way LIKE 'random'",
        "params.way ILIKE 'random'",
        "params.width IS NULL",
        "params.width IS NOT NULL AND metrics.loss > 1",
        "tags.team = 'alice'",
        "tags.team != 'alice'",
        'tags.team = "it\'s bob"',
        "tags.team IS NULL AND metrics.loss > 0",
        "tags.`narrow_study.state` LIKE 'fin%'",
        "attributes.status = 'FINISHED'",
        "status != 'FINISHED'",
        "attributes.run_name = 'where-0001'",
        "run_name ILIKE 'WHERE-000%' AND params.way = 'lasso'",
        "attributes.start_time > 1700000000000",
        "attributes.end_time <= 1",
    ],
)
def test_a_filter_that_mlflow_has_means_what_it_means_there(study, home, text):
    trials = open_study("where", tracking_uri=study.uri, home=home).trials()
    found = {row.run_id for row in trials.take(read_where(text)(trials))}
    asked = study.client.search_runs([study.experiment_id], f"{text} AND tags.`narrow_study.trial` != '-1'")
    assert found == {run.info.run_id for run in asked}


def test_an_edited_tag_counts_at_once(study, home):
    trials = open_study("where", tracking_uri=study.uri, home=home).trials()
    keep = read_where("tags.keep = 'yes'")
    assert not keep(trials).any()
    study.client.set_tag(trials[1].run_id, "keep", "yes")
    assert keep(trials).tolist() == [False, True, False, False]
    study.client.delete_tag(trials[1].run_id, "keep")


def test_a_front_is_of_what_is_asked_for(study, home):
    front = open_study("where", tracking_uri=study.uri, home=home).front(["loss:min"], where="tags.team = 'alice'")
    assert ([row.number for row in front.rows], front.left_out) == ([0], {"failed": 1, "not asked for": 2})


def test_what_mlflow_does_not_take_is_told_in_a_sentence(study, home):
    trials = open_study("where", tracking_uri=study.uri, home=home).trials()
    for text in ("tags.team > 'a'", "attributes.nonsense = 'a'", "run_name = 3"):
        with pytest.raises(UserError, match="one that MLflow takes, but got"):
            read_where(text)(trials)


def test_the_parameters_of_somebody_elses_runs_are_compared_as_they_are_written_there(store, home):
    client = connect(store)
    experiment_id = client.create_experiment("where-theirs")
    for rate in ("0.10", "1e-1", "0.1", "2"):
        foreign_run(client, experiment_id, params={"rate": rate}, loss=1.0)
    trials = open_studies(["where-theirs"], tracking_uri=store, home=home).trials()
    for text, count in (
        ("params.rate = '0.10'", 1), ("params.rate = 0.1", 3), ("rate LIKE '0%' AND loss > 0", 2),
        ("params.rate IN ('0.10')", 1), ("params.rate IN ('0.10', '2', '3')", 2), ("params.rate NOT IN ('0.10', '2')", 2),
    ):  # fmt: skip
        assert read_where(text)(trials).sum() == count


def test_a_pattern_of_many_parts_takes_no_longer_on_a_text_that_almost_fits():
    pattern = _pattern("%a" * 30 + "%b", ignores_case=False)
    started = time.monotonic()
    assert not pattern.fullmatch("a" * 5000)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("pattern", "fits", "differs"),
    [
        ("a%b%c", ["abc", "aXbYc", "abcbc", "a\nb\nc"], ["ab", "abcd", "bac"]),
        ("%ab%ab", ["abab", "xabyab"], ["ab", "abba"]),
        ("a_c%", ["abc", "abcd"], ["ac", "bbc"]),
        ("%", ["", "x"], []),
        ("plain", ["plain"], ["plain2"]),
        ("%a.c%", ["xa.cx"], ["abc"]),
    ],
)
def test_a_pattern_means_what_it_means_in_sql(pattern, fits, differs):
    compiled = _pattern(pattern, ignores_case=False)
    assert all(compiled.fullmatch(text) for text in fits)
    assert not any(compiled.fullmatch(text) for text in differs)
