"""What travels to a cluster: our packages, the user's own modules, where they come from; and what a job makes of it there."""

import json
import shlex
import subprocess
import sys

import pytest

from study.errors import UserError
from study.remote import packing
from study.remote.packing import own_modules, pack_code
from study.remote.shipped import (
    CODE_FILE,
    DIFF_FILE,
    Shipped,
    folder_now,
    lacking,
    modules_now,
    shipped_code,
    version_differences,
)

ROOT = packing._folder_of_ours()
MISSING = Shipped(commit=None, versions={"torch": "2.13.0", "no-such-package": "1.0", "neither": "not installed"})


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def desk(tmp_path):
    """A user's folder with a space of their own, and much that is no code."""
    folder = tmp_path / "desk"
    files = (
        "my_space.py", "pack/__init__.py", "pack/inner/part.py", "pack/weights.bin", "pack/.hidden/a.py", "data/big.csv",
        "notes.md", "random.py", "numpy.py", "study/__init__.py", ".venv/lib/x.py", "not-a-module.py",
    )  # fmt: skip
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"# {name}\n")
    return folder


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "target"
    path.mkdir()
    return path


def test_the_users_python_files_travel_and_nothing_else_of_theirs(desk, target):
    pack_code(target, modules=desk)
    theirs = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()} - {CODE_FILE, DIFF_FILE}
    theirs = {name for name in theirs if name.split("/")[0] not in packing.OURS}
    assert theirs == {
        "my_space.py",
        "pack/__init__.py",
        "pack/inner/part.py",
    }  # what hides an installed module does not, here too
    assert (target / "study/__init__.py").read_bytes() == (ROOT / "study/__init__.py").read_bytes()


def test_our_packages_travel_whole_and_without_what_python_made_of_them(target):
    pack_code(target, modules=None)
    for package in packing.OURS:
        ours = {p.relative_to(ROOT) for p in (ROOT / package).rglob("*") if p.is_file() and "__pycache__" not in p.parts}
        assert ours == {p.relative_to(target) for p in (target / package).rglob("*") if p.is_file()}


def test_what_is_too_much_to_be_code_is_refused(desk, target, monkeypatch):
    monkeypatch.setattr(packing, "_MAX_BYTES", 2**20)
    (desk / "pack" / "table.py").write_text("#" * 2**21)
    with pytest.raises(UserError, match=r"must be at most 1 MiB in all, but those of .* are 2 MiB; launch from a folder"):
        pack_code(target, modules=desk)


def test_a_folder_that_is_no_longer_there_is_told_in_one_sentence(tmp_path, target):
    with pytest.raises(UserError, match=r"moved is not \(No such file or directory\); put it there again"):
        pack_code(target, modules=tmp_path / "moved")


def test_the_same_code_is_the_same_package(desk, tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        pack_code(folder, modules=desk)
    read = [{p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()} for folder in folders]
    assert read[0] == read[1]  # Ray sends it once


def test_commit_and_diff_of_the_users_checkout_travel(desk, target):
    git(desk, "init", "-q")
    git(desk, "add", "my_space.py", "data", "notes.md")
    git(desk, "commit", "-qm", "one")
    (desk / "my_space.py").write_text("changed = 1\n")
    git(desk, "add", "my_space.py")
    (desk / "notes.md").write_text("changed, not staged\n")
    (desk / "new one.py").write_text("fresh = 1\n")
    shipped = pack_code(target, modules=desk)
    assert shipped.commit == git(desk, "rev-parse", "HEAD") + "-dirty"
    _, head, diff = (target / DIFF_FILE).read_text().partition(f"# desk, beyond commit {git(desk, 'rev-parse', 'HEAD')}\n")
    assert head
    for line in ("+changed = 1", "+changed, not staged", "+fresh = 1"):
        assert f"\n{line}\n" in diff
    assert "big.csv" not in diff


def test_a_long_diff_is_cut_and_says_so(desk, target):
    git(desk, "init", "-q")
    (desk / "my_space.py").write_text("long = 1  # a line\n" * 100_000)
    pack_code(target, modules=desk)
    diff = (target / DIFF_FILE).read_text()
    assert diff.count("\n+long = 1") < 60_000
    assert "[cut here: a diff is kept up to 1 MiB]\n" in diff


def test_code_outside_git_has_no_commit_and_no_diff_of_its_own(desk, target):
    assert pack_code(target, modules=desk).commit is None
    assert not any(line.startswith("# desk") for line in (target / DIFF_FILE).read_text().splitlines())


@pytest.mark.parametrize(
    ("space", "is_own"),
    [("my_space:f", True), ("pack.inner:f", True), ("cmsp_curriculum:tiny", False), ("study:f", False), ("", False)],
)
def test_modules_travel_only_if_the_space_is_the_users(desk, space, is_own):
    assert own_modules(space, desk) == (desk if is_own else None)


def test_a_job_takes_modules_from_the_code_that_came_with_it(target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (modules_now(["/old"]), modules_now([]), folder_now("/old")) == ("/old", None, "/old")
    assert shipped_code() is None
    monkeypatch.chdir(target)
    shipped = pack_code(target, modules=None)
    assert (modules_now(["/old"]), modules_now([]), folder_now("/old")) == (str(target), None, ".")
    assert shipped_code() == shipped


def test_versions_that_differ_are_named_and_the_same_ones_are_not(target):
    shipped = pack_code(target, modules=None)
    assert version_differences(shipped) == []
    assert lacking(shipped) == []
    here = shipped.versions["ray"]
    assert version_differences(Shipped(None, shipped.versions | {"ray": "2.1.0"})) == [f"ray {here} where you have 2.1.0"]


def test_packages_that_are_not_there_are_told_from_those_that_nobody_has():
    assert lacking(MISSING) == ["no-such-package"]


@pytest.fixture
def packed(desk, target):
    pack_code(target, modules=desk)
    return target


def run_driver(folder, *arguments):
    """As Ray runs a job: by a shell, in the folder of its code."""
    words = [sys.executable, "-m", "study.remote.driver", *arguments]
    environment = {"PATH": "/usr/bin:/bin", "STUDY_HOME": str(folder / "home")}
    return subprocess.run(shlex.join(words), shell=True, cwd=folder, env=environment, capture_output=True, text=True)


def test_a_cluster_that_lacks_a_package_is_told_in_one_sentence(packed):
    fields = json.loads((packed / CODE_FILE).read_text())
    fields["versions"] |= {"no-such-package": "1.0", "torch": "1.0"}
    (packed / CODE_FILE).write_text(json.dumps(fields))
    result = run_driver(packed, "a", "a-1", "launch", "cmsp_curriculum:tiny", "--name=a")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "lacks no-such-package; use the image of deploy/, or install them on every node" in result.stderr


def test_a_driver_names_other_versions_and_no_word_of_a_command_is_read_by_the_shell(packed, tmp_path):
    fields = json.loads((packed / CODE_FILE).read_text())
    fields["versions"]["torch"] = "1.0"
    (packed / CODE_FILE).write_text(json.dumps(fields))
    evil = f"x='$(touch {tmp_path}/evil)'; touch {tmp_path}/evil \"`touch {tmp_path}/evil`"
    result = run_driver(packed, "a", "a-1", "launch", "my_space:f", "--name=a", f"--set={evil}")
    assert result.returncode == 2
    assert result.stdout.startswith("note: the cluster has torch ")
    assert "where you have 1.0" in result.stdout
    assert "my_space has no function 'f'" in result.stderr  # it was imported from the folder
    assert not (tmp_path / "evil").exists()
