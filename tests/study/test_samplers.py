import optuna
import pytest

from study.errors import UserError
from study.probe import Parameter
from study.running.samplers import SAMPLERS, check_sampler, make_sampler

optuna.logging.set_verbosity(optuna.logging.WARNING)
ALWAYS = Parameter(name="width", values="1 .. 9", conditional=False)
SOMETIMES = Parameter(name="share", values="0 .. 1", conditional=True)


def draws(sampler, num_trials=14):
    study = optuna.create_study(directions=["minimize", "minimize"])
    drawn = []
    for number in range(num_trials):
        study.sampler = make_sampler(sampler, 3, number)
        trial = study.ask()
        width = trial.suggest_int("width", 1, 9)
        share = trial.suggest_float("share", 0, 1) if width > 4 else 0.0
        study.tell(trial, [width, share])
        drawn.append((width, share))
    return drawn


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_draws_the_same_from_the_same_seed_and_past(sampler):
    assert draws(sampler) == draws(sampler)


def test_trials_differ_from_each_other():
    assert len(set(draws("random"))) > 7


def test_an_unknown_sampler_is_answered_with_those_there_are():
    with pytest.raises(UserError, match="sampler must be one of tpe, nsga2, random, qmc, gp, but got 'best'"):
        check_sampler("best", [ALWAYS])


@pytest.mark.parametrize("sampler", ["gp", "qmc"])
def test_a_sampler_that_can_learn_nothing_of_a_space_is_refused_by_name(sampler):
    with pytest.raises(UserError, match=f"sampler {sampler} .* use tpe, nsga2, random"):
        check_sampler(sampler, [SOMETIMES])
    assert "at random: share" in check_sampler(sampler, [ALWAYS, SOMETIMES])
    assert check_sampler(sampler, [ALWAYS]) is None
    assert check_sampler("tpe", [SOMETIMES]) is None
