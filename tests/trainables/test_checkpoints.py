import logging
import pickle

import pytest
import torch

from trainables.checkpoints import Checkpoints
from trainables.failures import SupersededError
from trainables.storage import Folder


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def state(value):
    return {"value": value, "tensor": torch.full((3,), float(value)), "list": [1, None, "x"]}


def test_the_newest_comes_back_and_two_are_kept(folder):
    assert Checkpoints(folder, 1).load() is None
    for step in range(1, 12):
        Checkpoints(folder, 1).save(step, state(step))
    loaded = Checkpoints(folder, 1).load()
    assert loaded["value"] == 11
    assert torch.equal(loaded["tensor"], torch.full((3,), 11.0))
    assert len(folder.names()) == 2


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: data[:100] + b"!" + data[101:], lambda data: b""])
def test_a_damaged_newest_falls_back_to_the_one_before_with_a_word_about_it(folder, caplog, damage):
    Checkpoints(folder, 1).save(1, state(1))
    Checkpoints(folder, 1).save(2, state(2))
    newest = folder.names()[-1]
    folder.write(newest, damage(folder.read(newest)))
    with caplog.at_level(logging.WARNING):
        assert Checkpoints(folder, 1).load()["value"] == 1
    assert "is damaged; going back to the one before" in caplog.text


def test_other_files_are_no_checkpoints(folder):
    folder.write("notes.txt", b"x")
    assert Checkpoints(folder, 1).load() is None


def test_nothing_but_tensors_and_plain_values_is_unpickled(folder):
    Checkpoints(folder, 1).save(1, {"bad": Evil()})
    with pytest.raises(pickle.UnpicklingError):
        Checkpoints(folder, 1).load()


class Evil:
    """Somebody else's class: unpickling it would run its code."""


def test_what_an_older_attempt_writes_after_a_younger_one_took_over_is_never_loaded(folder, monkeypatch):
    older, younger = Checkpoints(folder, 1), Checkpoints(folder, 2)
    older.save(1, state(1))
    with monkeypatch.context() as patch:  # it looks before the claim is there and writes after it
        looked = older._look()
        patch.setattr(older, "_look", lambda: looked)
        younger.claim()
        older.save(5, state(5))
    assert younger.load()["value"] == 1
    younger.save(2, state(2))
    assert Checkpoints(folder, 3).load()["value"] == 2
    assert len([name for name in folder.names() if name.endswith(".pt")]) == 2


def test_an_older_attempt_can_neither_write_nor_read_nor_claim(folder):
    older = Checkpoints(folder, 1)
    older.save(1, state(1))
    Checkpoints(folder, 3).claim()
    before = folder.names()
    for act in (older.claim, older.refuse_if_superseded, older.load, lambda: older.save(2, state(2))):
        with pytest.raises(SupersededError, match="attempt 3 took over from attempt 1"):
            act()
    assert folder.names() == before


def test_an_attempt_that_died_before_it_claimed_shuts_nobody_out(folder):
    Checkpoints(folder, 1).save(1, state(1))
    second = Checkpoints(folder, 2)
    second.claim()
    second.save(2, state(2))
    fourth = Checkpoints(folder, 4)  # the third was handed out and never began
    fourth.claim()
    assert fourth.load()["value"] == 2
    assert [name for name in folder.names() if name.endswith(".json")] == ["attempt-0004.json"]


def test_what_a_killed_attempt_left_half_written_goes_when_the_next_one_takes_over(folder, tmp_path):
    Checkpoints(folder, 1).save(1, state(1))
    half = tmp_path / ".step-00000002-0001-aa.pt.77.partial"
    half.write_bytes(b"half")
    Checkpoints(folder, 2).claim()
    assert not half.exists()
    assert Checkpoints(folder, 2).load()["value"] == 1


def test_a_damaged_checkpoint_does_not_take_the_place_of_the_one_before(folder):
    attempt = Checkpoints(folder, 1)
    attempt.save(5, state(5))
    attempt.save(10, state(10))
    folder.write(folder.names()[-1], b"torn")
    again = Checkpoints(folder, 2)
    again.claim()
    assert again.load()["value"] == 5
    again.save(6, state(6))
    kept = [name for name in folder.names() if name.endswith(".pt")]
    assert [int(name.split("-")[1]) for name in kept] == [5, 6]
