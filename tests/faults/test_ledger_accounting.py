"""What a study says it spent, against what the operating system says, while workers are killed at random moments."""

import contextlib
import os
import random
import shutil
import sqlite3
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import commands
import psutil
import pytest

from study import open_study
from study.home import Home
from study.recording.outbox import Outbox
from study.running.ledger import Ledger
from trainables.attempt import CHECKPOINT_INTERVAL

pytestmark = pytest.mark.faults

SPACE = Path(__file__).parent / "burning.py.txt"
STEP_CPU_SECONDS, STEP_FLOPS, NUM_STEPS, NUM_TRIALS, NUM_WORKERS = 0.1, 1e6, 24, 50, 2
NUM_KILLS, CPU_SECONDS_BETWEEN_KILLS = 10, (3.0, 17.0)  # which come as often on a busy machine
AGREEMENT = 0.03
LAUNCH, RESUME = ("launch", "burning:burning", "--name", "b"), ("resume", "b")
SAVING_SECONDS = 2.0  # that a worker keeps its slot after its last report, on a busy machine
SEED = int(os.environ.get("STUDY_KILL_SEED", "0"))


@pytest.fixture
def desk(tmp_path):
    """The folder in which a user works, with a module of the user's own."""
    shutil.copy(SPACE, tmp_path / SPACE.stem)
    return tmp_path


@dataclass
class Account:
    """What the operating system books to a worker, and until when it was seen at work."""

    cpu_seconds: float = 0.0
    until_s: float = 0.0
    has_worked: bool = False
    is_killed: bool = False


class Accounts:
    """Watches the workers of a launch, whose process id is given, and kills one now and then."""

    def __init__(self, driver, seed):
        self.workers: dict[psutil.Process, Account] = {}
        self._driver, self._random, self._others = psutil.Process(driver), random.Random(seed), set()
        self._is_over, self._thread = threading.Event(), threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._is_over.set()
        self._thread.join()

    def sum(self, attribute):
        return sum(getattr(account, attribute) for account in self.workers.values())

    def slot_seconds(self, since_s):
        """Wall time of all slots: each ends when its last worker does no more; who was killed has left it to another."""
        return sum(account.until_s - since_s for account in self.workers.values() if not account.is_killed)

    def _watch(self):
        next_look, next_kill, may_be_starting = 0.0, self._random.uniform(*CPU_SECONDS_BETWEEN_KILLS), True
        while not self._is_over.wait(0.02):
            if time.monotonic() >= next_look:
                self._find_workers()
                next_look = time.monotonic() + 0.2
            alive = [worker for worker in self.workers if self._sample(worker)]
            victims = [worker for worker in alive if may_be_starting or self.workers[worker].has_worked]
            if victims and self.sum("cpu_seconds") >= next_kill and self.sum("is_killed") < NUM_KILLS:
                victim = self._random.choice(victims)
                may_be_starting = self.workers[victim].has_worked  # a trial that is lost ever again without a step fails
                self._kill(victim)
                next_kill += self._random.uniform(*CPU_SECONDS_BETWEEN_KILLS)

    def _find_workers(self):
        """Those that run our class, and whatever Ray starts after the first of them: nobody else asks it for a process."""
        with contextlib.suppress(psutil.Error):
            for process in self._driver.children(recursive=True):
                with contextlib.suppress(psutil.Error, IndexError):
                    command = process.cmdline()
                    works = command[0].startswith("ray::") and "Trainable" in command[0]
                    is_new = process not in self._others and any("default_worker.py" in word for word in command)
                    if works or (self.workers and is_new):
                        account = self.workers.setdefault(process, Account())
                        account.has_worked |= works
                        account.until_s = time.time() if command[0].endswith(".train") else account.until_s
                    elif process not in self.workers:
                        self._others.add(process)

    def _sample(self, worker):
        """Note a worker's time; return whether it lives."""
        with contextlib.suppress(psutil.Error):
            times, account = worker.cpu_times(), self.workers[worker]
            account.cpu_seconds = times.user + times.system
            return worker.status() != psutil.STATUS_ZOMBIE
        return False

    def _kill(self, worker):
        with contextlib.suppress(psutil.Error):
            worker.suspend()  # so that nothing goes by between the last look and the end
            if self._sample(worker):
                worker.kill()
                self.workers[worker].is_killed = True


def events(home, *kinds):
    """Kind, trial and time in seconds of each, in their order."""
    with contextlib.closing(sqlite3.connect(home / "studies" / "b" / "outbox.db")) as connection:
        fields = ", ".join(f"json_extract(payload, '$.{name}')" for name in ("kind", "trial", "time_ms"))
        rows = connection.execute(f"SELECT {fields} FROM event ORDER BY seq").fetchall()
    return [(kind, trial, time_ms / 1000) for kind, trial, time_ms in rows if kind in kinds]


def books(home):
    with contextlib.closing(Outbox(Home(home).study("b").outbox_file)) as outbox:
        return Ledger.sum(outbox.ledgers().values())


def start(*words, home, desk):
    return commands.start(*words, "--max-concurrent", str(NUM_WORKERS), home=home, cwd=desk)


def test_the_ledger_agrees_with_the_operating_system_whoever_is_killed(home, desk, monkeypatch):
    monkeypatch.setenv(CHECKPOINT_INTERVAL, "0.3")
    process = start(*LAUNCH, home=home, desk=desk)
    with Accounts(process.pid, SEED) as accounts:
        out, err = process.communicate(timeout=600)
    assert accounts.sum("is_killed") == NUM_KILLS, out + err
    assert {row.state for row in open_study("b", home=home).trials()} == {"finished"}
    assert Counter(trial for _, trial, _ in events(home, "trial_end")) == dict.fromkeys(range(NUM_TRIALS), 1)
    ledger = books(home)
    cpu_seconds, slot_seconds = accounts.sum("cpu_seconds"), accounts.slot_seconds(events(home, "trial_start")[0][2])
    deviations = sum(ledger.cpu_seconds.values()) / cpu_seconds - 1, ledger.held_seconds / slot_seconds - 1
    of_system = f"{deviations[0]:+.2%} of {cpu_seconds:.1f} CPU seconds, {deviations[1]:+.2%} of {slot_seconds:.1f} s held"
    print(f"seed {SEED}: {of_system}")
    assert deviations == pytest.approx((0, 0), abs=AGREEMENT)
    trained = NUM_TRIALS * NUM_STEPS
    assert ledger.flops["useful"] == trained * STEP_FLOPS
    assert ledger.cpu_seconds["useful"] == pytest.approx(0.75 * trained * STEP_CPU_SECONDS, rel=0.1)
    assert ledger.cpu_seconds["evaluation"] == pytest.approx(0.25 * trained * STEP_CPU_SECONDS, rel=0.1)
    assert 0 < ledger.cpu_seconds["repeated"] < ledger.cpu_seconds["idle"]  # beside what a dozen workers import
    assert ledger.seconds.keys() == ledger.cpu_seconds.keys() == {"useful", "evaluation", "repeated", "idle"}


def sessions(option, *limits, home, desk):
    """A launch, and a resume with more: the limit of each, once it is spent."""
    for words, limit in zip((LAUNCH, RESUME), limits, strict=False):
        process = start(*words, option, str(limit), home=home, desk=desk)
        out, err = process.communicate(timeout=300)
        assert (process.returncode, err) == (0, ""), out + err
        assert "study resume b" in out
        yield limit


def worked_seconds(home):
    """Of all attempts, each until it was heard last; and what the longest report but the first of an attempt took."""
    begun, heard, longest, total = {}, {}, 0.0, 0.0
    for kind, trial, time_s in events(home, "trial_start", "measurement", "trial_end", "trial_interrupted"):
        if kind == "trial_start":
            begun[trial] = time_s
        elif kind == "measurement":
            longest = max(longest, time_s - heard.get(trial, time_s))
            heard[trial] = time_s
        elif trial in heard:
            total += heard.pop(trial) - begun.pop(trial)
    return total, longest


def test_a_study_ends_within_one_report_of_each_worker_of_its_operations(home, desk):
    for limit in sessions("--flops", 4e7, 7e7, home=home, desk=desk):
        assert limit <= sum(books(home).flops.values()) <= limit + NUM_WORKERS * STEP_FLOPS  # a step is a report


def test_a_study_ends_within_one_report_of_each_worker_of_its_cpu_hours(home, desk):
    for limit in sessions("--cpu-hours", 0.006, 0.011, home=home, desk=desk):
        worked, report = worked_seconds(home)
        assert worked <= 3600 * limit + NUM_WORKERS * report
        assert 3600 * limit <= books(home).held_seconds <= 3600 * limit + NUM_WORKERS * (report + SAVING_SECONDS)


def test_a_study_ends_within_one_report_of_each_worker_of_its_time(home, desk):
    for limit in sessions("--time-budget", 12, home=home, desk=desk):
        worked, report = worked_seconds(home)
        assert 0 < worked <= NUM_WORKERS * (limit + report)
