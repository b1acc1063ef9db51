"""Find out what a search space does by running it on fixed draws: its parameters, its configs, its mistakes.

A space is code, so its identity is what it does and not how it is written: a comment changes nothing, a changed range or
a changed default changes the hash.
"""

import dataclasses
import hashlib
import inspect
import json
import math
import random
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from search_spaces.space import Constraint, StudySpace
from study.errors import UserError
from study.spec import Parameter, SpaceDescription
from trainables.experiment import Metric, metric_named
from trainables.registry import load_experiment
from trainables.shared import Recipe

NUM_PROBES = 64
_MLFLOW_NAME = re.compile(r"[\w\-. /]{1,200}", re.ASCII)


class ProbeTrial:
    """Stands in for an Optuna trial: draws from a generator that no library version changes.

    Args:
        number: seeds the draws.
        given: parameters that are not drawn.
    """

    def __init__(self, number: int, given: Mapping[str, Any] | None = None) -> None:
        self.number = number
        self.params: dict[str, Any] = {}
        self.values: dict[str, str] = {}
        self._given = dict(given or {})
        self._random = random.Random(number)

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> float:
        share = self._random.random()
        if step is not None:
            value = low + step * math.floor(share * (math.floor((high - low) / step + 1e-9) + 1))
        elif log:
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            value = low + share * (high - low)
        return float(self._draw(name, min(value, high), _range(low, high, step, log), lambda x: low <= x <= high))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        share = self._random.random()
        if log:
            value = min(high, int(math.exp(math.log(low) + share * (math.log(high + 1) - math.log(low)))))
        else:
            value = low + step * int(share * ((high - low) // step + 1))
        values = _range(low, high, step if step != 1 else None, log)
        return int(self._draw(name, value, values, lambda x: low <= x <= high and (log or (x - low) % step == 0)))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        value = choices[int(self._random.random() * len(choices))]
        return self._draw(name, value, " | ".join(map(str, choices)), lambda x: x in choices)

    def set_user_attr(self, key: str, value: Any) -> None:
        """Taken and forgotten: a note on a trial is no part of what the space does."""

    def _draw(self, name: str, value: Any, values: str, allows: Callable[[Any], bool]) -> Any:
        check_mlflow_name("a parameter's name", name)
        if name in self._given and not allows(self._given[name]):
            raise UserError(
                f"a first trial's {name} must be in {values}, but got {self._given[name]!r}; widen the range or change it"
            )
        self.values.setdefault(name, values)
        return self.params.setdefault(name, self._given.get(name, value))


def check_mlflow_name(what: str, name: str) -> None:
    """Refuse a name that MLflow would not take.

    Raises:
        UserError: saying what may be in it.
    """
    if not _MLFLOW_NAME.fullmatch(name):
        raise UserError(f"{what} must be letters, digits, '_', '-', '.', ' ' and '/', but got {name!r}; rename it")


def _range(low: float, high: float, step: float | None, log: bool) -> str:
    return f"{low:g} .. {high:g}" + (f" by {step:g}" if step is not None else "") + (" (log)" if log else "")


def describe_space(space: StudySpace) -> SpaceDescription:
    """Run a space on `NUM_PROBES` fixed draws and check everything it makes.

    Raises:
        UserError: if a draw is no valid config, or an objective or a constraint is no fitting metric.
    """
    try:
        experiment = load_experiment(space.experiment)
    except ValueError as error:
        raise UserError(str(error)) from error
    metrics = experiment.METRICS
    for name in (metric.name.removesuffix("*") for metric in metrics):
        check_mlflow_name("a metric's name", name)
        if name == "progress" or name.startswith("candidate/"):
            raise UserError(f"a metric must not be called {name}, but one of METRICS is; that name is the study's own")
    for name in space.objectives:
        _check_goal("an objective", name, space.experiment, metrics)
    if space.representative is not None:
        _check_goal("a representative", space.representative, space.experiment, metrics)
    for name in (*space.at_rungs, *space.at_rungs.values()):
        _check_goal("what early stopping goes by, and in the place of what,", name, space.experiment, metrics)
    for constraint in map(Constraint.parse, space.constraints):
        if metric_named(metrics, constraint.metric) is None:
            raise UserError(
                f"a constraint must bound a metric of {space.experiment}, but got {str(constraint)!r}; "
                f"use {', '.join(sorted(metric.name for metric in metrics))}"
            )
    trials = [ProbeTrial(number) for number in range(NUM_PROBES)]
    configs = [_config_of(space, experiment.Config, trial) for trial in trials]
    for number, given in enumerate(space.first_trials):
        _check_first_trial(space, experiment.Config, number, given)
    keys = sorted({key for config in configs for key in config})
    fixed = {key: configs[0][key] for key in keys if all(config.get(key) == configs[0].get(key) for config in configs)}
    varied = [{key: value for key, value in config.items() if key not in fixed} for config in configs]
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    return SpaceDescription(
        experiment=space.experiment,
        objectives={name: _goal(metrics, name) for name in space.objectives},
        constraints=tuple(str(Constraint.parse(text)) for text in space.constraints),
        parameters=tuple(
            Parameter(
                name=name,
                values=next(trial.values[name] for trial in trials if name in trial.values),
                conditional=not all(name in trial.params for trial in trials),
            )
            for name in names
        ),
        fixed=fixed,
        first_trials=tuple(dict(given) for given in space.first_trials),
        varied_digest=_digest(varied),
        representative={} if space.representative is None else {space.representative: _goal(metrics, space.representative)},
        at_rungs={stand_in: _goal(metrics, stand_in) for stand_in in (space.at_rungs.get(n, n) for n in space.objectives)},
    )


def check_inputs(space: StudySpace) -> None:
    """Have the experiment look at what the configs of a space need, such as files of data: before any trial runs.

    Raises:
        UserError: if something is missing or damaged.
    """
    experiment = load_experiment(space.experiment)
    recipes: dict[str, Recipe] = {}
    try:
        for number in range(NUM_PROBES):
            config = experiment.Config(**_config_of(space, experiment.Config, ProbeTrial(number)))
            recipes |= {recipe.key: recipe for recipe in experiment.needs(config).values()}
        for recipe in recipes.values():
            recipe.check_all()
    except (ValueError, OSError, ImportError) as error:
        raise UserError(str(error)) from error


def _goal(metrics: Sequence[Metric], name: str) -> str:
    """Which way is better; empty for what is no metric, or has no better way."""
    metric = metric_named(metrics, name)
    return "" if metric is None else metric.goal or ""


def _check_goal(what: str, name: str, experiment: str, metrics: Sequence[Metric]) -> None:
    if not _goal(metrics, name):
        with_goal = ", ".join(sorted(metric.name for metric in metrics if metric.goal))
        raise UserError(f"{what} must be a metric of {experiment} that has a goal, but got {name!r}; use {with_goal}")


def _check_first_trial(space: StudySpace, config_class: Any, number: int, given: Mapping[str, Any]) -> None:
    trial = ProbeTrial(number, given)
    _config_of(space, config_class, trial)
    if trial.params != dict(given):
        raise UserError(
            f"a first trial must give exactly the parameters that its config draws, but {dict(given)} draws "
            f"{sorted(trial.params)}; add or remove what differs"
        )


def _digest(configs: list[dict[str, Any]]) -> str:
    """Hash configs; floats count to ten digits, since machines differ in the last ones of exp and log."""
    rounded = [{k: f"{v:.10g}" if isinstance(v, float) else v for k, v in config.items()} for config in configs]
    return hashlib.sha256(json.dumps(rounded, sort_keys=True).encode()).hexdigest()[:16]


def _config_of(space: StudySpace, config_class: Any, trial: ProbeTrial) -> dict[str, Any]:
    """The whole config, defaults included, that a draw makes, as JSON gives it back."""
    try:
        suggested = space.suggest(trial)  # type: ignore[arg-type]  # a stand-in with the methods that spaces use
    except UserError:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"suggest(trial) must return a config, but raised {type(error).__name__}: {error} at {place.filename}:"
            f"{place.lineno} for the draw {trial.params}; mend it"
        ) from error
    if not isinstance(suggested, Mapping):
        raise UserError(f"suggest(trial) must return the config's arguments as a dict, but got {suggested!r}; return a dict")
    try:
        config = config_class(**suggested)
    except (TypeError, ValueError) as error:
        known = ", ".join(inspect.signature(config_class).parameters)
        raise UserError(
            f"every draw of a space must be a valid config, but {trial.params} is not ({error}); change the space, "
            f"using the arguments of {config_class.__name__}: {known}"
        ) from error
    as_json: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return as_json
