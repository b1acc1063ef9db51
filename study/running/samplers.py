"""Optuna's samplers by name, each seeded anew for every trial, so that a trial's draw depends on nothing but
the study's seed, the trial's number and the trials before it: not on how often the study was interrupted.
"""

import hashlib
import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from study.errors import UserError
from study.spec import Parameter

SAMPLERS = ("tpe", "nsga2", "random", "qmc", "gp")
_WITHOUT_CONDITIONS = ("qmc", "gp")


def check_sampler(name: str, parameters: Sequence[Parameter]) -> str | None:
    """Check that a sampler can serve a space; return a notice for the user, if there is one.

    Raises:
        UserError: if there is no such sampler, or it can learn none of the space's parameters.
    """
    if name not in SAMPLERS:
        raise UserError(f"sampler must be one of {', '.join(SAMPLERS)}, but got {name!r}; tpe suits most studies")
    conditional = [parameter.name for parameter in parameters if parameter.conditional]
    if name in _WITHOUT_CONDITIONS and conditional:
        if len(conditional) == len(parameters):
            able = ", ".join(sampler for sampler in SAMPLERS if sampler not in _WITHOUT_CONDITIONS)
            raise UserError(
                f"sampler {name} needs a parameter that every trial has, but all of this space's are conditional; use {able}"
            )
        return f"sampler {name} draws conditional parameters at random: {', '.join(conditional)}"
    return None


def make_sampler(name: str, seed: int, trial: int) -> optuna.samplers.BaseSampler:
    """Make the sampler that draws one trial."""
    return _SeededByName(name, seed, trial)


class _SeededByName(optuna.samplers.BaseSampler):
    """Draws what is drawn one parameter at a time from a seed of the parameter's own.

    A trial whose drawing was cut short has some parameters already when it is drawn again; the others still come out as
    they would have.
    """

    def __init__(self, name: str, seed: int, trial: int) -> None:
        self._name, self._seed, self._trial = name, seed, trial
        self._joint = _optuna_sampler(name, seed, trial, f"{seed}/{trial}")

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._joint.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._joint.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        own = _optuna_sampler(self._name, self._seed, self._trial, f"{self._seed}/{self._trial}/{param_name}")
        return own.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._joint.before_trial(study, trial)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._joint.after_trial(study, trial, state, values)


class _SortedParents(optuna.samplers.NSGAIISampler):
    """Draws from parents in the order of their numbers.

    Differs: Optuna draws from them as they were selected, until they are written down, and later in this order; so a draw
    that was cut short came out otherwise.
    """

    def select_parent(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        return sorted(super().select_parent(study, generation), key=lambda trial: trial.number)


class _PlacedByNumber(optuna.samplers.QMCSampler):
    """Gives each trial the place in the sequence that its number says.

    Differs: Optuna counts draws in its storage, and a draw that was cut short took two places.
    """

    def __init__(self, place: int, **options: Any) -> None:
        super().__init__(**options)
        self._place = place

    def _find_sample_id(self, study: optuna.Study, search_space: dict[str, BaseDistribution]) -> int:
        return self._place


def _optuna_sampler(name: str, seed: int, trial: int, key: str) -> optuna.samplers.BaseSampler:
    """Optuna's sampler, seeded by a key; only a sequence that spans the study takes the study's seed."""
    own_seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "little")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match name:
            case "tpe":
                return optuna.samplers.TPESampler(seed=own_seed, multivariate=True, group=True)
            case "nsga2":
                return _SortedParents(seed=own_seed)
            case "random":
                return optuna.samplers.RandomSampler(seed=own_seed)
            case "qmc":  # one sequence for the whole study
                return _PlacedByNumber(
                    trial,
                    seed=seed,
                    scramble=True,
                    independent_sampler=optuna.samplers.RandomSampler(seed=own_seed),
                    warn_independent_sampling=False,
                )
            case "gp":
                return optuna.samplers.GPSampler(seed=own_seed, deterministic_objective=True)
            case _:
                raise UserError(f"sampler must be one of {', '.join(SAMPLERS)}, but got {name!r}; use tpe")
