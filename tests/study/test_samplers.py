import io
import itertools
import pickle
import sys
import types

import optuna
import pytest
from made_records import Records, drive
from optuna.trial import TrialState

from study.errors import UserError
from study.probe import Parameter
from study.running.samplers import SAMPLERS, check_sampler, make_sampler
from study.running.samplers_by_name import STOPPED, _OptimizerUnpickler, rank_stopped
from trainables.protocol import Failure

optuna.logging.set_verbosity(optuna.logging.WARNING)
ALWAYS = Parameter(name="width", values="1 .. 9", conditional=False)
SOMETIMES = Parameter(name="share", values="0 .. 1", conditional=True)
CHOICE = Parameter(name="kind", values="a | b", conditional=False)
SOON = {
    "tpe": {"n_startup_trials": 3},
    "gp": {"n_startup_trials": 3},
    "nsga2": {"population_size": 3},
    "nsga3": {"population_size": 3},
    "cmaes": {"popsize": 4},
}
"""Samplers look at the past from the fourth or fifth trial on."""
BRUTE_FORCE = "optuna.samplers:BruteForceSampler"


class Counting(optuna.samplers.BaseSampler):
    """Remembers how often it was asked, and takes no seed."""

    def __init__(self, start: int = 0):
        self.count = start

    def infer_relative_search_space(self, study, trial):
        return {}

    def sample_relative(self, study, trial, search_space):
        return {}

    def sample_independent(self, study, trial, param_name, param_distribution):
        self.count += 1
        return self.count


class Mixed(Counting):
    """Takes a seed, and remembers."""

    def __init__(self, seed: int | None = None):
        super().__init__(0)


def draws(sampler, num_trials=9):
    num_objectives = 1 if sampler == "cmaes" else 2
    study = optuna.create_study(directions=["minimize"] * num_objectives)
    drawn = []
    for number in range(num_trials):
        study.sampler = make_sampler(sampler, 3, number, SOON.get(sampler, {}))
        trial = study.ask()
        width = trial.suggest_int("width", 1, 9)
        share = trial.suggest_float("share", 0, 1) if width > 4 else 0.0
        study.tell(trial, [width, share][:num_objectives])
        drawn.append((width, share))
    return drawn


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_draws_the_same_from_the_same_seed_and_past(sampler):
    assert draws(sampler) == draws(sampler)


def test_trials_differ_from_each_other():
    assert len(set(draws("random"))) > 6


@pytest.fixture
def open_record(monkeypatch):
    return Records(monkeypatch)


@pytest.mark.parametrize("sampler", [*SAMPLERS, BRUTE_FORCE])
def test_a_study_that_is_interrupted_after_every_trial_draws_what_an_uninterrupted_one_draws(sampler, open_record):
    suggest = brute_forced if sampler == BRUTE_FORCE else None
    options = {"sampler": sampler, "sampler_options": SOON.get(sampler, {}), "suggest": suggest}
    options["objectives"] = 1 if sampler == "cmaes" else 2
    num_trials = 6 if sampler == "gp" else 9
    straight = drive(open_record("straight", **options), num_trials, stop=(1, 5))
    cut = [drive(open_record("cut", **options), 1, stop=(1, 5))[0] for _ in range(num_trials)]
    assert cut == straight


def brute_forced(trial):
    return {"width": trial.suggest_int("width", 1, 20)}


def test_an_exhaustive_sampler_tries_all_there_is_and_does_not_end_the_study(open_record):
    record = open_record(suggest=lambda trial: {"width": trial.suggest_int("width", 1, 4)}, sampler=BRUTE_FORCE)
    drawn = [params["width"] for params, _, _ in drive(record, 6)]
    assert sorted(drawn[:4]) == [1, 2, 3, 4]


def test_a_sampler_with_a_memory_of_its_own_draws_for_a_whole_session(open_record):
    options = {"sampler": "test_samplers:Counting", "sampler_options": {"start": 4}, "suggest": brute_forced}
    assert [params["width"] for params, _, _ in drive(open_record(**options), 3)] == [5, 6, 7]


def check(name, options=None, parameters=(ALWAYS,), num_objectives=2, constraints=()):
    return check_sampler(name, options or {}, parameters, num_objectives=num_objectives, constraints=constraints)


def test_an_unknown_sampler_is_answered_with_those_there_are():
    names = "tpe, nsga2, nsga3, gp, cmaes, qmc, random or module:Class"
    with pytest.raises(UserError, match=f"sampler must be one of {names}, but got 'best'"):
        check("best")


@pytest.mark.parametrize("sampler", ["gp", "qmc"])
def test_a_sampler_that_can_learn_nothing_of_a_space_is_refused_by_name(sampler):
    with pytest.raises(UserError, match=f"sampler {sampler} .* use tpe, nsga2, nsga3, random"):
        check(sampler, parameters=[SOMETIMES])
    assert "conditional parameters at random: share" in check(sampler, parameters=[ALWAYS, SOMETIMES])
    assert check(sampler) is None
    assert check("tpe", parameters=[SOMETIMES]) is None


def test_cmaes_says_what_it_cannot_do():
    with pytest.raises(UserError, match="cmaes needs one objective, but the space has 2; use tpe, nsga2 or gp"):
        check("cmaes")
    assert check("cmaes", num_objectives=1) is None
    ignored = check("cmaes", num_objectives=1, constraints=["loss <= 1"])
    assert ignored == "sampler cmaes ignores constraints: loss <= 1"
    notice = check("cmaes", parameters=[ALWAYS, SOMETIMES, CHOICE], num_objectives=1)
    assert notice == "sampler cmaes draws conditional and categorical parameters at random: share, kind"
    with pytest.raises(UserError, match=r"needs a numeric parameter .* all of this space's are categorical"):
        check("cmaes", parameters=[CHOICE], num_objectives=1)


@pytest.mark.parametrize(
    ("sampler", "options", "answer"),
    [
        ("tpe", {"startup": 3}, "option of sampler tpe must be one of .*n_startup_trials.*, but got 'startup'"),
        ("tpe", {"n_startup_trials": "3"}, 'n_startup_trials of sampler tpe must be like 10, but got "3"'),
        ("tpe", {"constant_liar": 0}, "constant_liar of sampler tpe must be like true, but got 0"),
        ("tpe", {"gamma": 3}, "but got 'gamma'"),
        ("tpe", {"seed": 3}, "seed is made of the study's, but the options give seed 3; use --seed"),
        ("nsga2", {"population_size": 1}, "nsga2 answers .* ValueError: `population_size` must be greater"),
        ("random", {"popsize": 1}, "must be one of none, but got 'popsize'"),
        ("optuna.samplers:GridSampler", {}, "answers {} with TypeError: .*search_space"),
        ("nowhere.at_all:Sampler", {}, "raised ModuleNotFoundError"),
        ("optuna.samplers:BaseSampler", {}, "must be a subclass of optuna.samplers.BaseSampler"),
        ("json:loads", {}, "must be a subclass of optuna.samplers.BaseSampler"),
    ],
)
def test_what_a_sampler_cannot_be_made_of_is_refused_before_anything_runs(sampler, options, answer):
    with pytest.raises(UserError, match=answer):
        check(sampler, options)


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("tpe", {"multivariate": False, "n_startup_trials": 20}),
        ("tpe", {"constant_liar": False}),
        ("qmc", {"qmc_type": "halton"}),
        ("gp", {"deterministic_objective": False}),
        ("optuna.samplers:GridSampler", {"search_space": {"width": [1, 2]}}),
        (BRUTE_FORCE, {}),
    ],
)
def test_options_are_taken(sampler, options):
    assert check(sampler, options) is None


def test_a_sampler_that_may_draw_otherwise_the_next_time_says_so():
    assert "takes no seed: the same study launched again draws otherwise" in check("test_samplers:Counting")
    assert "memory of its own: a study that is interrupted may draw otherwise" in check("test_samplers:Mixed")


def test_a_package_of_the_hub_needs_its_package_and_is_loaded_at_a_version(monkeypatch):
    monkeypatch.setitem(sys.modules, "optunahub", None)
    with pytest.raises(UserError, match="pip install optunahub"):
        check("optunahub:samplers/mixed:Mixed")
    asked = []
    hub = types.SimpleNamespace(load_module=lambda package, ref: asked.append((package, ref)) or sys.modules[__name__])
    monkeypatch.setitem(sys.modules, "optunahub", hub)
    assert "memory of its own" in check("optunahub:samplers/mixed@v1.2:Mixed")
    assert set(asked) == {("samplers/mixed", "v1.2")}


class Evil:
    def __reduce__(self):
        return print, ("taken over",)


def test_a_record_that_somebody_else_wrote_to_runs_nothing():
    with pytest.raises(pickle.UnpicklingError, match=r"this one names builtins\.print"):
        _OptimizerUnpickler(io.BytesIO(pickle.dumps(Evil()))).load()


def finished_study(num_trials, seed=0):
    """Two objectives and a constraint, best at x = y = 0.3."""
    study = optuna.create_study(directions=["minimize", "minimize"])
    for number in range(num_trials):
        study.sampler = make_sampler("random", seed, number)
        trial = study.ask()
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        trial.set_constraint("x >= 0.1", 0.1 - x)
        study.tell(trial, [abs(x - 0.3), abs(y - 0.3)])
    return study


def closest(study, options):
    """Least distance between any two of eight draws, none of which has ended."""
    points = []
    for number in range(len(study.trials), len(study.trials) + 8):
        study.sampler = make_sampler("tpe", 0, number, options)
        trial = study.ask()
        points.append((trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)))
    return min(abs(a - c) + abs(b - d) for (a, b), (c, d) in itertools.combinations(points, 2))


def test_draws_keep_away_from_those_that_run():
    apart = [closest(finished_study(30, seed), {}) for seed in range(4)]
    together = [closest(finished_study(30, seed), {"constant_liar": False}) for seed in range(4)]
    assert sum(apart) > 1.3 * sum(together)
    assert min(apart) > 1e-3


def stopped_study(rung_of, costs_of, num_trials=40):
    study = optuna.create_study(directions=["minimize", "minimize"])
    for number in range(num_trials):
        study.sampler = make_sampler("random", 0, number)
        trial = study.ask()
        x = trial.suggest_float("x", 0, 1)
        if number < 2:
            study.tell(trial, [x, x])
            continue
        trial.set_user_attr(STOPPED, {"rung": rung_of(x), "costs": costs_of(x)})
        study.tell(trial, state=TrialState.PRUNED)
    return study


def next_draws(study, name="tpe"):
    drawn = []
    for number in range(len(study.trials), len(study.trials) + 20):
        sampler = make_sampler(name, 1, number)
        trial = optuna.trial.FrozenTrial(number, TrialState.RUNNING, None, None, None, {}, {}, {}, {}, {}, -1)
        distribution = optuna.distributions.FloatDistribution(0, 1)
        drawn.append(sampler.sample_independent(study, trial, "x", distribution))
    return drawn


@pytest.mark.parametrize(
    ("rung_of", "costs_of"),
    [
        (lambda x: int(x > 0.8), lambda x: [0.0, 0.0]),
        (lambda x: 0, lambda x: [float(x <= 0.8), float(x <= 0.8)]),
        (lambda x: 0, lambda x: [float("nan") if x <= 0.8 else 1.0, 0.0]),
    ],
    ids=["later", "better", "known"],
)
def test_tpe_goes_where_stopped_trials_went_on_for_longer_or_were_better(rung_of, costs_of):
    drawn = next_draws(stopped_study(rung_of, costs_of))
    assert sum(x > 0.8 for x in drawn) >= 10


def test_stopped_trials_are_ranked_by_rung_then_front_then_number():
    told = [{"rung": 0, "costs": [0, 0]}, {"rung": 1, "costs": [2, 2]}, None, {"rung": 1, "costs": [1, 3]},
            {"rung": 1, "costs": [3, 3]}, {"rung": 0, "costs": [1, 1]}]  # fmt: skip
    trials = [
        optuna.trial.create_trial(state=TrialState.PRUNED, user_attrs={} if stop is None else {STOPPED: stop}) for stop in told
    ]
    assert [trials.index(trial) for trial in rank_stopped(trials)] == [1, 3, 4, 0, 5, 2]


def test_a_study_of_two_objectives_goes_on_from_stopped_trials_with_every_sampler(open_record):
    for sampler in set(SAMPLERS) - {"cmaes", "gp"}:
        record = open_record(sampler, sampler=sampler, sampler_options=SOON.get(sampler, {}))
        assert len(drive(record, 8, stop=range(1, 8))) == 8


# -- no parameter set twice


def six(trial):
    """Six parameter sets, one of them with a parameter that others do not have."""
    kind = trial.suggest_categorical("kind", ["a", "b"])
    width = 16 * trial.suggest_int("width", 1, 3) if kind == "a" else trial.suggest_int("other", 20, 22)
    return {"width": width}


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random", "qmc"])
def test_no_parameter_set_is_drawn_twice_while_another_is_left(sampler, open_record):
    options = {"suggest": six, "sampler": sampler, "sampler_options": SOON.get(sampler, {})}
    drawn = drive(open_record("straight", **options), 8)
    widths = [config["width"] for _, config, _ in drawn]
    assert len(set(widths[:6])) == 6
    assert [repeats for _, _, repeats in drawn[:6]] == [None] * 6
    assert [widths[repeats] for _, _, repeats in drawn[6:]] == widths[6:]
    assert [drive(open_record("cut", **options), 1)[0] for _ in range(8)] == drawn


def test_what_a_failed_trial_drew_may_be_drawn_again(open_record):
    record = open_record(suggest=lambda trial: {"width": trial.suggest_int("width", 16, 17)}, sampler="random")
    first = record.draw()
    record.fail(0, Failure(cause="crash", error="x", traceback=""))
    again = [record.draw(), record.draw()]
    assert {draw.config["width"] for draw in again} == {16, 17}
    assert [draw.repeats for draw in again] == [None, None]
    assert first.config in [draw.config for draw in again]


def test_a_trial_that_somebody_asks_for_may_repeat_another(open_record):
    record = open_record(suggest=six, first_trials=({"kind": "a", "width": 1}, {"kind": "a", "width": 1}), sampler="random")
    drawn = drive(record, 7)
    assert [config["width"] for _, config, _ in drawn[:2]] == [16, 16]
    assert len({config["width"] for _, config, _ in drawn}) == 6
    assert all(repeats is None for _, _, repeats in drawn)
