"""The disk is full, wherever a study writes: one sentence, nothing damaged, and `resume` goes on once there is room."""

import contextlib
import shutil
import sqlite3
from functools import partial
from pathlib import Path

import commands
import mlflow
import pytest
from small_disk import small_disk
from test_spec import spec

from search_spaces import cmsp_curriculum
from study import open_study
from study.home import Home
from study.recording.outbox import Outbox
from study.running.record import TrialRecord

pytestmark = pytest.mark.faults

HERE = Path(__file__).parent
SPACES = (HERE.parent / "study" / "user_space.py.txt", HERE / "bulky_space.py.txt")
MAX_WAIT_S = 300
METRICS = {"samples_to_convergence": 100.0, "parameters": 5.0, "fraction_converged": 1.0}


@pytest.fixture
def desk(tmp_path):
    """The folder in which a user works."""
    folder = tmp_path / "desk"
    folder.mkdir()
    for space in SPACES:
        shutil.copy(space, folder / space.stem)
    return folder


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", megabytes=24) as found:
        yield found


def run_out_of_room(disk, command, *, when, leave, home, desk):
    """Run `study ...` and fill the disk up as soon as something is there; the command's exit status, output and errors."""
    process = commands.start(*command, home=home, cwd=desk)
    try:
        commands.wait_until(
            lambda: when() or process.poll() is not None, "what the disk is to be filled after", timeout=MAX_WAIT_S
        )
        disk.fill(leave=leave)
        (home / "go").touch()  # an empty file takes no room
        out, err = process.communicate(timeout=MAX_WAIT_S)
        return process.returncode, out, err
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def assert_one_sentence(code, out, err, *parts):
    """The session ended as by a user's mistake: exit status 2, one line, no traceback."""
    assert code == 2, out + err
    assert "Traceback" not in out + err
    assert err.startswith("study: ") and err.count("\n") == 1, err
    for part in parts:
        assert part in err


def assert_refused(command, *parts, home, desk):
    result = commands.run(*command, home=home, cwd=desk, timeout=MAX_WAIT_S)
    assert_one_sentence(result.returncode, result.stdout, result.stderr, *parts)


def assert_goes_on(name, *, home):
    result = commands.run("resume", name, home=home, timeout=MAX_WAIT_S)
    assert result.returncode == 0, result.stdout + result.stderr


def assert_everything_once(name, *, home, num_trials, num_steps):
    trials = commands.children(commands.mlflow_runs(home, name))
    assert list(trials["tags.narrow_study.trial"].astype(int)) == list(range(num_trials))
    assert set(trials["status"]) == {"FINISHED"}
    client = mlflow.MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    for run_id in trials["run_id"]:
        assert [row.step for row in client.get_metric_history(run_id, "count")] == list(range(1, num_steps + 1))
    twice = "SELECT run_uuid, key, step, count(*) FROM metrics GROUP BY run_uuid, key, step HAVING count(*) > 1"
    with contextlib.closing(sqlite3.connect(home / "mlflow.db")) as store:
        assert store.execute(twice).fetchall() == []


def assert_went_on(name, *trials, home):
    for number in trials:
        log = open_study(name, home=home).log(number)
        assert "goes on from its checkpoint" in log
        assert log.count("counted to 1\n") == 1


def assert_sound(*databases):
    for database in databases:
        with contextlib.closing(sqlite3.connect(database)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def states(name, *, home):
    return {trial.number: trial.state for trial in open_study(name, home=home).trials()}


def half_written(folder):
    return [path for path in folder.rglob("*") if path.name.endswith(".partial")]


def has_checkpoint(folder, *trials):
    return all(any(folder.glob(f"trials/{trial:05d}/checkpoints/step-*")) for trial in trials)


def has_candidate(folder, *trials):
    return all(any(folder.glob(f"trials/{trial:05d}/candidates/*/experiment.json")) for trial in trials)


def test_a_storage_that_fills_up_costs_no_trial_and_no_step_twice(home, desk, disk):
    launch = ("launch", "bulky_space:bulky", "--name", "b1", "--max-concurrent", "2", "--storage", str(disk.path))
    when = partial(has_checkpoint, disk.path / "b1", 2, 3)
    ended = run_out_of_room(disk, launch, when=when, leave=20, home=home, desk=desk)  # what is small goes on
    assert_one_sentence(*ended, "room for checkpoints", f"{disk.path}/b1/", "is full", "resume the study")
    assert half_written(disk.path) == []
    assert {number for number, state in states("b1", home=home).items() if state == "finished"} == {0, 1}
    disk.fill()
    assert_refused(("resume", "b1"), str(disk.path), "No space left on device", home=home, desk=desk)

    disk.make_room()
    assert_goes_on("b1", home=home)
    assert_everything_once("b1", home=home, num_trials=4, num_steps=12)
    assert_went_on("b1", 2, 3, home=home)


def test_a_storage_without_room_for_candidates_loses_none(home, desk, disk):
    launch = ("launch", "bulky_space:offering", "--name", "o1", "--max-concurrent", "2", "--storage", str(disk.path))
    when = partial(has_candidate, disk.path / "o1", 0, 1)
    ended = run_out_of_room(disk, launch, when=when, leave=20, home=home, desk=desk)
    assert_one_sentence(*ended, "room for models", f"{disk.path}/o1/", "is full")
    assert half_written(disk.path) == []

    disk.make_room()
    assert_goes_on("o1", home=home)
    assert_everything_once("o1", home=home, num_trials=3, num_steps=4)
    study = open_study("o1", home=home)
    for trial in study.trials():
        candidates = study.candidates(trial.number)
        assert [found.candidate for found in candidates] == [0, 1, 2, 3]
        assert [found.metrics["count"] for found in candidates] == [1, 2, 3, 4]
    folder = study.download_model(2, desk / "model", 3)
    assert (folder / "model.safetensors").stat().st_size > 1 << 20


def test_a_home_that_fills_up_loses_nothing_that_its_databases_hold(tmp_path, monkeypatch, desk, disk):
    home, storage = disk.path / "home", tmp_path / "storage"
    monkeypatch.setenv("STUDY_HOME", str(home))
    launch = ("launch", "bulky_space:bulky", "--name", "h1", "--max-concurrent", "2", "--storage", str(storage))
    when = partial(has_checkpoint, storage / "h1", 2, 3)
    ended = run_out_of_room(disk, launch, when=when, leave=0, home=home, desk=desk)
    assert_one_sentence(*ended, "able to write its files", str(home), "make room")
    disk.fill()  # SQLite gave back what its logs took
    assert_refused(("resume", "h1"), str(home), home=home, desk=desk)

    disk.make_room()
    study = home / "studies" / "h1"
    assert_sound(home / "mlflow.db", study / "optuna.db", study / "outbox.db")
    assert_goes_on("h1", home=home)
    assert_everything_once("h1", home=home, num_trials=4, num_steps=12)
    assert_went_on("h1", 2, 3, home=home)


def test_a_home_without_room_refuses_a_launch_that_succeeds_later(monkeypatch, desk, disk):
    home = disk.path / "home"
    monkeypatch.setenv("STUDY_HOME", str(home))
    launch = ("launch", "user_space:fine", "--name", "f1", "--trials", "2")
    for num_pages in (0, 40):
        disk.fill(leave=num_pages)
        assert_refused(launch, str(home), home=home, desk=desk)
    disk.make_room()
    result = commands.run(*launch, home=home, cwd=desk, timeout=MAX_WAIT_S)
    assert result.returncode == 0, result.stdout + result.stderr
    assert_everything_once("f1", home=home, num_trials=2, num_steps=4)


def live(folder, drawn):
    """What a session writes in its databases: trials drawn, noted and told, until there are two; return how many there are."""
    folder.path.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(Outbox(folder.outbox_file)) as outbox:
        session = outbox.start_session({"space": "x" * 2000})
        space = cmsp_curriculum.tiny()
        record = TrialRecord(folder, spec(space, name=folder.name), space)
        while len(record) - len(record.unfinished) < 2:
            draw = record.draw_again(record.unfinished.pop()) if record.unfinished else record.draw()
            drawn[draw.number] = draw.params
            outbox.put("trial_start", f"trial/{draw.number}/start/{draw.attempt}", {"attempt": draw.attempt}, trial=draw.number)
            outbox.put("trial_end", f"trial/{draw.number}/end/{draw.attempt}", {}, trial=draw.number)
            record.finish(draw.number, METRICS)
        outbox.close_session(session, "FINISHED")
        return record.num_finished


def test_a_disk_may_be_full_at_any_page_of_the_databases(disk):
    """However much fits: what was committed stays, both databases are sound, and another session completes them."""
    Home(disk.path).prepare()
    num_pages, refusals = 0, []
    while True:
        folder, before, after = Home(disk.path).study(f"s{num_pages}"), {}, {}
        disk.fill_alone(leave=num_pages)
        try:
            live(folder, before)
            break
        except Exception as error:
            refusals.append(error)
        disk.make_room()
        assert live(folder, after) == 2
        assert before == before | {number: params for number, params in after.items() if number in before}
        assert_sound(folder.optuna_file, folder.outbox_file)
        shutil.rmtree(folder.path)
        num_pages += 7
    assert len(refusals) > 10
