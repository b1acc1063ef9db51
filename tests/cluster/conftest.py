"""What tests of clusters share: one for a module, and the folder in which a user works."""

import shutil
from pathlib import Path

import pytest
from clusters import two_nodes

HERE = Path(__file__).parent
MODULES = {"user_space": HERE.parent / "study" / "user_space.py.txt", "long_trials": HERE / "long_trials.py.txt"}


@pytest.fixture(scope="module")
def cluster():
    """Address of a cluster for all tests of a module."""
    with two_nodes() as made:
        yield made.address


@pytest.fixture
def desk(tmp_path):
    """The folder in which a user works, with modules of the user's own."""
    for name, source in MODULES.items():
        shutil.copy(source, tmp_path / f"{name}.py")
    return tmp_path
