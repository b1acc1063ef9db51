"""Who makes a shared thing: one of many that ask, be it killed, late or beaten."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from shared_things import CPU, files, path_of, recipe, unmade, value_of

from trainables.shared import Shared
from trainables.storage import Folder, StorageError

CHILD = """
import os, signal, sys, time
from pathlib import Path
import torch
from trainables.shared import Recipe, Shared, make_alone
from trainables.storage import Folder

address, work = sys.argv[1], Path(sys.argv[2])

def make(device):
    with (work / "makes").open("a") as file:
        file.write(f"{os.getpid()}\\n")
    exec(sys.argv[3])
    return {"weight_NM": torch.full((3, 2), float(os.getpid()))}

(work / f"ready-{os.getpid()}").touch()
while not (work / "go").exists():
    time.sleep(0.005)
recipe = Recipe(name="teacher", ingredients={"seed": 1}, make=make)
print(Shared(Folder(address), settle_s=1.0).get(recipe, torch.device("cpu"))["weight_NM"][2, 1].item())
"""


@pytest.fixture
def work(tmp_path):
    """Where processes meet: what they made, and who is ready."""
    path = tmp_path / "work"
    path.mkdir()
    return path


def hidden(folder):
    return [path.name for path in Path(folder.address).iterdir() if path.name.startswith(".")]


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextlib.contextmanager
def processes(folder, work, *, number, while_making):
    """Let processes ask at the same time."""
    command = [sys.executable, "-W", "error", "-c", CHILD, folder.address, str(work), while_making]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(number)]
    try:
        wait_until(lambda: len(list(work.glob("ready-*"))) == number)
        (work / "go").touch()
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def makers(work):
    return (work / "makes").read_text().split() if (work / "makes").exists() else []


def answers(started):
    values = [float(process.communicate(timeout=60)[0]) for process in started]
    assert all(process.returncode == 0 for process in started)
    return values


def test_processes_that_need_the_same_at_once_make_it_once_and_a_later_one_makes_nothing(disk, work):
    with processes(disk, work, number=2, while_making="time.sleep(0.5)") as started:
        first, second = answers(started)
    assert [str(int(first))] == makers(work)
    assert first == second == value_of(Shared(disk).get(unmade(), CPU))
    assert len(files(disk)) == 1


def test_who_waits_makes_it_when_the_maker_is_killed(disk, work, caplog):
    caplog.set_level(logging.INFO)
    with processes(disk, work, number=1, while_making="time.sleep(600)") as (maker,), ThreadPoolExecutor() as pool:
        wait_until(lambda: makers(work))
        waiting = pool.submit(Shared(disk).get, recipe(7), CPU)
        wait_until(lambda: "waits for teacher-" in caplog.text)
        assert files(disk) == []
        maker.kill()
        assert value_of(waiting.result(timeout=60)) == 7
    assert len(files(disk)) == 1


def test_what_a_maker_wrote_before_it_was_killed_is_neither_used_nor_kept(disk, work):
    with processes(disk, work, number=1, while_making="os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)") as (maker,):
        assert maker.wait(timeout=60) == -signal.SIGKILL
    partial = hidden(disk)
    assert len(partial) == 1
    assert path_of(disk, partial[0]).stat().st_size > 0
    Shared(disk).get(recipe(name="other"), CPU)
    assert hidden(disk) == partial  # it may be another's that is being written
    assert value_of(Shared(disk).get(recipe(7), CPU)) == 7
    assert hidden(disk) == []


def test_threads_of_a_process_make_it_once(disk):
    together, makes = threading.Barrier(4), []

    def make(_):
        makes.append(1)
        time.sleep(0.1)
        return {"weight_NM": torch.full((3, 2), 5.0)}

    def get(_):
        together.wait()
        return Shared(disk).get(recipe(make=make), CPU)

    with ThreadPoolExecutor(4) as pool:
        assert [value_of(tensors) for tensors in pool.map(get, range(4))] == [5.0] * 4
    assert len(makes) == 1


def test_a_thing_that_is_there_is_read_while_another_holds_the_lock(disk):
    def make(_):
        assert value_of(Shared(disk).get(unmade(), CPU)) == 1
        return {"other_N": torch.zeros(1)}

    Shared(disk).get(recipe(), CPU)
    Shared(disk).get(recipe(name="student", make=make), CPU)


def test_the_log_tells_who_makes_and_how_long(disk, caplog):
    caplog.set_level(logging.INFO)
    Shared(disk).get(recipe(), CPU)
    key = recipe().key
    assert [text.split(" in ")[0] for text in caplog.messages] == [f"makes {key}", f"made {key}"]
    assert caplog.messages[-1].endswith(" s")


def test_processes_that_race_on_an_object_store_use_the_same(bucket, work):
    until_both_make = "while len((work / 'makes').read_text().split()) < 2: time.sleep(0.005)"
    with processes(bucket, work, number=2, while_making=until_both_make) as started:
        first, second = answers(started)
    assert len(makers(work)) == 2
    assert first == second == value_of(Shared(bucket, settle_s=0).get(unmade(), CPU))
    assert len(files(bucket)) == len(files(bucket, ".claim")) == 1


def test_of_makers_that_claim_at_the_same_time_the_losers_remove_theirs(bucket):
    class Simultaneous(Folder):
        def write(self, name, data):
            if name.endswith(".claim"):
                together.wait()
            super().write(name, data)

    together = threading.Barrier(4)
    shared = Shared(Simultaneous(bucket.address), settle_s=0.5)
    with ThreadPoolExecutor(4) as pool:
        values = {value_of(tensors) for tensors in pool.map(lambda value: shared.get(recipe(value), CPU), range(4))}
    assert values == {value_of(Shared(bucket, settle_s=0).get(unmade(), CPU))}
    assert len(files(bucket)) == len(files(bucket, ".claim")) == 1


@pytest.mark.parametrize("tick_s", [1, 0])
def test_the_earliest_claim_wins_and_of_equal_ones_the_first_by_name(bucket, tick_s):
    claims = {}
    for value in range(3):
        Shared(bucket, settle_s=0).get(recipe(value), CPU)
        (claim,) = files(bucket, ".claim")
        claims[claim] = (value, bucket.read(claim))
        bucket.delete(claim)
    by_time = sorted(claims, reverse=bool(tick_s))
    for index, claim in enumerate(by_time):
        bucket.write(claim, claims[claim][1])
        os.utime(path_of(bucket, claim), (1e9 + tick_s * index,) * 2)
    assert value_of(Shared(bucket, settle_s=0).get(unmade(), CPU)) == claims[by_time[0]][0]


def test_an_earlier_claim_that_shows_late_still_wins(bucket, monkeypatch):
    Shared(bucket, settle_s=0).get(recipe(1), CPU)
    early = files(bucket, ".claim")[0]
    content = bucket.read(early)
    bucket.delete(early)
    Shared(bucket, settle_s=0).get(recipe(2), CPU)

    def meanwhile(seconds):
        assert seconds == 7.5
        bucket.write(early, content)
        os.utime(path_of(bucket, early), (1e9, 1e9))

    monkeypatch.setattr(time, "sleep", meanwhile)
    assert value_of(Shared(bucket, settle_s=7.5).get(unmade(), CPU)) == 1


def test_who_has_made_what_another_has_claimed_uploads_nothing(bucket):
    def make(_):
        Shared(bucket, settle_s=0).get(recipe(1), CPU)
        return {"weight_NM": torch.full((3, 2), 2.0)}

    written = []

    class Watched(Folder):
        def write(self, name, data):
            written.append(name)

    assert value_of(Shared(Watched(bucket.address), settle_s=0).get(recipe(make=make), CPU)) == 1
    assert written == []


def test_an_upload_that_nobody_claimed_is_not_used(bucket):
    class Failing(Folder):
        def write(self, name, data):
            if name.endswith(".claim"):
                raise ConnectionError("gone")
            super().write(name, data)

    with pytest.raises(StorageError, match="gone"):
        Shared(Failing(bucket.address), settle_s=0).get(recipe(1), CPU)
    assert len(files(bucket)) == 1
    assert value_of(Shared(bucket, settle_s=0).get(recipe(2), CPU)) == 2


def test_a_claim_to_what_is_not_there_is_told_of_and_removed(bucket, caplog):
    Shared(bucket, settle_s=0).get(recipe(1), CPU)
    bucket.delete(files(bucket)[0])
    assert value_of(Shared(bucket, settle_s=0).get(recipe(2), CPU)) == 2
    assert "is damaged; making it again" in caplog.text
    assert len(files(bucket)) == len(files(bucket, ".claim")) == 1
