"""Trials of one shape run as one program in a worker: a study comes to the same as without, and each trial is its own."""

import commands
import pytest
from rich.console import Console

from study import launch
from study.running.cluster import ray_session

TRIALS = 8


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module", autouse=True)
def one_ray():
    with ray_session(None):
        yield


def run(home, name, **options):
    options = {"trials": TRIALS, "sampler": "random", "max_concurrent": 1, "seed": 4} | options
    return launch("cmsp_curriculum:tiny", name=name, home=home, console=Console(quiet=True), **options)


def trials_of(home, name):
    return commands.run_json("status", name, home=home)["trials"]


@pytest.fixture(scope="module")
def apart(home):
    """The study with one trial after another."""
    run(home, "apart")
    return trials_of(home, "apart")


def test_a_packed_study_has_the_trials_of_one_that_was_not(home, apart):
    outcome = run(home, "packed", pack=8)
    packed = trials_of(home, "packed")
    assert outcome.num_finished == TRIALS
    for own, other in zip(packed, apart, strict=True):
        assert (own["params"], own["metrics"]) == (other["params"], other["metrics"])
        assert own["attempts"] == 1
    logs = [commands.run_json("trial", "packed", str(number), home=home)["log"] for number in range(TRIALS)]
    assert sum("makes its steps together with" in log for log in logs) >= 2, logs


def test_of_a_pack_those_that_are_behind_stop_and_the_others_go_on(home, apart):
    outcome = run(home, "lean", pack=8, early_stopping="moasha:reduction=2,rungs=0.25")
    lean = trials_of(home, "lean")
    assert outcome.num_stopped >= 1
    assert outcome.num_stopped + outcome.num_finished == TRIALS
    for own, other in zip(lean, apart, strict=True):
        assert own["params"] == other["params"]
        if own["state"] == "finished":
            assert own["metrics"] == other["metrics"]
        else:
            assert own["state"] == "stopped" and own["metrics"]["progress"] < 1.0


def test_a_packed_study_that_is_interrupted_goes_on_where_it_was(home, apart):
    first = run(home, "cut", pack=8, time_budget_s=0.01)
    assert first.time_is_up
    assert run(home, "cut", pack=8).num_finished == TRIALS
    assert [trial["metrics"] for trial in trials_of(home, "cut")] == [trial["metrics"] for trial in apart]
