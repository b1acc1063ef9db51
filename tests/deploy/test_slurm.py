"""The SLURM script, run for real under a fake scheduler: one study in several allocations, on nodes whose disks are wiped."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path

import commands
import fake_slurm
import mlflow
import pytest
from fake_slurm import JOB

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]
NUM_TRIALS, NUM_STEPS = 4, 20
SPACE = f"""
from search_spaces.space import StudySpace


def space() -> StudySpace:
    def suggest(trial):
        return {{"x": trial.suggest_float("x", 0, 1), "num_steps": {NUM_STEPS}, "seconds_per_step": 0.5}}

    return StudySpace(experiment="user_space:Count", suggest=suggest, objectives=("above", "below"), num_trials={NUM_TRIALS})


def broken() -> StudySpace:
    def suggest(trial):
        return {{"x": trial.suggest_float("x", 0, 1), "behaviour": "bug"}}

    return StudySpace(experiment="user_space:Count", suggest=suggest, objectives=("above", "below"), num_trials=2)
"""


class Site:
    """A SLURM cluster of two nodes, and the folder in which a user works, which all its nodes see."""

    def __init__(self, folder: Path) -> None:
        self.desk, self.programs = folder / "desk", folder / "programs"
        self.local = Path(tempfile.mkdtemp(prefix="ns", dir="/tmp"))  # the paths of Ray's sockets must be short
        self.shared = self.desk / "narrow-studies" / "s"
        self.job = folder / "slurm" / JOB
        self.desk.mkdir()
        self.programs.mkdir()
        (self.desk / "long.py").write_text(SPACE)
        shutil.copy(ROOT / "tests/study/user_space.py.txt", self.desk / "user_space.py")
        for name in ("sbatch", "srun", "scontrol"):
            program = f"exec {sys.executable} {ROOT / 'tests/deploy/fake_slurm.py'} {name}"
            (self.programs / name).write_text(f'#!/bin/sh\n{program} "$@"\n')
            (self.programs / name).chmod(0o755)
        self.environment = os.environ | {
            "PATH": f"{self.programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "FAKE_SLURM": str(folder / "slurm"),
            "FAKE_SLURM_EPILOG": f"rm -rf {self.local}",
            "LOCAL": str(self.local),
            "VENV": sys.prefix,
            "SAVES": str(ROOT / "deploy/slurm/saves.py"),
            "HEAD_ADDRESS": "127.0.0.1",
            "SAVE_S": "2",
            "NARROW_STUDY_CHECKPOINT_S": "1",
        }

    @contextmanager
    def submitted(self, *arguments, space="long:space"):
        """A job that runs until this context is left."""
        process = subprocess.Popen(
            [self.programs / "sbatch", "--time=00:09:00", "--signal=B:USR1@60", "--nodes=2", "--cpus-per-task=1",
             f"--export=ALL,SPACE={space},NAME=s", ROOT / "deploy/slurm/study.sbatch", *arguments],
            cwd=self.desk, env=self.environment, start_new_session=True,
        )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            for restart in range(10):
                fake_slurm.end_all(f"{self.job}-{restart}")
            shutil.rmtree(self.local, ignore_errors=True)

    def control(self, *words):
        subprocess.run([self.programs / "scontrol", *words], env=self.environment, check=True)

    def log(self):
        return (self.job / "log").read_text() if (self.job / "log").exists() else ""

    def num_told(self):
        """Trials whose end the record knows, and steps that the study has heard of, in the newest save."""
        newest = max(self.shared.glob("saves/[0-9]*/studies/s"), default=None)
        if newest is None or not (newest / "optuna.db").exists():
            return 0, 0
        with closing(sqlite3.connect(newest / "optuna.db")) as record, closing(sqlite3.connect(newest / "outbox.db")) as outbox:
            if not record.execute("SELECT 1 FROM sqlite_master WHERE name = 'trials'").fetchone():
                return 0, 0  # it was saved in the instant in which the record was made
            (ended,) = record.execute("SELECT count(*) FROM trials WHERE state = 'COMPLETE'").fetchone()
            (steps,) = outbox.execute("SELECT count(*) FROM event WHERE key GLOB 'trial/*/step/*'").fetchone()
        return ended, steps

    def await_half(self, job):
        """Wait until a trial has ended, another is in the middle, and both are in a save."""

        def is_half():
            assert job.poll() is None, self.log()
            ended, steps = self.num_told()
            return ended >= 1 and steps >= ended * NUM_STEPS + 4

        commands.wait_until(is_half, f"half of the study to be saved; the log so far:\n{self.log()}", 200)

    def home(self):
        """The last save, laid down as a user does who wants to ask the study."""
        home = self.local / "s" / "home"
        saves = [sys.executable, ROOT / "deploy/slurm/saves.py", "show", self.shared, home]
        subprocess.run(saves, check=True, capture_output=True, timeout=60)
        return home


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    yield made
    shutil.rmtree(made.local, ignore_errors=True)


def assert_one_study(site, home):
    """All trials are finished, and each is there once, whole: in the record and in MLflow."""
    with closing(sqlite3.connect(home / "studies/s/optuna.db")) as record:
        numbers = record.execute("SELECT number, state FROM trials ORDER BY number").fetchall()
    assert numbers == [(number, "COMPLETE") for number in range(NUM_TRIALS)]
    runs = commands.mlflow_runs(home, "s")
    trials = commands.children(runs)
    assert len(runs) == NUM_TRIALS + 1
    assert set(runs["status"]) == {"FINISHED"}
    assert trials["params.x"].nunique() == NUM_TRIALS
    client = mlflow.MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    for run_id in trials["run_id"]:
        assert [row.step for row in client.get_metric_history(run_id, "count")] == list(range(1, NUM_STEPS + 1))
        assert (site.shared / "mlartifacts/s" / run_id / "artifacts/model").is_dir()
    return {row["trial"]: row["attempts"] for row in commands.run_json("status", "s", home=home)["trials"]}


def test_a_study_that_outlives_its_allocation_is_requeued_and_nothing_is_run_twice(site):
    with site.submitted() as job:
        site.await_half(job)
        site.control("update", f"JobId={JOB}", "EndTime=now+59")  # so the signal that comes 60 s before the end comes now
        assert job.wait(timeout=400) == 0, site.log()
    log = site.log()
    assert len((site.job / "history").read_text().split()) == 2
    assert log.count("requeueing: the next allocation goes on") == 1
    assert "going on from the save of" in log
    assert "is done again" not in log
    ended = [int(number) for number in re.findall(r"(\d+) finished, 0 failed", log)]
    assert 1 <= ended[0] < NUM_TRIALS == ended[-1]
    home = site.home()
    attempts = assert_one_study(site, home)
    assert 1 <= sum(attempts.values()) - NUM_TRIALS <= 2  # those that the two nodes ran then, and went on from where they were
    trials = commands.children(commands.mlflow_runs(home, "s"))
    assert "tags.narrow_study.repeated_steps" not in trials.columns
    assert not list(site.shared.glob("token-*"))


def test_an_allocation_that_dies_without_warning_costs_what_came_after_the_last_save(site):
    with site.submitted() as job:
        site.await_half(job)
        site.control("requeue", JOB)  # as SLURM itself does when a node is lost,
        fake_slurm.end_all(f"{site.job}-0")  # and with it everything that ran there, and its disk
        assert job.wait(timeout=400) == 0, site.log()
    assert "ended without a last save: what it did after that is done again" in site.log()
    assert_one_study(site, site.home())


def test_a_study_that_fails_ends_its_job_with_its_status_and_is_not_requeued(site):
    with site.submitted(space="long:broken") as job:
        assert job.wait(timeout=300) == 1, site.log()
    assert (site.job / "history").read_text().split() == ["1"]
    assert "requeueing" not in site.log()
    assert {row["state"] for row in commands.run_json("status", "s", home=site.home())["trials"]} == {"failed"}
