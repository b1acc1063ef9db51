import logging
import pickle

import pytest
import torch

from trainables.checkpoints import load_checkpoint, save_checkpoint
from trainables.storage import Folder


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def state(value):
    return {"value": value, "tensor": torch.full((3,), float(value)), "list": [1, None, "x"]}


def test_the_newest_comes_back_and_two_are_kept(folder):
    assert load_checkpoint(folder) is None
    for step in range(1, 12):
        save_checkpoint(folder, step, state(step))
    loaded = load_checkpoint(folder)
    assert loaded["value"] == 11
    assert torch.equal(loaded["tensor"], torch.full((3,), 11.0))
    assert len(folder.names()) == 2


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: data[:100] + b"!" + data[101:], lambda data: b""])
def test_a_damaged_newest_falls_back_to_the_one_before_with_a_word_about_it(folder, caplog, damage):
    save_checkpoint(folder, 1, state(1))
    save_checkpoint(folder, 2, state(2))
    newest = folder.names()[-1]
    folder.write(newest, damage(folder.read(newest)))
    with caplog.at_level(logging.WARNING):
        assert load_checkpoint(folder)["value"] == 1
    assert "is damaged; going back to the one before" in caplog.text


def test_other_files_are_no_checkpoints(folder):
    folder.write("notes.txt", b"x")
    assert load_checkpoint(folder) is None


def test_nothing_but_tensors_and_plain_values_is_unpickled(folder):
    save_checkpoint(folder, 1, {"bad": Evil()})
    with pytest.raises(pickle.UnpicklingError):
        load_checkpoint(folder)


class Evil:
    """Somebody else's class: unpickling it would run its code."""
