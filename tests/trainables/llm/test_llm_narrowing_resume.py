import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from narrowing_trials import (
    CPU,
    NUM_BASE,
    NUM_NARROW,
    TINY,
    base_model,
    begin,
    config_of,
    finished,
    given,
    go_on,
    rebuilt,
    run,
    same,
    through_a_file,
    training,
)

from trainables.experiment import build_experiment
from trainables.llm import narrowing
from trainables.llm.narrowing import Narrowing
from trainables.pruning.strength import StrengthRule
from trainables.shared import Shared
from trainables.storage import Folder

STEERED = {
    "lasso": training(updates=14, learning_rate=3e-3),
    "lasso_rule": StrengthRule(warmup=10, interval=2, increase=30.0),
    "lasso_breadth": 0.5,
    "updates_per_step": 6,
}
"""A lasso of three steps, whose strength changes in the second."""


def interrupted(config):
    """A trial that is saved and loaded before every step, and its reports and states."""
    experiment, reports, states = begin(config), [], []
    while experiment.progress < 1.0:
        progress = experiment.progress
        states.append(through_a_file(experiment.state_dict()))
        experiment = begin(config)
        experiment.load_state_dict(states[-1])
        assert experiment.progress == progress
        reports.append(experiment.step())
    return experiment, reports, [*states, through_a_file(experiment.state_dict())]


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("group_lasso", {"teacher_share": 0.5, "updates_per_step": 3}),
        ("group_lasso", {"lasso_way": "proximal", **STEERED}),
        ("attribution", {"updates_per_step": 1, "recovery": training(updates=2)}),
        ("distillation", {"teacher_share": 0.5, "updates_per_step": 3, "breadth": 0.5}),
    ],
)
def test_saving_and_loading_before_every_step_and_between_stages_changes_nothing(method, changes):
    config = config_of(method, **changes)
    experiment, reports, states = interrupted(config)
    straight, expected = run(config)
    assert reports == expected
    assert same(experiment.model_tensors(), straight.model_tensors())
    assert experiment.charts() == straight.charts()
    again = begin(config)
    again.load_state_dict(states[-1])
    assert (again.progress, again.step()) == (1.0, expected[-1])
    assert again.model_files() == straight.model_files()
    straight.load_state_dict(states[0])  # back to the start, in the same object
    assert [straight.step() for _ in expected] == expected


def test_a_strength_that_has_adjusted_itself_is_in_a_state():
    config = config_of("group_lasso", **STEERED)
    experiment = begin(config)
    for _ in range(2):
        experiment.step()
    again = begin(config)
    again.load_state_dict(through_a_file(experiment.state_dict()))
    assert again._lasso.strength == experiment._lasso.strength > 2 * config.lasso_strength


def numbers_in(state):
    """How many numbers the tensors of a state hold."""
    if isinstance(state, torch.Tensor):
        return state.numel()
    inner = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return sum(map(numbers_in, inner))


def without_kept(state):
    """Less a bool for every unit that there was."""
    return {name: value for name, value in state.items() if name != "kept"}


@pytest.mark.parametrize("method", ["group_lasso", "distillation"])
def test_a_state_holds_an_optimizer_while_there_is_something_to_train_and_no_teacher_ever(method):
    experiment = begin(config_of(method, teacher_share=0.5, updates_per_step=2))
    experiment.step()
    if method == "group_lasso":
        assert 3 * NUM_BASE <= numbers_in(experiment.state_dict()) < 3.1 * NUM_BASE
        experiment.step()  # now it is cut
        assert numbers_in(without_kept(experiment.state_dict())) == NUM_NARROW
        experiment.step()
    assert 3 * NUM_NARROW <= numbers_in(experiment.state_dict()) < 3.1 * NUM_NARROW
    experiment.step()
    state = experiment.state_dict()
    assert experiment.progress < 1.0  # relearning is to come
    assert numbers_in(without_kept(state)) == NUM_NARROW
    assert (state["trainer"], state["lasso"]) == (None, None)


@pytest.mark.parametrize("method", ["group_lasso", "attribution", "from_scratch"])
def test_going_on_neither_cuts_nor_measures_nor_builds_the_base_model_again(method, monkeypatch):
    config = config_of(method, updates_per_step=4)
    experiment, states = begin(config), []
    while experiment.progress < 1.0:
        states.append(experiment.state_dict())
        experiment.step()
    for name in ("cut", "student", "unpack_model"):
        monkeypatch.setattr(narrowing, name, lambda *_: pytest.fail("done again"))
    monkeypatch.setattr(narrowing.Texts, "loss_nats", lambda *_: pytest.fail("measured again"))
    again = begin(config)
    for state in [*states, experiment.state_dict()]:
        again.load_state_dict(state)
        assert again.charts()
    assert (again.progress, same(again.model_tensors(), experiment.model_tensors())) == (1.0, True)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_state_can_be_loaded_twice(steps):
    """Training on changes nothing of it, the optimizer's tensors neither: in the trial that it is of, and in one that goes on."""
    config = config_of("group_lasso", updates_per_step=3, lasso_rule=STEERED["lasso_rule"])
    experiment = begin(config)
    for _ in range(steps):
        experiment.step()
    state, again = experiment.state_dict(), begin(config)
    expected, reports = experiment.step(), []
    for _ in range(2):
        again.load_state_dict(state)
        reports.append(again.step())
        for tensor in again.model_tensors().values():
            tensor.zero_()
    assert reports == [expected] * 2


def test_a_trial_goes_on_with_a_base_model_that_nobody_asks_any_more():
    """As a state holds its own model; without a teacher, the base model may be gone."""
    config = config_of("random")
    state = begin(config).state_dict()
    again = begin(config, lambda: {**given(), "base": {}})
    again.load_state_dict(state)
    assert go_on(again)[-1]["kept_loss_nats"] == run(config)[1][-1]["kept_loss_nats"]


def test_an_experiment_is_built_with_what_it_needs(tmp_path):
    """From a storage that has all of it."""

    class Filled(Shared):
        def get(self, recipe, device):
            names = {recipe.key: name for name, recipe in Narrowing.needs(TINY).items()}
            return given()[names[recipe.key]]

    shared = Filled(Folder(tmp_path))
    experiment = build_experiment(Narrowing, config_of("random", teacher_share=0.5), device=CPU, shared=shared)
    assert experiment.step() == finished("random")[1][0]


def test_a_model_that_was_given_away_is_not_the_trials_own():
    """Rebuilding one and training it leaves the trial's as it was."""
    experiment = begin(config_of("random"))
    model, before = rebuilt(experiment), {name: tensor.clone() for name, tensor in experiment.model_tensors().items()}
    with torch.no_grad():
        for parameter in (*model.parameters(), *base_model().parameters()):
            parameter.zero_()
    assert same(experiment.model_tensors(), before)
