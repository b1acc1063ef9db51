"""A study's storage says who runs it, so that two hosts with the same study do not; without Ray."""

import io
import json
import os
import threading
import time

import commands
import pytest
from rich.console import Console

from study import run
from study.errors import UserError
from study.running import lease
from study.running.lease import StorageLease, Tenant
from trainables.storage import Folder

ELSEWHERE = Tenant("elsewhere", 12, "/home/other")


class Storage(Folder):
    """One that can be made to fail, to hang, and to have a clock of its own."""

    is_broken = False
    hangs_s = 0.0
    ahead_s = 0.0

    def write(self, name, data):
        if self.is_broken:
            raise OSError("no route to host")
        time.sleep(self.hangs_s)
        super().write(name, data)

    def modified_ns(self):
        return {name: written + int(self.ahead_s * 1e9) for name, written in super().modified_ns().items()}


@pytest.fixture(params=["", "file://"])
def storage(request, tmp_path):
    """A study's folder, on a disk and as an object store gives it."""
    (tmp_path / "storage").mkdir()
    return Storage(f"{request.param}{tmp_path}/storage")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lease, "RENEW_S", 0.02)


def taking(storage, home="/home/me", on_lost=None):
    """The lease of a session of this process, which must not be lost."""
    return StorageLease(storage, name="s", study_id="id", home=home, on_lost=on_lost or (lambda other: pytest.fail(str(other))))


def write(storage, tenant, age_s=0.0):
    """Put somebody's lease there, renewed a while ago."""
    storage.write("lease.json", json.dumps({"host": tenant.host, "pid": tenant.pid, "home": tenant.home}).encode())
    path = f"{storage.address.removeprefix('file://')}/lease.json"
    then = os.stat(path).st_mtime_ns - int(age_s * 1e9)
    os.utime(path, ns=(then, then))


def fields(storage):
    return json.loads(storage.read("lease.json"))


def num_renewed(storage):
    try:
        return fields(storage).get("renewed", 0)
    except ValueError:  # half a file: not what an object store shows, but what pyarrow's own disk does
        return 0


def test_the_storage_says_who_runs_the_study_while_it_runs(storage):
    with taking(storage):
        here = {"host": os.uname().nodename, "pid": os.getpid(), "home": "/home/me"}
        assert fields(storage) == here | {"study_id": "id", "renewed": 1}
        assert storage.names() == ["lease.json"]
    assert storage.names() == []


def test_it_is_renewed_while_the_study_runs(storage, quick):
    with taking(storage):
        commands.wait_until(lambda: num_renewed(storage) > 3, "renewals", 10)


@pytest.mark.parametrize("ahead_s", [0, 3600, -3600])
def test_another_host_is_waited_for_until_its_lease_expires_by_the_storages_clock(storage, ahead_s):
    storage.ahead_s = ahead_s
    write(storage, ELSEWHERE, age_s=50)
    with pytest.raises(UserError, match=r"by one process at a time, but 's' is being run by process 12 on elsewhere .*; wait"):
        taking(storage).__enter__()
    assert storage.names() == ["lease.json"]
    assert fields(storage)["host"] == "elsewhere"
    write(storage, ELSEWHERE, age_s=70)
    with taking(storage):
        assert fields(storage)["pid"] == os.getpid()


def test_a_session_that_was_killed_here_is_not_waited_for(storage):
    write(storage, Tenant(os.uname().nodename, 12, "/home/me"))
    with taking(storage):
        assert fields(storage)["pid"] == os.getpid()


def test_a_copy_of_the_home_on_the_same_host_is_waited_for(storage):
    write(storage, Tenant(os.uname().nodename, 12, "/home/me"))
    with pytest.raises(UserError, match=r"is being run by process 12 on .* \(from /home/me\)"):
        taking(storage, home="/home/copy").__enter__()


def test_a_lease_that_cannot_be_read_is_somebodys(storage):
    storage.write("lease.json", b"{")
    with pytest.raises(UserError, match="process unknown on unknown"):
        taking(storage).__enter__()


def test_a_session_renews_a_lease_that_is_gone_or_damaged(storage, quick):
    with taking(storage):
        storage.delete("lease.json")
        commands.wait_until(lambda: "lease.json" in storage.names(), "a renewal", 10)
        storage.write("lease.json", b"{}")
        commands.wait_until(lambda: num_renewed(storage) > 0, "a renewal", 10)
    assert storage.names() == []


def test_a_storage_that_fails_for_a_while_fails_no_run(storage, quick):
    with taking(storage):
        storage.is_broken = True
        time.sleep(0.1)
        storage.is_broken = False
        before = num_renewed(storage)
        commands.wait_until(lambda: num_renewed(storage) > before, "a renewal", 10)


def test_a_storage_that_hangs_holds_up_neither_the_run_nor_its_end(tmp_path, quick):
    storage = Storage(tmp_path)
    with taking(storage):
        storage.hangs_s = 1.0
        time.sleep(0.1)  # the next renewal hangs
        start = time.monotonic()
    assert time.monotonic() - start < 0.5
    assert storage.names() == ["lease.json"]  # to expire


def test_a_storage_that_fails_at_the_start_is_named(storage):
    storage.is_broken = True
    with pytest.raises(UserError, match=r"the storage must say who runs a study, .*no route to host.*; mend it"):
        taking(storage).__enter__()


def test_who_was_thought_dead_hears_once_that_another_host_runs_the_study_and_leaves_it_the_lease(storage, quick):
    heard, told = [], threading.Event()

    def hear(other):
        heard.append(other)
        told.set()

    with taking(storage, on_lost=hear):
        write(storage, ELSEWHERE)
        assert told.wait(10)
        time.sleep(0.1)
    assert heard == [ELSEWHERE]
    assert fields(storage)["host"] == "elsewhere"


@pytest.fixture
def session(home, monkeypatch):
    """A study whose sessions look at the storage, and end."""
    seen = []

    def look(folder, spec, *_, **__):
        seen.append(Folder(spec.storage).child(spec.name).names())
        if len(seen) > 1:
            raise UserError("it ends badly")

    monkeypatch.setattr(run, "run_session", look)
    return seen


def test_a_launch_holds_the_lease_and_gives_it_back_however_it_ends(home, session):
    run.launch("cmsp_curriculum:tiny", name="s")
    with pytest.raises(UserError, match="badly"):
        run.launch("cmsp_curriculum:tiny", name="s")
    assert session == [["lease.json", "study.json"]] * 2
    assert Folder(home / "storage" / "s").names() == ["study.json"]


def test_a_launch_is_refused_while_another_host_runs_the_study(home, session):
    write(Folder(home / "storage" / "s"), ELSEWHERE)
    with pytest.raises(UserError, match="process 12 on elsewhere"):
        run.launch("cmsp_curriculum:tiny", name="s")
    assert session == []


def test_a_run_that_lost_its_lease_is_asked_to_stop(home, quick, monkeypatch):
    def look(folder, spec, *_, **__):
        write(Folder(spec.storage).child("s"), ELSEWHERE)
        commands.wait_until(folder.is_asked_to_stop, "the stop", 10)

    monkeypatch.setattr(run, "run_session", look)
    told = io.StringIO()
    run.launch("cmsp_curriculum:tiny", name="s", console=Console(file=told, width=200))
    assert "stopping: s is being run by process 12 on elsewhere (from /home/other), too" in told.getvalue()
