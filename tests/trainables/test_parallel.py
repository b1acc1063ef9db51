"""Two real processes that train one experiment: the same numbers, and never a hang, whoever fails or dies."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_attempt import run
from torch import distributed

from trainables import parallel
from trainables.attempt import Attempt
from trainables.checkpoints import Checkpoints
from trainables.failures import LostRankError, RankError, failure_of
from trainables.parallel import World
from trainables.parallel_followers import RankFailure
from trainables.parallel_process import Rank
from trainables.protocol import Assignment
from trainables.registry import load_experiment
from trainables.storage import Folder, StorageError

HERE = Path(__file__).parent


def assign(folder, *, experiment="parallel_regression:Regression", attempt=1, num_gpus=0, **config):
    Folder(folder).write("study.json", b"{}")
    return Assignment(
        experiment=experiment, config=config, trial=3, attempt=attempt, study_folder=str(folder), folder=str(folder),
        num_cpus=2, num_gpus=num_gpus, import_paths=[str(HERE)],
    )  # fmt: skip


def losses(reports):
    return {m.step: m.metrics["loss"] for report in reports for m in report.measurements}


def pair(**changes):
    return World(2, "cpu", **changes)


def num_steps_kept(folder):
    state = Checkpoints(Folder(folder / "checkpoints"), 99).load()
    return state and state["experiment"]["steps"]


def processes(attempt):
    return [follower.process for follower in attempt._world._followers]


def test_two_ranks_give_what_one_gives_go_on_from_a_checkpoint_and_leave_a_worker_as_it_was(tmp_path):
    alone = losses(run(Attempt(assign(tmp_path / "alone"))))
    first = Attempt(assign(tmp_path / "pair"), world=pair())
    first.advance()
    first.advance()
    (process,) = processes(first)
    first.close()
    assert process.returncode is not None
    assert not distributed.is_initialized()
    second = Attempt(assign(tmp_path / "pair", attempt=2), world=pair())
    reports = run(second)
    assert [m.step for m in reports[0].measurements] == [1, 2, 3]
    assert losses(reports) == pytest.approx(alone, rel=1e-6)
    assert losses(reports) != alone  # rounding shows that sums were made elsewhere
    assert not distributed.is_initialized()  # without a close: it has finished
    assert processes(second) == []
    log = (tmp_path / "pair" / "log.txt").read_text()
    assert log.count("2 processes train together") == 2
    assert log.count("a line of rank 0") == 4
    assert "a line of rank 1" not in log
    assert losses(run(Attempt(assign(tmp_path / "again")))) == alone


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llm_narrowing"])
def test_a_registered_experiment_gives_the_same_metrics_with_two_ranks_as_with_one(tmp_path, name):
    config = dataclasses.asdict(load_experiment(name).Config.tiny())
    two = dataclasses.replace(assign(tmp_path, experiment=name, **config), folder=str(tmp_path / "two"))
    one = dataclasses.replace(two, folder=str(tmp_path / "one"))
    # Of one study: the first makes what they share, on rank 0 alone, though what it trains there would train in both.
    found, expected = run(Attempt(two, world=pair())), run(Attempt(one))
    assert found[-1].finished, found[-1].failure
    for ours, theirs in zip(found, expected, strict=True):
        for mine, other in zip(ours.measurements, theirs.measurements, strict=True):
            assert mine.metrics == pytest.approx(other.metrics, rel=1e-4)
            assert (mine.step, mine.progress) == (other.step, other.progress)


@pytest.mark.parametrize(
    ("config", "cause", "error"),
    [
        ({"behaviour": "bug at first"}, "bug", "KeyError: 'a bug of rank 1' (on rank 1)"),
        ({"behaviour": "bug"}, "bug", "KeyError: 'a bug of rank 1' (on rank 1)"),
        ({"behaviour": "bug", "ranks": (0,)}, "bug", "KeyError: 'a bug of rank 0'"),
        ({"behaviour": "nan", "ranks": (0, 1)}, "diverged", "DivergedError: not finite"),
    ],
)
def test_an_error_of_any_rank_fails_the_attempt_at_once_with_its_cause(tmp_path, config, cause, error):
    attempt = Attempt(assign(tmp_path, **config), world=pair())
    reports, took_s = [], 0.0
    while not reports or reports[-1].failure is None:
        start_s = time.monotonic()
        reports.append(attempt.advance())
        took_s = time.monotonic() - start_s
    failure = reports[-1].failure
    assert (failure.cause, failure.error) == (cause, error)
    assert "parallel_regression.py" in failure.traceback
    assert error.removesuffix(" (on rank 1)") in (tmp_path / "log.txt").read_text()
    assert len(reports) == 1 or took_s < 30  # of the 600 that a rank may be silent
    assert processes(attempt) == []
    assert not distributed.is_initialized()


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("die", "every rank must live as long as its attempt, but this one was ended by SIGKILL"),
        ("stop", "every rank must do its part within 3 s of the others, but nothing is heard of rank 1"),
    ],
)
def test_a_rank_that_is_lost_is_not_the_trials_failure(tmp_path, monkeypatch, behaviour, message):
    monkeypatch.setattr(parallel, "GRACE_S", 1.0)
    attempt = Attempt(assign(tmp_path, behaviour=behaviour), world=pair(timeout_s=3.0))
    attempt.advance()
    start_s = time.monotonic()
    with pytest.raises(LostRankError, match=message):
        attempt.advance()
    assert time.monotonic() - start_s < 30
    attempt.close()
    assert num_steps_kept(tmp_path) in (None, 1)  # nothing of the step that broke
    assert processes(attempt) == []
    assert not distributed.is_initialized()


def test_a_step_that_the_storage_broke_is_made_again_by_the_next_attempt(tmp_path):
    attempt = Attempt(assign(tmp_path, behaviour="storage", ranks=(0,)))
    attempt.advance()
    with pytest.raises(StorageError, match="disk full"):
        attempt.advance()
    attempt.close()
    assert num_steps_kept(tmp_path) in (None, 1)


@pytest.mark.parametrize(
    ("error", "expected", "text"),
    [
        (StorageError("disk full"), StorageError, "disk full (on rank 2)"),
        (torch.AcceleratorError("CUDA error: gone"), LostRankError, "CUDA error: gone (on rank 2)"),
        (torch.OutOfMemoryError("too much"), RankError, "OutOfMemoryError: too much (on rank 2)"),
    ],
)
def test_what_broke_a_follower_is_raised_as_what_it_is(error, expected, text):
    raised = RankFailure(rank=2, failure=failure_of(error), is_echo=False).error()
    assert type(raised) is expected
    assert str(raised) == text


def test_a_follower_refuses_another_checkpoint_than_that_of_rank_0(tmp_path):
    first = Attempt(assign(tmp_path))
    first.advance()
    first.close()
    rank = Rank(World(1, "cpu").seat)
    rank.plan(assign(tmp_path).to_json())
    with pytest.raises(StorageError, match="rank 0 does from step 2 and rank 0 finds 1"):
        rank.load(step=2)


RANK_0 = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
from test_parallel import Attempt, assign, pair, run
run(Attempt(assign(sys.argv[1], behaviour="sleep", marker=sys.argv[1] + "/sleeps"), world=pair()))
"""


def only_child(pid):
    """The process that another started, and the last argument of its command."""
    (child,) = " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")).split()
    return int(child), Path(f"/proc/{child}/cmdline").read_text().rstrip("\0").rpartition("\0")[2]


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")
def test_a_follower_ends_with_rank_0_even_in_the_middle_of_a_step(tmp_path):
    with subprocess.Popen([sys.executable, "-c", RANK_0, str(tmp_path)]) as process:
        wait_until(lambda: (tmp_path / "sleeps").exists(), 60)
        follower, told = only_child(process.pid)
        folder = Path(told.partition('"folder": "')[2].partition('"')[0])
        assert folder.is_dir()
        os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: not is_running(follower), 20)
    assert not folder.exists()


def wait_until(is_true, seconds):
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_experiment_that_is_one_process_is_not_trained_by_several(tmp_path):
    attempt = Attempt(assign(tmp_path, experiment="parallel_regression:Lonely"), world=pair())
    failure = attempt.advance().failure
    assert "an experiment must say `parallel` to be trained by several processes" in failure.error
    assert processes(attempt) == []


def test_a_rank_is_a_gpu_and_a_share_of_one_is_this_process_alone():
    devices = {num_gpus: (World.of(num_gpus).seat.size, World.of(num_gpus).seat.device) for num_gpus in (0, 0.25, 1, 1.5, 2, 4)}
    cpu, one, first = torch.device("cpu"), torch.device("cuda"), torch.device("cuda", 0)
    assert devices == {0: (1, cpu), 0.25: (1, one), 1: (1, one), 1.5: (1, one), 2: (2, first), 4: (4, first)}
    last = dataclasses.replace(World.of(4).seat, rank=3)
    assert last.device == torch.device("cuda", 3)
    assert [last.num_threads(num_cpus) for num_cpus in (1, 4, 10.5)] == [1, 1, 2]


def test_a_world_without_ranks_is_refused():
    with pytest.raises(ValueError, match="a world must have at least 1 rank, but got 0"):
        World(0, "cpu")


@pytest.mark.parametrize("error", [LostRankError("gone"), torch.AcceleratorError("gone")])
def test_a_study_takes_a_lost_rank_or_device_for_a_lost_worker_and_tries_again(error):
    pytest.importorskip("ray")
    from ray import cloudpickle
    from ray.exceptions import RayTaskError

    from study.running.retries import loss_of
    from trainables.ray_trainable import ExperimentTrainable, LostWorkerError

    class Breaks:
        def advance(self, stopped):
            raise error

    trainable = object.__new__(ExperimentTrainable)
    trainable._errand, trainable._stops = Breaks(), None
    with pytest.raises(LostWorkerError, match="gone") as raised:
        trainable.step()
    as_the_driver_gets_it = RayTaskError("step", "Traceback", raised.value, "title", 1, "127.0.0.1").as_instanceof_cause()
    assert loss_of(cloudpickle.loads(cloudpickle.dumps(as_the_driver_gets_it))).cause == "worker_lost"


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_give_what_one_process_gives(tmp_path):
    alone = losses(run(Attempt(assign(tmp_path / "alone"))))
    assert losses(run(Attempt(assign(tmp_path / "pair", num_gpus=2)))) == pytest.approx(alone, rel=1e-5)
