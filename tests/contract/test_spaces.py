"""What every module of search_spaces promises."""

import importlib
import inspect

import pytest

from search_spaces.space import Constraint, StudySpace
from study.probe import describe_space
from study.spec import builtin_modules
from trainables.registry import EXPERIMENTS


def spaces_of(module_name):
    module = importlib.import_module(f"search_spaces.{module_name}")
    return {
        name: function
        for name, function in vars(module).items()
        if inspect.isfunction(function) and function.__module__ == module.__name__ and not name.startswith("_")
    }


ALL = [(module, name) for module in builtin_modules() for name in spaces_of(module)]


@pytest.mark.parametrize("module", builtin_modules())
def test_every_module_has_a_tiny_space_and_is_named_for_its_experiment(module):
    assert "tiny" in spaces_of(module)
    assert module in EXPERIMENTS


@pytest.mark.parametrize("module", sorted(EXPERIMENTS))
def test_every_experiment_has_spaces(module):
    assert module in builtin_modules()


@pytest.mark.parametrize(("module", "name"), ALL)
def test_every_draw_is_a_valid_config_and_every_objective_a_metric_with_a_goal(module, name):
    space = spaces_of(module)[name]()
    assert isinstance(space, StudySpace)
    description = describe_space(space)  # refuses a bad draw, objective or constraint
    assert description.parameters
    assert set(space.log_scale) <= set(space.objectives)
    assert space.color_by is None or space.color_by in {parameter.name for parameter in description.parameters}
    assert all(Constraint.parse(text) for text in space.constraints)


@pytest.mark.parametrize(("module", "name"), ALL)
def test_describing_a_space_twice_gives_the_same(module, name):
    assert describe_space(spaces_of(module)[name]()) == describe_space(spaces_of(module)[name]())


@pytest.mark.parametrize(("module", "name"), ALL)
def test_every_space_says_what_it_is_for(module, name):
    assert inspect.getdoc(spaces_of(module)[name])
