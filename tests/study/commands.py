"""Run the command `study` as a user does, and read MLflow without our code."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pandas
from typer.testing import CliRunner

from study.cli import app

STUDY = [sys.executable, "-m", "study.cli"]


def run(*arguments: str, home: Path, cwd: Path | None = None, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run `study ...` to its end."""
    return subprocess.run([*STUDY, *arguments], env=environment(home), cwd=cwd, capture_output=True, text=True, timeout=timeout)


def run_json(*arguments: str, home: Path):
    """Run `study ... --json` in this process, which saves its seconds of imports; it must succeed. Parses what it prints."""
    result = CliRunner().invoke(app, [*arguments, "--json"], env={"STUDY_HOME": str(home)})
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def start(*arguments: str, home: Path, cwd: Path | None = None) -> subprocess.Popen[str]:
    """Start `study ...` in a process group of its own, as a shell does."""
    return subprocess.Popen(
        [*STUDY, *arguments], env=environment(home), cwd=cwd, text=True, process_group=0,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def press_ctrl_c(process: subprocess.Popen[str]) -> None:
    """Send SIGINT to the whole foreground process group, as a terminal does."""
    os.killpg(process.pid, signal.SIGINT)


def environment(home: Path) -> dict[str, str]:
    return os.environ | {"STUDY_HOME": str(home)}


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 90) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout} s for {what}"
        time.sleep(0.1)


def mlflow_runs(home: Path, name: str) -> pandas.DataFrame:
    """All runs of a study, as MLflow itself returns them."""
    mlflow.set_tracking_uri(f"sqlite:///{home / 'mlflow.db'}")
    return mlflow.search_runs(experiment_names=[name])


def children(runs: pandas.DataFrame) -> pandas.DataFrame:
    """The trials among the runs, by number."""
    found = runs[runs["tags.mlflow.parentRunId"].notna()]
    return found.sort_values("tags.narrow_study.trial", key=lambda numbers: numbers.astype(int))
