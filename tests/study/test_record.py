"""The record of trials, as a study finds it after every kind of ending."""

import contextlib
import dataclasses
import sqlite3

import optuna
import pytest
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages._cached_storage import _CachedStorage
from test_spec import spec

from search_spaces import cmsp_curriculum
from study.home import Home
from study.running.record import TrialRecord
from study.running.samplers import make_sampler
from study.running.trial_storage import TrialStorage
from trainables.protocol import Failure

METRICS = {"samples_to_convergence": 100.0, "parameters": 5.0, "fraction_converged": 1.0}


@pytest.fixture
def open_record(home):
    Home().prepare()

    def open_it(name="s", space=None, **changes):
        folder = Home().study(name)
        folder.path.mkdir(parents=True, exist_ok=True)
        space = space or cmsp_curriculum.tiny()
        return TrialRecord(folder, spec(space, name=name, **changes), space)

    return open_it


def test_a_trial_is_on_disk_before_anybody_sees_it(open_record):
    draw = open_record().draw()
    again = open_record()
    assert (len(again), again.unfinished) == (1, [0])
    handed = again.draw_again(0)
    assert (handed.params, handed.config, handed.attempt) == (draw.params, draw.config, 2)


def test_ends_are_remembered(open_record):
    record = open_record()
    for _ in range(3):
        record.draw()
    record.finish(0, METRICS)
    record.finish(1, METRICS | {"fraction_converged": 0.0})
    record.fail(2, Failure(cause="diverged", error="x", traceback=""))
    again = open_record()
    assert (again.num_finished, again.num_failed, again.unfinished, len(again)) == (2, 1, [], 3)
    assert [(trial.values, trial.feasible) for trial in again.past] == [([100.0, 5.0], True), ([100.0, 5.0], False)]


def test_a_trial_that_a_candidate_stands_for_says_which(open_record):
    record = open_record()
    record.draw()
    record.draw()
    record.finish(0, METRICS, candidate=4)
    record.finish(1, METRICS)
    assert [(trial.number, trial.candidate) for trial in open_record().past] == [(0, 4), (1, None)]


def test_an_interrupted_study_draws_what_an_uninterrupted_one_draws(open_record):
    def drive(record, numbers):
        drawn = []
        for number in numbers:
            draw = record.draw()
            record.finish(draw.number, METRICS | {"samples_to_convergence": float(draw.params["width"] + number)})
            drawn.append(draw.params)
        return drawn

    straight = drive(open_record("straight"), range(16))
    cut = [params for number in range(16) for params in drive(open_record("cut"), [number])]
    assert cut == straight


def cut_at_width(monkeypatch, draw):
    """Draw a trial, and die before its width is drawn."""
    original = optuna.Trial.suggest_int

    def die_at_width(trial, name, *args, **kwargs):
        if name == "width":
            raise KeyboardInterrupt
        return original(trial, name, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(optuna.Trial, "suggest_int", die_at_width)
        draw()


def test_a_trial_whose_drawing_was_cut_short_was_never_there_and_is_drawn_as_it_would_have_been(open_record, monkeypatch):
    whole = open_record("whole").draw()
    cut_at_width(monkeypatch, open_record("cut").draw)
    again = open_record("cut")
    assert (len(again), again.unfinished) == (0, [])
    assert again.draw() == whole


def test_a_trial_of_which_a_record_has_some_parameters_is_drawn_to_the_end(open_record, monkeypatch):
    """As studies have it that wrote down one parameter after another."""
    whole = open_record("whole").draw()
    study = open_record("cut")._study
    study.sampler = make_sampler("tpe", 0, 0)
    cut_at_width(monkeypatch, lambda: cmsp_curriculum.tiny().suggest(study.ask()))
    again = open_record("cut")
    assert again.unfinished == [0]
    assert again.draw_again(0) == whole


def test_first_trials_come_first_and_count(open_record):
    given = {"related_atoms": 0, "width": 32, "learning_rate": 0.004}
    space = dataclasses.replace(cmsp_curriculum.tiny(), first_trials=(given,))
    record = open_record(space=space)
    assert record.draw().params == given
    assert record.draw().number == 1
    assert open_record(space=space).draw_again(0).config["width"] == 32


def test_the_sampler_is_told_of_constraints(open_record, home):
    record = open_record()
    record.draw()
    record.finish(0, METRICS | {"fraction_converged": 0.25})
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{Home().study('s').optuna_file}")
    assert study.trials[0].constraints == {"fraction_converged >= 0.5": 0.25}


def test_a_record_is_spent_when_its_budget_is_drawn_and_every_trial_has_ended(open_record):
    record = open_record(num_trials=2)
    assert not record.is_spent
    record.draw()
    record.draw()
    record.finish(0, METRICS)
    assert not open_record(num_trials=2).is_spent
    record.fail(1, Failure(cause="diverged", error="x", traceback=""))
    assert open_record(num_trials=2).is_spent
    assert not open_record(num_trials=3).is_spent


COLUMNS = {
    "trials": "trial_id, number, study_id, state, datetime_start, datetime_complete",
    "trial_params": "trial_id, param_name, param_value, distribution_json",
    "trial_values": "trial_id, objective, value, value_type",
    "trial_user_attributes": "trial_id, key, value_json",
    "trial_system_attributes": "trial_id, key, value_json",
}


def copy_the_only_trial(num_copies):
    """Have the database of study s hold it that many times more."""
    copies = "WITH RECURSIVE copy (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM copy WHERE n < ?)"
    with contextlib.closing(sqlite3.connect(Home().study("s").optuna_file)) as connection, connection:
        for table, columns in COLUMNS.items():
            shifted = columns.replace("trial_id", "trial_id + n").replace("number", "number + n")
            connection.execute(f"{copies} INSERT INTO {table} ({columns}) SELECT {shifted} FROM {table}, copy", (num_copies,))


@contextlib.contextmanager
def heard_statements():
    """What any database is told in this context."""
    heard = []

    def hear(connection, cursor, statement, *_):
        heard.append(statement)

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", hear)
    try:
        yield heard
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", hear)


def test_going_on_reads_finished_trials_in_as_many_statements_however_many_and_writes_nothing_for_them(open_record):
    record = open_record(sampler="random")
    record.finish(record.draw().number, METRICS, candidate=4)
    with heard_statements() as of_one:
        open_record(sampler="random")
    copy_the_only_trial(1200)
    with heard_statements() as of_many:
        record = open_record(sampler="random")
    assert (record.num_finished, len(record.past), record.past[-1].candidate) == (1201, 1201, 4)
    assert of_many == of_one
    writes = [statement for statement in of_many if not statement.startswith(("SELECT", "PRAGMA"))]
    assert not any("trial" in statement for statement in writes)


def test_a_trial_takes_as_many_statements_however_many_finished_before_it(open_record):
    space = dataclasses.replace(cmsp_curriculum.tiny(), suggest=lambda trial: {"width": trial.suggest_int("width", 1, 9)})

    def draw_and_end(name):
        record = open_record(name, space, sampler="random")
        record.finish(record.draw().number, METRICS)
        with heard_statements() as heard:
            record.finish(record.draw().number, METRICS)
        return heard

    record = open_record("s", space, sampler="random")
    record.finish(record.draw().number, METRICS)
    copy_the_only_trial(600)
    assert draw_and_end("s") == draw_and_end("few")


def test_trials_are_read_as_optuna_itself_reads_them(open_record):
    record = open_record()
    for _ in range(4):
        record.draw()
    record.finish(2, METRICS | {"samples_to_convergence": float("inf")}, candidate=1)
    record.fail(1, Failure(cause="diverged", error="x", traceback=""))
    record.finish(0, METRICS)
    url = f"sqlite:///{Home().study('s').optuna_file}"
    ours, theirs = TrialStorage(url), optuna.storages.RDBStorage(url)
    optuna.create_study(storage=theirs, study_name="another study of that database").ask()
    found = ours.get_all_trials(1)
    assert found == theirs.get_all_trials(1)
    assert [list(trial.params) for trial in found] == [list(trial.params) for trial in theirs.get_all_trials(1)]
    assert [trial.values for trial in found] == [[100.0, 5.0], None, [float("inf"), 5.0], None]
    finished = [optuna.trial.TrialState.COMPLETE]
    assert ours.get_all_trials(1, states=finished) == [found[0], found[2]]
    for storage in (ours, theirs):
        storage.engine.dispose()


def test_a_record_that_fails_while_a_trial_is_drawn_fails_the_session_and_no_trial(open_record, monkeypatch):
    record = open_record()

    def fail(*_):
        raise StorageInternalError("no answer") from sqlalchemy.exc.OperationalError("INSERT", {}, OSError("gone"))

    with monkeypatch.context() as patch, pytest.raises(StorageInternalError):
        patch.setattr(_CachedStorage, "create_new_trial", fail)
        record.draw()
    again = open_record()
    assert (again.num_failed, again.unfinished) == (0, [])
    assert again.draw().failure is None
