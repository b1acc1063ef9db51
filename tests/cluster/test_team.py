"""A team's study, launched from a laptop that goes away: hosts of their own, tokens, PostgreSQL, MLflow's server, S3.

bash tests/run.sh -m cluster tests/cluster/test_team.py

As root the hosts have a network each, and one is cut off; else they are processes on loopback, and one is stopped.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from hosts import wait_until
from team import STUDY, team

pytestmark = pytest.mark.cluster
HERE = Path(__file__).parent
MODULES = {"user_space": HERE.parent / "study" / "user_space.py.txt", "team_space": HERE / "team_space.py.txt"}
NAME = "k"
NUM_TRIALS, NUM_STEPS, NUM_CANDIDATES = 3, 24, 2


@pytest.fixture(scope="module")
def here():
    with team() as made:
        yield made


@pytest.fixture
def desk(here):
    """The folder on the laptop in which a user works, with modules of the user's own."""
    folder = here.laptop.folder / "desk"
    folder.mkdir()
    for name, source in MODULES.items():
        shutil.copy(source, folder / f"{name}.py")
    return folder


def test_the_doctor_finds_a_team_well_on_a_node_and_from_outside(here):
    on_a_node = diagnose(here.hosts["head"], "--address", here.address)
    assert not {name for name, finding in on_a_node.items() if finding["state"] == "broken"}, on_a_node
    assert on_a_node["cluster"]["found"] == f"{here.address}: 3 nodes, 2 CPUs, 0 GPUs"
    assert on_a_node["storage"]["found"].startswith(f"s3://{here.store.bucket}/storage keeps files")
    assert "PostgreSQL" in on_a_node["record"]["found"]
    assert {"MLflow's clock", "S3's clock"} <= on_a_node.keys()
    assert here.store.names("storage/doctor-") == []
    outside = diagnose(here.laptop, "--address", here.jobs)
    assert not {name for name, finding in outside.items() if finding["state"] == "broken"}, outside
    assert outside["Ray's version"]["found"].endswith("as on the cluster")


def diagnose(host, *options):
    """What the doctor finds on a host, by what it is about."""
    return {finding["what"]: finding for finding in json.loads(host.run(*STUDY, "doctor", "--json", *options).stdout)}


def test_a_study_outlives_the_laptop_that_launched_it_and_a_worker_that_is_cut_off(here, desk):
    assert_no_worker_reaches_the_database(here)
    here.laptop.run(*STUDY, "launch", "team_space:long", "--name", NAME, "--address", here.jobs, "--detach", cwd=desk)
    follower = here.laptop.start(*STUDY, "logs", "-f", NAME, cwd=desk, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lost, worker = wait_for_a_trial_at_risk(here)
    os.killpg(follower.pid, signal.SIGKILL)
    follower.wait(30)
    here.laptop.kill()
    worker.cut()
    wait_until(lambda: statuses(here) == {"FINISHED"}, "the study to end without its laptop and a worker", timeout=180)
    assert_nothing_is_lost(here, lost)
    assert_another_machine_finds_it(here, desk, lost)


def assert_no_worker_reaches_the_database(here):
    """Their packets to it get lost, where hosts have a network; nowhere does one know its password."""
    place = (here.database.host.address, here.database.port)
    knock = [sys.executable, "-c", f"import socket; socket.create_connection({place}, timeout=5)"]
    for worker in here.workers:
        assert "PGPASSWORD" not in worker.variables()
        if worker.is_real:
            assert subprocess.run(worker.command(*knock), capture_output=True).returncode == 1
    here.hosts["head"].run(*knock)


def wait_for_a_trial_at_risk(here):
    """A trial with a checkpoint and three steps after it, and the worker that runs it."""
    found = []

    def look():
        found[:] = [(trial, worker) for worker in here.workers for trial in trials_at_risk(here, worker)]
        return bool(found)

    wait_until(look, "a trial to have work after its checkpoint", timeout=150)
    return found[0]


def trials_at_risk(here, worker):
    """Trials of a worker that would lose steps now."""
    names = here.store.names(f"storage/{NAME}/trials/")
    pids = {process.pid for process in worker.processes()}
    for trial, run in trials(here).items():
        folder = f"storage/{NAME}/trials/{trial:05d}"
        steps = [int(found[1]) for name in names if (found := re.match(rf"{folder}/checkpoints/step-(\d+)-", name))]
        if not steps or not max(steps) + 3 <= run.data.metrics.get("count", 0) <= NUM_STEPS - 3:
            continue
        (pid,) = re.findall(r"\(pid (\d+)\)", here.store.read(f"{folder}/log.txt").decode())
        if int(pid) in pids:
            yield trial


def trials(here):
    """Runs of the study's trials, by number, as MLflow's server tells them."""
    return {number: run for number, run in runs(here) if number >= 0}


def statuses(here):
    """Of all runs of the study, once there are all."""
    found = runs(here)
    return {run.info.status for _, run in found} if len(found) > NUM_TRIALS else set()


def runs(here):
    """Every run of the study with its trial's number; the study's own has -1."""
    client = mlflow.MlflowClient(here.tracking_uri)
    experiment = client.get_experiment_by_name(NAME)
    found = client.search_runs([experiment.experiment_id]) if experiment else []
    return sorted(((int(run.data.tags["narrow_study.trial"]), run) for run in found), key=lambda pair: pair[0])


def assert_nothing_is_lost(here, lost):
    """Every trial is there once, with each of its steps once, in MLflow's database and in Optuna's; the lost one went on."""
    client = mlflow.MlflowClient(here.tracking_uri)
    assert [number for number, _ in runs(here)] == list(range(-1, NUM_TRIALS))
    for number, run in trials(here).items():
        assert [row.step for row in client.get_metric_history(run.info.run_id, "count")] == list(range(1, NUM_STEPS + 1))
        tags = run.data.tags
        assert (number, tags["narrow_study.attempts"]) == (number, "2" if number == lost else "1")
        assert tags.get("narrow_study.last_loss", "").startswith("node_lost: ") == (number == lost)
        assert "narrow_study.failure.cause" not in tags
    of_models = "SELECT lifecycle_stage, status, count(*) FROM logged_models GROUP BY 1, 2"
    assert ask(here, "mlflow", of_models) == [("active", "2", str(NUM_TRIALS * NUM_CANDIDATES))], "READY, each once"
    assert (
        ask(
            here,
            "mlflow",
            "SELECT 1 FROM metrics WHERE NOT key LIKE 'candidate/%' GROUP BY run_uuid, key, step HAVING count(*) > 1",
        )
        == []
    )
    assert ask(here, "optuna", "SELECT state, count(*) FROM trials GROUP BY state") == [("COMPLETE", str(NUM_TRIALS))]
    left = here.store.names(f"storage/{NAME}/trials/")
    assert {name.rpartition("/")[2] for name in left} == {"log.txt"}, "checkpoints are gone when MLflow has the models"


def ask(here, database, query):
    return here.database.ask(query, database, user=database)


def assert_another_machine_finds_it(here, desk, lost):
    """A laptop that knows nothing but MLflow's address asks for the study, and takes its best model out."""
    laptop = here.laptop
    laptop.environment["STUDY_HOME"] = str(laptop.folder / "another home")
    shown = laptop.run(*STUDY, "status", NAME).stdout
    assert f"{NUM_TRIALS} finished" in shown
    assert "repeated" in shown
    folder = laptop.folder / "knee"
    laptop.run(*STUDY, "model", NAME, "--knee", "--out", folder)
    verified = laptop.run(*STUDY, "verify", folder, "--trust", "team_space:Offering", cwd=desk).stdout
    assert "is what its passport says" in verified
