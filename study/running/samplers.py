"""The samplers of studies, each seeded anew for every trial, so that a trial's draw depends on nothing but the study's seed,
the trial's number and the trials before it: not on how often the study was interrupted.

That holds for the names in `SAMPLERS` and for Optuna's own classes, whose memory is the record. Any other class may have
memory of its own: one of it draws for a whole session, and a study that was interrupted may draw otherwise.
"""

import copy
import functools
import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from study.errors import UserError
from study.running.sampler_classes import check_options, load_sampler_class, takes_seed
from study.running.samplers_by_name import GuardedCmaEs, PlacedByNumber, SortedNSGAII, SortedNSGAIII, StoppedTPE, seed_of
from study.spec import Parameter

_CLASSES: dict[str, type[BaseSampler]] = {
    "tpe": StoppedTPE,
    "nsga2": SortedNSGAII,
    "nsga3": SortedNSGAIII,
    "gp": optuna.samplers.GPSampler,
    "cmaes": GuardedCmaEs,
    "qmc": PlacedByNumber,
    "random": optuna.samplers.RandomSampler,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "tpe": {"multivariate": True, "group": True, "constant_liar": True},  # what other workers are at is no place to go
    "gp": {"deterministic_objective": True},
    "cmaes": {"warn_independent_sampling": False},
    "qmc": {"scramble": True, "warn_independent_sampling": False},
}
SAMPLERS = tuple(_CLASSES)
_WITHOUT_CONDITIONS = ("qmc", "gp", "cmaes")
_NONE: Mapping[str, Any] = MappingProxyType({})


def check_sampler(
    name: str,
    options: Mapping[str, Any],
    parameters: Sequence[Parameter],
    *,
    num_objectives: int,
    constraints: Sequence[str] = (),
) -> str | None:
    """Check that a sampler can serve a space; return a notice for the user, if there is one.

    Args:
        name: one of `SAMPLERS`, `module:Class` or `optunahub:package:Class` (`study.running.sampler_classes`).
        options: JSON values for its constructor, beside the seed.

    Raises:
        UserError: if there is no such sampler, it does not take the options, or it can learn none of the space's parameters.
    """
    sampler_class = _class_of(name)
    check_options(name, sampler_class, options)
    try:
        _optuna_sampler(name, 0, 0, "0", options)
    except Exception as error:
        raise UserError(
            f"a sampler must take its options, but {name} answers {dict(options)} with {type(error).__name__}: {error}; "
            "change them, or leave them out"
        ) from error
    if name not in SAMPLERS:
        return _notice_of_other(name, sampler_class)
    if name == "cmaes" and num_objectives > 1:
        raise UserError(f"sampler cmaes needs one objective, but the space has {num_objectives}; use tpe, nsga2 or gp")
    ignored = f"sampler cmaes ignores constraints: {', '.join(constraints)}" if name == "cmaes" and constraints else None
    return "; ".join(filter(None, (_notice_of_random(name, parameters), ignored))) or None


def _notice_of_other(name: str, sampler_class: type[BaseSampler]) -> str | None:
    if not takes_seed(sampler_class):
        return f"sampler {name} takes no seed: the same study launched again draws otherwise"
    if not _is_optunas(sampler_class):
        return f"sampler {name} may have memory of its own: a study that is interrupted may draw otherwise"
    return None


def _notice_of_random(name: str, parameters: Sequence[Parameter]) -> str | None:
    """What a sampler cannot learn; refuses one that can learn nothing."""
    conditional = [parameter.name for parameter in parameters if parameter.conditional]
    choices = [p.name for p in parameters if name == "cmaes" and not p.conditional and " | " in p.values]
    unlearned = conditional + choices if name in _WITHOUT_CONDITIONS else []
    if not unlearned:
        return None
    kinds = " and ".join(["conditional"] * bool(conditional) + ["categorical"] * bool(choices))
    if len(unlearned) == len(parameters):
        able = ", ".join(sampler for sampler in SAMPLERS if sampler not in _WITHOUT_CONDITIONS)
        numeric = "numeric parameter" if name == "cmaes" else "parameter"
        raise UserError(f"sampler {name} needs a {numeric} that every trial has, but all of this space's are {kinds}; use {able}")
    return f"sampler {name} draws {kinds} parameters at random: {', '.join(unlearned)}"


def make_sampler(name: str, seed: int, trial: int, options: Mapping[str, Any] = _NONE, *, attempt: int = 0) -> BaseSampler:
    """Make the sampler that draws one trial.

    Args:
        name: as in `check_sampler`.
        seed: of the study.
        trial: number of the draw.
        attempt: 0, or how many draws for this trial were thrown away (`study.running.drawing`).
    """
    if has_memory(name):
        return _Unstoppable(_optuna_sampler(name, seed, trial, f"{seed}/{trial}", options))
    return _SeededByName(name, seed, trial, options, attempt)


def has_memory(name: str) -> bool:
    """Whether a sampler may remember what is not in the record, so that one is to draw for a whole session."""
    return name not in SAMPLERS and not _is_optunas(_class_of(name))


class _Unstoppable(BaseSampler):
    """A sampler that may not end the study when it thinks that all is tried: the budget does."""

    def __init__(self, sampler: BaseSampler) -> None:
        self._sampler = sampler

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._sampler.before_trial(study, trial)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        deaf = copy.copy(study)
        deaf.stop = lambda: None  # type: ignore[method-assign]  # Optuna's raises outside of its own loop
        self._sampler.after_trial(deaf, trial, state, values)


class _SeededByName(_Unstoppable):
    """Draws what is drawn one parameter at a time from a seed of the parameter's own.

    A trial whose drawing was cut short has some parameters already when it is drawn again; the others still come out as
    they would have.
    """

    def __init__(self, name: str, seed: int, trial: int, options: Mapping[str, Any], attempt: int) -> None:
        self._key = f"{seed}/{trial}" if attempt == 0 else f"{seed}/{trial}#{attempt}"
        self._make = functools.partial(_optuna_sampler, name, seed, trial, options=options)
        super().__init__(self._make(self._key))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        own = self._make(f"{self._key}/{param_name}")
        return own.sample_independent(study, trial, param_name, param_distribution)


def _class_of(name: str) -> type[BaseSampler]:
    if name in _CLASSES:
        return _CLASSES[name]
    if ":" in name:
        return load_sampler_class(name)
    raise UserError(f"sampler must be one of {', '.join(SAMPLERS)} or module:Class, but got {name!r}; tpe suits most studies")


def _is_optunas(sampler_class: type[BaseSampler]) -> bool:
    return sampler_class.__module__.startswith("optuna.") or sampler_class in _CLASSES.values()


def _optuna_sampler(name: str, seed: int, trial: int, key: str, options: Mapping[str, Any]) -> BaseSampler:
    """Optuna's sampler, seeded by a key; only a sequence that spans the study takes the study's seed."""
    sampler_class: Any = _class_of(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.simplefilter("ignore", FutureWarning)  # of an option that Optuna means to drop one day
        if name == "qmc":  # one sequence for the whole study
            at_random = optuna.samplers.RandomSampler(seed=seed_of(key))
            sampler: BaseSampler = sampler_class(seed=seed, independent_sampler=at_random, **_options(name, options))
        else:
            own = {"seed": seed_of(key)} if takes_seed(sampler_class) else {}
            sampler = sampler_class(**own, **_options(name, options))
    if isinstance(sampler, PlacedByNumber):
        sampler.place = trial
    if isinstance(sampler, SortedNSGAIII):
        sampler.study_seed = seed
    return sampler


def _options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    ours: dict[str, Any] = {**_DEFAULTS.get(name, {}), **options}
    return ours | ({"group": False} if ours.get("multivariate") is False else {})
