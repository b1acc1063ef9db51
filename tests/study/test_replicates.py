"""Trials of one parameter set that differ in their seed alone."""

import dataclasses
from typing import Any

import optuna
import pytest
from made_records import Records, drive
from test_spec import spec

from search_spaces import cmsp_curriculum
from study.errors import UserError
from study.running.replicates import STRIDE, check_replicates, first_of, of_replicate
from study.running.samplers import make_sampler
from trainables.cmsp.curriculum_config import CurriculumConfig

GIVEN = {"related_atoms": 0, "width": 32, "learning_rate": 0.004}


@pytest.fixture
def open_record(monkeypatch):
    return Records(monkeypatch)


def seeds(drawn):
    return [CurriculumConfig(**config).seed for _, config, _ in drawn]


def test_replicates_share_all_but_the_seed(open_record):
    drawn = drive(open_record(replicates=3), 6)
    for first in (0, 3):
        params, config, _ = drawn[first]
        assert [found for found, _, _ in drawn[first : first + 3]] == [params] * 3
        assert [{**found, "seed": 0} for _, found, _ in drawn[first : first + 3]] == [{**config, "seed": 0}] * 3
    assert drawn[0][0] != drawn[3][0]
    assert seeds(drawn) == [0, STRIDE, 2 * STRIDE] * 2


def test_a_seed_of_the_config_is_where_replicates_start(open_record):
    def suggest(trial):
        return {**cmsp_curriculum.tiny().suggest(trial), "seed": 10 * trial.suggest_int("tens", 1, 9)}

    drawn = drive(open_record(suggest=suggest, replicates=2), 2)
    assert seeds(drawn) == [10 * drawn[0][0]["tens"], 10 * drawn[0][0]["tens"] + STRIDE]


def test_parameters_that_not_every_config_has_are_repeated(open_record):
    def suggest(trial):
        share = trial.suggest_float("learning_rate", 1e-3, 1e-2) if trial.suggest_categorical("own", [True, False]) else 2e-3
        return {**cmsp_curriculum.tiny().suggest(optuna.trial.FixedTrial(GIVEN)), "learning_rate": share}

    drawn = drive(open_record(suggest=suggest, replicates=2, sampler="random"), 12)
    assert drawn[0::2] == [(p, {k: v for k, v in config.items() if k != "seed"}, None) for p, config, _ in drawn[1::2]]
    assert {len(params) for params, _, _ in drawn} == {1, 2}


def test_each_given_trial_has_its_replicates(open_record):
    other = {**GIVEN, "width": 16}
    drawn = drive(open_record(first_trials=(GIVEN, other), replicates=2), 5)
    assert [params for params, _, _ in drawn[:4]] == [GIVEN, GIVEN, other, other]
    assert drawn[4][0] not in (GIVEN, other)


def test_the_sampler_draws_the_parameter_sets_that_it_would_without_replicates(open_record):
    for sampler in ("random", "qmc"):
        once = drive(open_record(f"{sampler}-1", sampler=sampler), 4)
        twice = drive(open_record(f"{sampler}-2", sampler=sampler, replicates=2), 8)
        assert [params for params, _, _ in twice[::2]] == [params for params, _, _ in once]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "nsga3", "gp"])
def test_replicates_come_out_the_same_however_often_a_study_is_interrupted(open_record, sampler):
    soon = {"population_size": 2} if "nsga" in sampler else {"n_startup_trials": 2}
    options: dict[str, Any] = {"sampler": sampler, "sampler_options": soon, "replicates": 2, "first_trials": (GIVEN,)}
    straight = drive(open_record("straight", **options), 7)
    assert [drive(open_record("cut", **options), 1)[0] for _ in range(7)] == straight


def test_a_replicate_of_a_refused_draw_is_refused_too(open_record):
    def suggest(trial):
        if trial.suggest_float("x", 0, 1) <= 1:
            raise ValueError("never")

    described = spec()
    record = open_record(description=described.description, replicates=2)
    record._space = dataclasses.replace(record._space, suggest=suggest)
    assert [record.draw().failure.error for _ in range(2)] == ["ValueError: never"] * 2


def test_a_gaussian_process_takes_replicates_for_noisy(open_record):
    for replicates, is_exact in ((1, True), (2, False)):
        sampler = open_record(f"r{replicates}", sampler="gp", replicates=replicates)._drawer.sampler(0)
        assert sampler._sampler._deterministic is is_exact
    assert make_sampler("gp", 0, 0, {"deterministic_objective": False})._sampler._deterministic is False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seedless:
    x: float = 0.0

    @classmethod
    def tiny(cls):
        return cls()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmallSeeded(Seedless):
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.seed < 2**22:
            raise ValueError(f"seed must be in [0, 2**22), but got {self.seed}; use 0")


@pytest.mark.parametrize(
    ("config", "replicates", "answer"),
    [
        (SmallSeeded, 0, "replicates must be at least 1, but got 0"),
        (Seedless, 2, "Config has an integer seed, but some has none and got 2"),
        (SmallSeeded, 6, r"some does not take those of 6 \(seed must be in"),
    ],
)
def test_replicates_that_cannot_be_are_refused(config, replicates, answer, monkeypatch):
    monkeypatch.setattr("study.running.replicates.load_experiment", lambda _: type("E", (), {"Config": config}))
    with pytest.raises(UserError, match=answer):
        check_replicates(replicates, "some")
    check_replicates(1, "some")


def test_replicates_are_counted_from_the_trial_that_draws():
    assert [first_of(trial, 3) for trial in range(7)] == [0, 0, 0, 3, 3, 3, 6]
    assert of_replicate({"seed": 7}, 0, "cmsp_curriculum") == {"seed": 7}
    check_replicates(5, "cmsp_curriculum")
