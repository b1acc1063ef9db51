"""Replicates: several trials of every parameter set, each with a seed of its own, so that chance shows.

With R replicates, trial n is replicate n % R of the parameter set that trial n - n % R drew.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from study.errors import UserError
from trainables.registry import load_experiment

SEED = "seed"
STRIDE = 1_000_000
"""From the seed of one replicate to that of the next. Networks of a trial draw from seed + i: no two may share a stream."""


def check_replicates(replicates: int, experiment: str) -> None:
    """Check that an experiment can be run with seeds of our choice.

    Args:
        replicates: trials of every parameter set, at least 1.

    Raises:
        UserError: if its Config has no integer `seed`, or does not take the replicates' ones.
    """
    if replicates < 1:
        raise UserError(f"replicates must be at least 1, but got {replicates}; leave them out for one trial a parameter set")
    if replicates == 1:
        return
    config_class: Any = load_experiment(experiment).Config
    if not any(field.name == SEED and field.type in (int, "int") for field in dataclasses.fields(config_class)):
        raise UserError(
            f"replicates need an experiment whose Config has an integer seed, but {experiment} has none and got {replicates}; "
            "leave them out"
        )
    config = config_class.tiny()
    try:
        dataclasses.replace(config, seed=config.seed + STRIDE * (replicates - 1))
    except ValueError as error:
        raise UserError(
            f"replicates need seeds {STRIDE:,} apart, but {experiment} does not take those of {replicates} ({error}); use fewer"
        ) from error


def first_of(trial: int, replicates: int) -> int:
    """The trial whose parameter set a trial repeats: itself if it is to draw one."""
    return trial - trial % replicates


def of_replicate(config: Mapping[str, Any], replicate: int, experiment: str) -> dict[str, Any]:
    """The config of a replicate: another seed, else the same.

    Args:
        config: arguments of the experiment's Config, of the first trial with them.
        replicate: 0 for that trial itself.

    Raises:
        ValueError: if they are no valid config.
    """
    if replicate == 0:
        return dict(config)
    seed = load_experiment(experiment).Config(**config).seed
    return {**config, SEED: seed + STRIDE * replicate}
