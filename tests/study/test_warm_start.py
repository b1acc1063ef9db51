"""A study may know from its first draw what other studies found, as far as that fits its own space."""

import dataclasses
import json

import pytest
from optuna.trial import TrialState
from test_spec import spec

from search_spaces import cmsp_curriculum
from study.errors import UserError
from study.home import Home
from study.running import warm_start
from study.running.record import TrialRecord

SPACE = dataclasses.replace(cmsp_curriculum.tiny(), first_trials=())
PARAMS = {"related_atoms": 1, "composite_share": 0.5, "width": 32, "learning_rate": 2e-3}


def told(number, **changes):
    """A trial of another study; it has found little at small learning rates."""
    params = {**PARAMS, **changes}
    values = [1e5 * abs(params.get("learning_rate", 0.0) - 9e-3) + number, 100.0]
    return {"trial": f"other/{number}", "params": params, "values": values, "violations": {"fraction_converged >= 0.5": -0.5}}


MANY = [told(i, learning_rate=1e-3 + 1e-4 * i, composite_share=0.1 + 0.01 * i) for i in range(60)]


def as_trials(*known, whole_only=False):
    return warm_start.as_trials(known, SPACE, whole_only=whole_only)


def test_a_trial_of_the_same_space_is_known_whole_with_our_ranges():
    (trial,) = as_trials(told(3))
    assert (trial.state, trial.number, trial.params) == (TrialState.COMPLETE, -1, PARAMS)
    assert trial.distributions["width"].high == 48
    assert trial.constraints == {"fraction_converged >= 0.5": -0.5}


def test_what_our_space_does_not_have_or_is_out_of_its_range_is_left_out():
    (trial,) = as_trials(told(0, width=1024, dropout=0.1))
    assert trial.params == {name: value for name, value in PARAMS.items() if name != "width"}
    assert as_trials(told(0, width=1024, dropout=0.1), whole_only=True) == []
    assert as_trials({**told(0), "params": {"dropout": 0.1}}) == []
    assert as_trials(told(0, width="wide"))[0].params.keys() == PARAMS.keys() - {"width"}


@pytest.fixture
def open_record(home):
    Home().prepare()

    def open_it(known=(), sampler="tpe", name="s"):
        folder = Home().study(name)
        folder.path.mkdir(parents=True, exist_ok=True)
        own = spec(SPACE, name=name, sampler=sampler)
        if known and not folder.warm_start_file.exists():
            warm_start.save(folder.warm_start_file, known)
        if known:
            digest = warm_start._digest(folder.warm_start_file.read_text())
            own = dataclasses.replace(own, warm_start=("other",), warm_start_digest=digest)
        return TrialRecord(folder, own, SPACE)

    return open_it


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "nsga3", "gp", "qmc", "random"])
def test_every_sampler_draws_beside_trials_of_others_and_the_record_has_none_of_them(open_record, sampler):
    record = open_record(MANY, sampler)
    draws = [record.draw() for _ in range(3)]
    assert [draw.number for draw in draws] == [0, 1, 2]
    record.finish(0, {"samples_to_convergence": 100.0, "parameters": 5.0, "fraction_converged": 1.0})
    again = open_record(MANY, sampler)
    assert (len(again), len(again.past)) == (3, 1)
    assert again.draw().number == 3


def test_the_first_draws_of_a_warm_study_are_near_what_was_good(open_record):
    def num_good(record):
        return sum(record.draw().params["learning_rate"] > 4e-3 for _ in range(8))

    assert num_good(open_record(name="cold")) < 6 < num_good(open_record(MANY, name="warm"))


def test_a_resumed_study_draws_as_one_that_was_not_interrupted(open_record):
    whole = open_record(MANY, name="whole")
    expected = [whole.draw().params for _ in range(4)]
    drawn = [open_record(MANY, name="cut").draw().params for _ in range(4)]
    assert drawn == expected


def test_what_was_kept_must_be_what_it_was(tmp_path):
    file = tmp_path / "warm_start.json"
    digest = warm_start.save(file, MANY)
    assert warm_start.load(file, digest) == json.loads(json.dumps(MANY))
    file.write_text("[]")
    with pytest.raises(UserError, match="has changed; put it back"):
        warm_start.load(file, digest)
    file.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        warm_start.load(file, digest)
