"""Optuna's samplers by name, each seeded anew for every trial, so that a trial's draw depends on nothing but
the study's seed, the trial's number and the trials before it: not on how often the study was interrupted.
"""

import hashlib
import warnings
from collections.abc import Sequence

import optuna

from study.errors import UserError
from study.probe import Parameter

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
    digest = hashlib.blake2b(f"{seed}/{trial}".encode(), digest_size=4).digest()
    own_seed = int.from_bytes(digest, "little")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match name:
            case "tpe":
                return optuna.samplers.TPESampler(seed=own_seed, multivariate=True, group=True)
            case "nsga2":
                return optuna.samplers.NSGAIISampler(seed=own_seed)
            case "random":
                return optuna.samplers.RandomSampler(seed=own_seed)
            case "qmc":  # one sequence for the whole study: its place in it is kept in Optuna's storage
                return optuna.samplers.QMCSampler(
                    seed=seed,
                    scramble=True,
                    independent_sampler=optuna.samplers.RandomSampler(seed=own_seed),
                    warn_independent_sampling=False,
                )
            case "gp":
                return optuna.samplers.GPSampler(seed=own_seed, deterministic_objective=True)
            case _:
                raise UserError(f"sampler must be one of {', '.join(SAMPLERS)}, but got {name!r}; use tpe")
