"""Things to make and to share, and folders to share them in, for the tests of trainables/shared.py."""

from pathlib import Path

import pytest
import torch

from trainables.shared import Recipe
from trainables.storage import Folder

CPU = torch.device("cpu")


def disk_in(tmp_path):
    return Folder(tmp_path / "storage" / "shared")


def bucket_in(tmp_path):
    """A folder that goes through pyarrow, as an object store does."""
    pytest.importorskip("pyarrow")
    (tmp_path / "bucket").mkdir()
    return Folder(f"file://{tmp_path}/bucket")


def recipe(value=1.0, *, seed=1, name="teacher", make=None):
    """A thing whose value tells who made it."""
    return Recipe(name=name, ingredients={"seed": seed}, make=make or (lambda _: {"weight_NM": torch.full((3, 2), float(value))}))


def unmade():
    """A recipe that must be found, not made."""
    return recipe(make=lambda _: pytest.fail("made again"))


def value_of(tensors):
    (value,) = set(tensors["weight_NM"].flatten().tolist())
    return value


def files(folder, ending=".safetensors"):
    return [name for name in folder.names() if name.endswith(ending)]


def path_of(folder, name):
    return Path(folder.address.removeprefix("file://")) / name
