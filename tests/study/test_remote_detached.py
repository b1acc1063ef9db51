"""A study that leaves its terminal, on one machine."""

import contextlib
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import commands
import psutil
import pytest

from study.errors import UserError
from study.home import Home
from study.running.background import Driver, last_driver, log_file, start_driver

SPACE = Path(__file__).parent / "user_space.py.txt"


def test_a_detached_study_is_followed_to_its_end_by_its_name(home, tmp_path):
    shutil.copy(SPACE, tmp_path / "user_space.py")
    launch = ("launch", "user_space:fine", "--name", "d1", "--trials", "2", "--detach")
    launched = commands.run(*launch, home=home, cwd=tmp_path)
    assert launched.returncode == 0, launched.stderr
    assert "study logs d1 -f" in launched.stdout
    followed = commands.run("logs", "d1", "-f", home=home)
    assert followed.returncode == 0, followed.stderr
    assert "d1: 2 finished, 0 failed of 2 trials" in followed.stdout
    assert followed.stderr == "the driver of d1 has ended: all trials are done\n"


def test_a_mistake_comes_back_to_the_terminal_that_is_still_there(home, tmp_path):
    launch = ("launch", "cmsp_curriculum:nowhere", "--name", "d2", "--set", "x=a b; 'c'", "--detach")
    result = commands.run(*launch, home=home, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("study: a space must be a function of its module")
    assert len(result.stderr.splitlines()) == 1


@pytest.fixture
def waiting(home):
    """A command that ends when it is interrupted: it follows the log of a driver that lives, this process."""
    mine = psutil.Process()
    write_driver(Home().study("other"), Driver(mine.pid, mine.create_time(), ()))
    yield ["logs", "other", "-f"]
    for folder in ("d3", "d4"):
        if (driver := last_driver(Home().study(folder))) and driver.is_alive:
            os.kill(driver.pid, signal.SIGKILL)


def write_driver(folder, driver):
    from study.running.background import _save

    folder.path.mkdir(parents=True, exist_ok=True)
    log_file(folder).touch()
    _save(folder, driver)


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")  # it is to outlive us
def test_of_two_that_are_started_at_once_one_runs_and_is_the_one_that_is_known(waiting):
    folder = Home().study("d3")

    def start(_):
        with contextlib.suppress(UserError):
            return start_driver(folder, waiting)

    with ThreadPoolExecutor(2) as both:
        pids = [pid for pid in both.map(start, range(2)) if pid is not None]
    assert len(pids) == 1
    assert last_driver(folder).pid == pids[0]
    assert last_driver(folder).is_alive


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")  # it is to outlive us
def test_a_driver_that_ends_late_does_not_hide_its_successor(waiting):
    folder = Home().study("d4")
    first = start_driver(folder, waiting)
    later = time.time() + 1
    (folder.path / "lock").touch()
    os.utime(folder.path / "lock", (later, later))  # it has run the study, and is about to go
    second = start_driver(folder, waiting)
    time.sleep(1.5)  # both are in their command
    os.kill(first, signal.SIGINT)
    psutil.wait_procs([psutil.Process(first)], timeout=20)
    assert (last_driver(folder).pid, last_driver(folder).exit_code) == (second, None)


def test_a_driver_that_cannot_even_load_is_no_success(home, monkeypatch):
    folder = Home().study("d5")
    write_driver(folder, Driver(1, 0.0, ("launch",), 0))  # an earlier one went well
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(UserError, match="a driver must load, but that of 'd5' ended with status 1"):
        start_driver(folder, ["status", "d5"])


def test_a_home_that_cannot_be_written_is_told_in_one_sentence(home):
    home.mkdir()
    (home / "studies").touch()
    with pytest.raises(UserError, match=r"the study home must be a folder that can be written, but .*/d6 is not"):
        start_driver(Home().study("d6"), ["status", "d6"])
