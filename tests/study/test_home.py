import os
import subprocess
import sys

import pytest

from study.errors import UserError
from study.home import Home, check_name, filesystem_of, refuse_network_filesystem


@pytest.mark.parametrize("name", ["a", "py-narrow_1.2", "0", "x" * 80])
def test_ordinary_names_are_taken(name):
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden", "-x", "a b", "ä", "x" * 81, "a\n"])
def test_a_name_that_could_not_be_a_path_is_refused_with_a_better_one(name):
    with pytest.raises(UserError, match="a study's name must be"):
        check_name(name)


@pytest.mark.parametrize("kind", ["nfs4", "lustre", "fuse.sshfs"])
def test_a_home_on_a_network_file_system_is_refused_with_the_remedy(tmp_path, kind):
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/root / ext4 rw 0 0\nserver:/export {tmp_path}/shared {kind} rw 0 0\n")
    (tmp_path / "shared").mkdir()
    assert filesystem_of(tmp_path / "shared" / "deep" / "home", mounts) == kind
    with pytest.raises(UserError, match=f"is on {kind}; set STUDY_HOME to a local folder"):
        refuse_network_filesystem(tmp_path / "shared" / "home", mounts)
    refuse_network_filesystem(tmp_path / "local", mounts)


def test_a_home_that_cannot_be_written_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="set STUDY_HOME to one that is"):
        Home(tmp_path / "file").prepare()


def test_the_home_comes_from_the_environment_unless_it_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_HOME", str(tmp_path / "env"))
    assert Home().path == tmp_path / "env"
    assert Home(tmp_path / "given").path == tmp_path / "given"


def test_only_one_process_holds_a_study_and_the_second_is_told_which(home):
    study = Home().study("s")
    with study.lease():
        assert study.holder() == {"host": os.uname().nodename, "pid": os.getpid(), "begun": False}
        study.say_begun()
        assert study.holder() == {"host": os.uname().nodename, "pid": os.getpid(), "begun": True}
        code = "from study.home import Home\nwith Home().study('s').lease(): pass"
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert f"is being run by process {os.getpid()}" in second.stderr
    assert study.holder() is None


def test_the_kernel_frees_the_lease_of_a_process_that_was_killed(home):
    code = "import os, signal\nfrom study.home import Home\nwith Home().study('s').lease(): os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    with Home().study("s").lease():
        assert Home().study("s").holder() is not None


def test_an_unknown_study_is_answered_with_those_there_are(home):
    with pytest.raises(UserError, match=r"there is no 'nope' \(there: none yet\)"):
        Home().study("nope").require()
