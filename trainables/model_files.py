"""A trained model as files: `model.safetensors`, `experiment.json` and what else its experiment needs to build it again.

No file of a model's folder is unpickled or executed; the experiment that it names is imported from where Python finds it.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import safetensors.torch
from torch import Tensor

from trainables.registry import load_experiment
from trainables.storage import Folder, storage_errors

TENSORS_FILE = "model.safetensors"
RECIPE_FILE = "experiment.json"


def save_model(
    folder: Folder, name: str, config: Any, tensors: Mapping[str, Tensor], files: Mapping[str, bytes] = MappingProxyType({})
) -> None:
    """Write trained networks and what rebuilds them.

    Args:
        name: the experiment, as `trainables.registry.load_experiment` takes it.
        tensors: its `model_tensors()`.
        files: its `model_files()`.

    Raises:
        StorageError: if the storage does not take them.
    """
    data = safetensors.torch.save(dict(tensors), metadata={"format": "pt"})  # transformers asks for a format
    recipe = {"experiment": name, "config": dataclasses.asdict(config)}
    with storage_errors("models"):
        folder.write(TENSORS_FILE, data)
        for file_name, content in files.items():
            folder.write(file_name, content)
        folder.write(RECIPE_FILE, json.dumps(recipe, indent=2).encode())


def load_model(folder: str | Path) -> Any:
    """Build the trained networks of a folder that `save_model` wrote: whatever its experiment's `rebuild` returns.

    Raises:
        ValueError: if the folder does not hold both files.
    """
    place = Folder(folder)
    try:
        recipe, tensors = json.loads(place.read(RECIPE_FILE)), safetensors.torch.load(place.read(TENSORS_FILE))
    except FileNotFoundError as error:
        raise ValueError(
            f"a model folder must hold {RECIPE_FILE} and {TENSORS_FILE}, but {error}; download a trial's `model` artifact"
        ) from error
    files = {name: place.read(name) for name in place.names() if name not in (TENSORS_FILE, RECIPE_FILE)}
    experiment = load_experiment(recipe["experiment"])
    return experiment.rebuild(experiment.Config(**recipe["config"]), tensors, files)
