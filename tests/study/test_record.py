"""The record of trials, as a study finds it after every kind of ending."""

import dataclasses

import optuna
import pytest
from test_spec import spec

from search_spaces import cmsp_curriculum
from study.home import Home
from study.record import TrialRecord
from trainables.protocol import Failure

METRICS = {"samples_to_convergence": 100.0, "parameters": 5.0, "fraction_converged": 1.0}


@pytest.fixture
def open_record(home):
    Home().prepare()

    def open_it(name="s", space=None):
        folder = Home().study(name)
        folder.path.mkdir(parents=True, exist_ok=True)
        space = space or cmsp_curriculum.tiny()
        return TrialRecord(folder, spec(space, name=name), space)

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


def test_a_trial_whose_drawing_was_cut_short_is_drawn_to_the_end(open_record, monkeypatch):
    whole = open_record("whole").draw()
    record = open_record("cut")
    original = optuna.Trial.suggest_int

    def die_at_width(trial, name, *args, **kwargs):
        if name == "width":
            raise KeyboardInterrupt
        return original(trial, name, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(optuna.Trial, "suggest_int", die_at_width)
        record.draw()
    again = open_record("cut")
    assert again.unfinished == [0]
    draw = again.draw_again(0)
    assert draw.params == whole.params
    assert draw.attempt == 1


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
