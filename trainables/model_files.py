"""A trained model as files: `model.safetensors`, `experiment.json`, its passport, and what else its experiment needs.

No file of a model's folder is unpickled or executed, and of the modules that it names only ours are imported, and those that
its reader trusts.
"""

import dataclasses
import json
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from trainables.experiment import Experiment
from trainables.passport import PASSPORT_FILE, PROOF_FILE, Answers, Making, ask, passport_files
from trainables.registry import load_experiment, load_named
from trainables.storage import Folder, storage_errors

TENSORS_FILE = "model.safetensors"
RECIPE_FILE = "experiment.json"
_OWN_FILES = (TENSORS_FILE, RECIPE_FILE, PASSPORT_FILE, PROOF_FILE)

logger = logging.getLogger(__name__)


def save_model(
    folder: Folder,
    name: str,
    config: Any,
    tensors: Mapping[str, Tensor],
    files: Mapping[str, bytes] = MappingProxyType({}),
    making: Making | None = None,
) -> None:
    """Write trained networks, what rebuilds them, and their passport; `experiment.json` comes last, when all others are there.

    Args:
        name: the experiment, as `trainables.registry.load_experiment` takes it.
        tensors: its `model_tensors()`.
        files: its `model_files()`.
        making: what the passport tells beside; None for nothing.

    Raises:
        StorageError: if the storage does not take them.
    """
    experiment_class = load_experiment(name)
    data = safetensors.torch.save(dict(tensors), metadata={"format": "pt"})  # transformers asks for a format
    recipe = json.dumps({"experiment": name, "config": dataclasses.asdict(config)}, indent=2).encode()
    answers = _answers(experiment_class, config, tensors, files)
    all_files = {TENSORS_FILE: data, **files, RECIPE_FILE: recipe}
    passport = passport_files(name, experiment_class, config, all_files, making or Making(), answers)
    with storage_errors("models"):
        folder.write_all({TENSORS_FILE: data, **files, **passport, RECIPE_FILE: recipe})


def _answers(
    experiment_class: type[Experiment], config: Any, tensors: Mapping[str, Tensor], files: Mapping[str, bytes]
) -> Answers:
    """Rebuild the model and ask it; the trial stands without that."""
    try:
        on_cpu = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        return ask(experiment_class, config, experiment_class.rebuild(config, on_cpu, files))
    except Exception:
        logger.exception("could not rebuild the model to probe it; its passport has no probe")
        return Answers()


def load_model(folder: str | Path, *, trusted: Collection[str] = ()) -> Any:
    """Build the trained networks of a folder that `save_model` wrote: whatever its experiment's `rebuild` returns.

    Args:
        trusted: experiments of modules of your own, as `module:Class`, that may be imported if the folder names one.

    Raises:
        ValueError: if the folder does not hold both files, whole, or names a module that is neither ours nor trusted.
    """
    place = Folder(folder)
    law, remedy = f"a model folder must hold {RECIPE_FILE} and {TENSORS_FILE}", "download a trial's `model` artifact"
    try:
        recipe, tensors = json.loads(place.read(RECIPE_FILE)), safetensors.torch.load(place.read(TENSORS_FILE))
        name, fields = recipe["experiment"], dict(recipe["config"])
    except (FileNotFoundError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"{law}, but {error}; {remedy}") from error
    experiment = load_named(name, trusted)
    return experiment.rebuild(experiment.Config(**fields), tensors, further_files(place))


def further_files(folder: Folder) -> dict[str, bytes]:
    """What an experiment put beside its model, by name: its `model_files()`."""
    return {name: folder.read(name) for name in folder.names() if name not in _OWN_FILES}
