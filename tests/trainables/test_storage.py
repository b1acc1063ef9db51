import pytest

from trainables.storage import Folder


def test_a_file_is_seen_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = Folder(tmp_path / "deep" / "er")
    assert folder.names() == []
    folder.write("a", b"one")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        folder.write("a", b"two")
    assert folder.read("a") == b"one"
    assert folder.names() == ["a"]
    assert [path.name for path in (tmp_path / "deep" / "er").iterdir()] == ["a"]


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
    folder.write("a", b"1")
    assert (folder.names(), folder.read("a")) == (["a"], b"1")
    folder.download(tmp_path / "copy")
    folder.delete("a")
    folder.delete("a")
    assert folder.names() == folder.child("nowhere").names() == []
