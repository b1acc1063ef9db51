"""Killing a study on purpose: the schedule, the sheet, and a few real deaths."""

import dataclasses
from collections import Counter
from typing import get_args

import pytest

from study.chaos.chaos import run_chaos
from study.chaos.faults import Victim, draw_faults, newest, newest_checkpoint, tear
from study.chaos.sheet import Findings, compare
from trainables.failpoints import Place

PEACE = Findings(
    states={"COMPLETE": 2},
    trials={0: ("COMPLETE", {"x": 1}, [1.0]), 1: ("COMPLETE", {"x": 2}, [2.0])},
    repeated=0,
    statuses={"FINISHED": 2},
    study_statuses={"FINISHED": 1},
    num_trials_with_run=2,
    num_runs=2,
    bad_histories=0,
    metrics={(0, "loss"): [2.0, 1.0], (1, "loss"): [2.0]},
    front=[(0, None, {"x": 1}, {"loss": 1.0})],
    models={"trial 0, model.safetensors": "aa"},
)


def failing(**found):
    return [check.name for check in compare(PEACE, dataclasses.replace(PEACE, **found)) if not check.holds]


def test_a_study_that_comes_to_the_same_passes():
    assert failing() == []


@pytest.mark.parametrize(
    ("found", "name"),
    [
        ({"states": {"COMPLETE": 1, "RUNNING": 1}}, "trials still RUNNING in Optuna"),
        ({"states": {"COMPLETE": 3}}, "trials, by how they ended"),
        ({"repeated": 1}, "parameter sets drawn twice"),
        ({"num_runs": 3}, "MLflow runs, and trials that have one"),
        ({"num_trials_with_run": 1}, "MLflow runs, and trials that have one"),
        ({"statuses": {"FINISHED": 1, "RUNNING": 1}}, "MLflow runs of trials, by status"),
        ({"study_statuses": {"RUNNING": 1}}, "MLflow run of the study"),
        ({"bad_histories": 1}, "metrics whose steps have a gap or a repeat"),
        ({"metrics": {(0, "loss"): [2.0, 1.0], (1, "loss"): [2.5]}}, "metrics that are not those in peace"),
        ({"trials": {0: ("COMPLETE", {"x": 1}, [1.0])}}, "trials that are not those in peace"),
        ({"models": {}}, "models that are not those in peace"),
        ({"front": []}, "models on the front"),
    ],
)
def test_the_sheet_sees_what_is_lost_or_done_twice(found, name):
    assert name in failing(**found)


def test_every_kind_of_fault_comes_before_any_comes_again():
    faults = draw_faults(16, seed=3)
    assert {fault.target for fault in faults} == {*get_args(Victim), *get_args(Place)} - {"model going"}
    assert draw_faults(16, seed=3) == faults != draw_faults(16, seed=4)
    assert all(0 <= fault.moment < 1 for fault in faults)


@pytest.mark.parametrize("seed", range(8))
def test_no_trial_is_given_up_for_the_deaths_of_its_workers(seed):
    targets = [fault.target for fault in draw_faults(60, seed)]
    lose = [target in ("worker", "file written", "work saved") for target in targets]
    assert not any(all(lose[i : i + 3]) for i in range(len(lose) - 2))
    assert Counter(targets).most_common()[-1][1] >= 3


def test_the_newest_checkpoint_of_a_trial_that_is_not_done_is_torn(tmp_path):
    for trial, step in (("00000", 1), ("00000", 2), ("00001", 9)):
        file = tmp_path / "trials" / trial / "checkpoints" / f"step-{step:08d}-0001-aa.pt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * 10)
    (tmp_path / "trials" / "00001" / "model").mkdir()
    newest = newest_checkpoint(tmp_path)
    assert newest.name == "step-00000002-0001-aa.pt"
    tear(newest)
    assert newest.read_bytes() == b"x" * 5


def test_a_checkpoint_that_is_pruned_meanwhile_is_not_the_newest(tmp_path):
    (tmp_path / "there").write_bytes(b"x")
    assert newest([tmp_path / "gone", tmp_path / "there"]) == tmp_path / "there"
    assert newest([tmp_path / "gone"]) is None


@pytest.mark.slow
def test_a_study_that_is_killed_four_times_comes_to_what_it_comes_to_in_peace():
    told = []
    command = ("cmsp_curriculum:tiny", "--trials", "6", "--max-concurrent", "1")
    report = run_chaos(command, num_trials=6, kills=4, seed=SEED, say=told.append)
    shown = "\n".join([*told, *map(str, report.checks)])
    assert report.passed, f"once more: study chaos cmsp_curriculum:tiny --trials 6 --kills 4 --seed {SEED}\n{shown}"
    assert report.num_launches >= 2
    assert len(report.faults) == 4
    assert report.folder is None


SEED = 747
"""Of a schedule that soon kills a worker, a process at a place, Ray's daemon and the driver."""
