"""Which experiments there are: one line each. A new experiment is one more line here."""

import importlib
from collections.abc import Collection

from trainables.experiment import Experiment
from trainables.laws import require

EXPERIMENTS: dict[str, str] = {
    "cmsp_curriculum": "trainables.cmsp.curriculum:Curriculum",
    "cmsp_nonlocality": "trainables.cmsp.nonlocality:Nonlocality",
    "llm_attribution": "trainables.llm.attribution:Attribution",
    "llm_narrowing": "trainables.llm.narrowing:Narrowing",
    "mnist_narrowing": "trainables.mnist.narrowing:Narrowing",
}


def load_experiment(name: str) -> type[Experiment]:
    """Import an experiment class.

    Args:
        name: a name of `EXPERIMENTS`, or `module:Class` of somebody's own.

    Raises:
        ValueError: if there is no such experiment.
    """
    if ":" not in name and name not in EXPERIMENTS:
        raise ValueError(
            f"experiment must be one of {', '.join(sorted(EXPERIMENTS))} or module:Class, but got {name!r}; "
            "a new experiment needs one line in trainables/registry.py, or its module:Class"
        )
    module_name, _, class_name = EXPERIMENTS.get(name, name).partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(f"experiment {name!r} must be importable, but {error}; check its module and class name") from error
    if not (isinstance(found, type) and issubclass(found, Experiment)):
        raise ValueError(f"experiment must be a subclass of trainables.experiment.Experiment, but got {name!r}; derive from it")
    return found


def load_named(name: str, trusted: Collection[str]) -> type[Experiment]:
    """Import the experiment that a file names: one of ours, or one that its reader trusts, and no other module.

    Args:
        trusted: experiments of somebody's own, as `module:Class`, that may be imported.

    Raises:
        ValueError: if it is neither, or cannot be imported.
    """
    is_known = isinstance(name, str) and (name in EXPERIMENTS or name in EXPERIMENTS.values() or name in trusted)
    law = f"a file's experiment must be one of {', '.join(sorted(EXPERIMENTS))}, or one that you trust"
    require(is_known, law, repr(name), "to import that module, name it in `trusted`; do so only if you know it")
    return load_experiment(name)
