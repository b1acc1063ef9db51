"""A node that is lost in mid-trial: killed, its raylet killed, or out of reach for a while."""

import re
import signal
import sqlite3
from contextlib import closing, contextmanager

import commands
import mlflow
import psutil
import pytest
from clusters import two_nodes

pytestmark = pytest.mark.cluster
QUICK_TO_NOTICE = {"RAY_health_check_timeout_ms": "2000", "RAY_health_check_period_ms": "1000"}
NUM_STEPS = 20


def num_steps(home, number):
    """Steps of a trial that the study has heard of."""
    with closing(sqlite3.connect(f"file:{home}/studies/k/outbox.db?mode=ro", uri=True)) as connection:
        steps = connection.execute("SELECT count(*) FROM event WHERE key GLOB ?", (f"trial/{number}/step/*",))
        return steps.fetchone()[0]


def checkpoints(home, number):
    """Names of a trial's checkpoints and claims."""
    return {file.name for file in home.glob(f"storage/k/trials/{number:05d}/checkpoints/*") if not file.name.startswith(".")}


def trial_at_risk(home, processes):
    """A trial that one of these processes runs, if it has a checkpoint and three steps after it."""
    pids = {process.pid for process in processes}
    for log in home.glob("storage/k/trials/*/log.txt"):
        number = int(log.parent.name)
        saved = max((int(name[5:13]) for name in checkpoints(home, number) if name.startswith("step-")), default=NUM_STEPS)
        if int(re.findall(r"\(pid (\d+)\)", log.read_text())[-1]) in pids and saved + 3 <= num_steps(home, number) < NUM_STEPS:
            return number
    return None


def launch_until_at_risk(cluster, home, desk):
    """Start a study; return (process, the trial that the second node runs) when there is work to lose."""
    process = commands.start("launch", "long_trials:long", "--name", "k", "--address", cluster.address, home=home, cwd=desk)
    found = []

    def look():
        assert process.poll() is None, process.communicate()
        number = trial_at_risk(home, cluster.second_node())
        return found.append(number) is None and number is not None

    commands.wait_until(look, "a trial of the second node to have work after its checkpoint", 240)
    return process, found[-1]


def kill(processes):
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass


@contextmanager
def out_of_reach(processes):
    """Inside, they neither run nor answer, and nobody is told."""
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)


def assert_nothing_is_lost(process, home, lost):
    """All trials finished, once; the lost one went on from its checkpoint, and its cost is told."""
    out, err = process.communicate(timeout=180)
    assert (process.returncode, err) == (0, "")
    assert f"trial {lost} lost its node; it goes on from its checkpoint" in out
    assert "3 finished, 0 failed" in out
    trials = commands.children(commands.mlflow_runs(home, "k"))
    assert set(trials["status"]) == {"FINISHED"}
    assert "tags.narrow_study.failure.cause" not in trials.columns
    assert {row["trial"]: row["attempts"] for row in commands.run_json("status", "k", home=home)["trials"]} == {
        number: 2 if number == lost else 1 for number in range(3)
    }
    client = mlflow.MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    for run_id in trials["run_id"]:
        assert [row.step for row in client.get_metric_history(run_id, "count")] == list(range(1, NUM_STEPS + 1))
    tags = client.get_run(trials.iloc[lost]["run_id"]).data.tags
    assert tags["narrow_study.last_loss"].startswith("node_lost: ")
    assert int(tags["narrow_study.repeated_steps"]) >= 1
    assert float(tags["narrow_study.repeated_seconds"]) > 0
    shown = commands.run_json("trial", "k", str(lost), home=home)
    assert "goes on from its checkpoint" in shown["log"]
    assert shown["repeated_steps"] == int(tags["narrow_study.repeated_steps"])


@pytest.mark.parametrize("is_whole_machine", [True, False], ids=["machine", "raylet"])
def test_a_trial_of_a_killed_node_goes_on_elsewhere_from_its_checkpoint(home, desk, is_whole_machine):
    with two_nodes() as cluster:
        process, lost = launch_until_at_risk(cluster, home, desk)
        kill(cluster.second_node() if is_whole_machine else cluster.raylets[1:])
        assert_nothing_is_lost(process, home, lost)


def test_a_node_that_comes_back_writes_nothing_to_a_trial_that_went_on_without_it(home, desk):
    with two_nodes(**QUICK_TO_NOTICE) as cluster:
        process, lost = launch_until_at_risk(cluster, home, desk)
        processes = cluster.second_node()
        with out_of_reach(processes):
            before = checkpoints(home, lost)
            commands.wait_until(lambda: "attempt-0002.json" in checkpoints(home, lost), "another attempt", 90)
        assert_nothing_is_lost(process, home, lost)
        _, alive = psutil.wait_procs(processes, timeout=30)
        assert alive == []
        assert {name for name in checkpoints(home, lost) if "-0001-" in name} <= before
