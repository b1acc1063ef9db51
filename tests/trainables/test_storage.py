import errno
import os
import shutil
from pathlib import Path

import pytest

from trainables.storage import Folder, StorageError, storage_errors


def fail_to_sync(monkeypatch, code):
    def fsync(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("os.fsync", fsync)


def test_a_file_is_seen_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = Folder(tmp_path / "deep" / "er")
    assert folder.names() == []
    folder.write("a", b"one")
    fail_to_sync(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match=r"Input/output error: .*/deep/er/a'"):
        folder.write("a", b"two")
    assert folder.read("a") == b"one"
    assert folder.names() == ["a"]
    assert [path.name for path in (tmp_path / "deep" / "er").iterdir()] == ["a"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_with_its_place_and_leaves_nothing_half_written(tmp_path, monkeypatch, code):
    folder = Folder(tmp_path / "trial")
    fail_to_sync(monkeypatch, code)
    with pytest.raises(StorageError) as raised, storage_errors("checkpoints"):
        folder.write("a", b"one")
    assert str(raised.value) == (
        f"the storage must have room for checkpoints, but the disk of {tmp_path}/trial is full ({os.strerror(code)}); make room "
        "there and resume the study"
    )
    assert list((tmp_path / "trial").iterdir()) == []


def test_a_storage_that_fails_otherwise_is_to_be_mended(tmp_path, monkeypatch):
    fail_to_sync(monkeypatch, errno.EIO)
    with (
        pytest.raises(StorageError, match=r"must keep logs, but it does not \(.*/trial/a'\); mend it and resume"),
        storage_errors("logs"),
    ):
        Folder(tmp_path / "trial").write("a", b"one")


def test_several_files_are_each_synced_before_they_take_their_place_and_their_folder_after_the_last(tmp_path, monkeypatch):
    done, sync, rename = [], os.fsync, os.rename

    def note_sync(descriptor):
        place = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        done.append(("sync", place.name.split(".")[1] if place.is_file() else "folder"))
        sync(descriptor)

    def note_rename(source, destination):
        done.append(("place", Path(destination).name))
        rename(source, destination)

    monkeypatch.setattr("os.fsync", note_sync)
    monkeypatch.setattr("os.rename", note_rename)
    Folder(tmp_path / "model").write_all({"b": b"2", "a": b"1"})
    assert done == [("sync", "b"), ("place", "b"), ("sync", "a"), ("place", "a"), ("sync", "folder")]
    assert [Folder(tmp_path / "model").read(name) for name in ("a", "b")] == [b"1", b"2"]


def test_of_several_files_those_after_one_that_fails_are_not_written(tmp_path):
    (tmp_path / "b").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        Folder(tmp_path).write_all({"a": b"1", "b": b"2", "c": b"3"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_children_deletion_and_download(tmp_path):
    child = Folder(tmp_path).child("x/y")
    child.write("b", b"2")
    child.write("a", b"1")
    child.download(tmp_path / "copy")
    child.delete("b")
    child.delete("b")
    assert child.names() == ["a"]
    assert (tmp_path / "copy" / "b").read_bytes() == b"2"
    with pytest.raises(FileNotFoundError):
        child.read("b")


def test_a_uri_goes_through_pyarrow(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "bucket").mkdir()
    folder = Folder(f"file://{tmp_path}/bucket")
    assert not folder.is_local
    folder.write_all({"a": b"1", "b": b"2"})
    folder.delete("b")
    assert (folder.names(), folder.read("a")) == (["a"], b"1")
    folder.download(tmp_path / "copy")
    folder.delete("a")
    folder.delete("a")
    assert folder.names() == folder.child("nowhere").names() == []


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_folder_knows_its_bytes_and_goes_with_all_that_is_in_it(tmp_path, scheme):
    if scheme:
        pytest.importorskip("pyarrow")
    folder = Folder(f"{scheme}{tmp_path}/study")
    assert folder.sizes() == {}
    folder.remove()
    (tmp_path / "study" / "a" / "b").mkdir(parents=True)
    (tmp_path / "study" / "a" / "b" / ".c.partial").write_bytes(b"123")
    (tmp_path / "study" / "d").write_bytes(b"1")
    (tmp_path / "beside").write_bytes(b"1")
    assert folder.sizes() == {"a/b/.c.partial": 3, "d": 1}
    folder.child("a").remove()
    assert folder.sizes() == {"d": 1}
    folder.remove()
    folder.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["beside"]


def test_what_somebody_removes_or_writes_meanwhile_does_not_stop_a_removal(tmp_path, monkeypatch):
    original, calls = shutil.rmtree, []

    def disturbed(path):
        calls.append(path)
        if len(calls) == 1:
            raise OSError(errno.ENOTEMPTY, "somebody writes")
        if len(calls) == 2:
            raise FileNotFoundError("somebody removes")
        original(path)

    (tmp_path / "a").mkdir()
    monkeypatch.setattr("shutil.rmtree", disturbed)
    Folder(tmp_path / "a").remove()
    assert len(calls) == 3
    assert not (tmp_path / "a").exists()


def test_of_a_linked_folder_the_link_goes_and_never_what_it_leads_to(tmp_path):
    Folder(tmp_path / "big disk").write("a", b"1")
    (tmp_path / "trial").symlink_to(tmp_path / "big disk")
    Folder(tmp_path / "trial").remove()
    assert [path.name for path in tmp_path.iterdir()] == ["big disk"]
    assert Folder(tmp_path / "big disk").read("a") == b"1"
