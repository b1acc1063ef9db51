"""Stopping a study from another terminal, and giving it more trials; without Ray."""

import subprocess
import sys

import pytest
from test_spec import spec

from study.errors import UserError
from study.home import Home
from study.life import check_extension, stop
from study.running.tuner_hooks import StopWhenAsked

RUNNER = """
import sys, time
from study.home import Home
folder = Home(sys.argv[1]).study("s")
with folder.lease():
    print("running", flush=True)
    while not folder.is_asked_to_stop():
        time.sleep(0.01)
    print("saving", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def folder(home):
    """Of a study that was launched."""
    Home().prepare()
    folder = Home().study("s")
    folder.path.mkdir(parents=True)
    spec().save(folder.spec_file)
    folder.optuna_file.touch()
    return folder


@pytest.fixture
def run(home, folder):
    """Begin a session that ends so many seconds after it is asked to."""
    processes = []

    def begin(seconds):
        command = [sys.executable, "-c", RUNNER, str(home), str(seconds)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert processes[-1].stdout.readline() == "running\n"
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_running_study_is_asked_and_waited_for(run):
    process = run(0.3)
    assert stop("s") is True
    assert process.wait(timeout=5) == 0


def test_a_study_that_nobody_runs_has_nothing_to_stop(folder):
    assert stop("s") is False


def test_what_one_session_was_asked_the_next_does_not_hear(run, folder):
    folder.ask_to_stop()
    run(0.0)
    assert not folder.is_asked_to_stop()


def test_a_study_that_does_not_end_in_time_is_named_with_its_process(run):
    process = run(60)
    with pytest.raises(UserError, match=f"within 0.5 s of being asked, but 's' is still being run by process {process.pid} on"):
        stop("s", timeout_s=0.5)


def test_a_study_that_was_never_launched_cannot_be_stopped(home):
    with pytest.raises(UserError, match="there is no 'none'"):
        stop("none")


def test_whoever_asks_ends_the_run_at_once():
    class Searcher:
        interrupted = False

    asked = []
    stopper = StopWhenAsked(Searcher(), None, lambda: bool(asked))
    assert not stopper.stop_all()
    asked.append(1)
    assert stopper.stop_all()
    assert not stopper.time_is_up


def test_time_that_is_up_ends_the_run_and_is_told_from_an_interruption():
    class Searcher:
        interrupted = False

    searcher = Searcher()
    assert not StopWhenAsked(searcher, 100.0, lambda: False).stop_all()
    stopper = StopWhenAsked(searcher, 0.0, lambda: False)
    assert stopper.stop_all()
    assert stopper.time_is_up
    assert searcher.interrupted


def test_an_extension_is_of_more_trials_than_before(folder):
    check_extension("s", 100)
    with pytest.raises(UserError, match=r"more than the \d+ trials of 's', but got 2; use --trials \d+, or `study resume s`"):
        check_extension("s", 2)
