"""How many bytes a study is, what of it goes, and that it can go altogether: du, gc, delete."""

import contextlib
import json
import shutil
import sqlite3
import uuid

import commands
import mlflow
import pytest
from made_runs import copy_of_store, foreign_run
from mlflow.entities import ViewType
from retention_desk import Desk
from test_retention import check_front, floor  # noqa: F401  # a fixture
from typer.testing import CliRunner

import study.commands.keep  # noqa: F401  # its commands
from study.commands.life import app
from study.errors import UserError
from study.exchanging.exchange import import_experiment
from study.home import Home
from study.keeping import cleaning, deleting, disk
from study.keeping.retention import REGISTERED_TAG
from study.launch_checks import check_storage
from study.recording.outbox import Outbox
from study.recording.tracking import connect
from study.running.background import await_start, start_driver
from study.spec import StudySpec


@pytest.fixture
def make(home, store):
    """A desk of the test's home, of a fresh name."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(
            contextlib.closing(Desk(home, f"disk-{uuid.uuid4().hex}", uri=store, **options))
        )


def run(*arguments, code=0):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    return result


def decline(desk, num=8, **options):
    """Trials each better than the one before."""
    for number in range(num):
        desk.end(10.0 - number, 10.0 - number, **options)


def test_du_tells_every_byte_by_its_kind(make):
    desk = make()
    desk.end(1.0, 1.0)
    desk.end(2.0, 2.0)
    desk.end(3.0, 3.0, settled=False)
    desk.deliver()
    desk.spec.study_folder.child("shared").write("teacher.safetensors", b"x" * 5000)
    found = disk.usage(desk.folder)
    model = desk.outbox.models()[0].num_bytes
    assert found.num_bytes[disk.FRONT] == model
    assert found.num_bytes[disk.OTHERS] == 2 * model  # trial 2's is there, and nobody has weighed it
    assert found.num_bytes[disk.COPIES] == model
    assert found.num_bytes[disk.SHARED] == 5000
    assert found.num_bytes[disk.LOGS] == 3 * len("all that was said\n")
    assert found.num_bytes[disk.CHECKPOINTS] > 1000
    assert found.num_bytes[disk.CHARTS] > 0
    assert found.num_bytes[disk.DATABASES] > 10_000
    everything = [desk.folder.path, desk.spec.study_folder.address, desk.spec.artifacts(desk.folder.home.path)]
    assert found.total == sum(path.stat().st_size for root in everything for path in Home(root).path.rglob("*") if path.is_file())


def test_du_lists_studies_in_a_table_and_as_json(make, home):
    desk = make()
    desk.end(1.0, 1.0)
    desk.deliver()
    told = json.loads(run("du", "--json").stdout)
    (one,) = told["studies"]
    assert one["study"] == desk.spec.name
    assert one["total"] == sum(one["bytes"].values()) <= told["total"]
    assert (one["models"], one["dropped"]) == (1, 0)
    shown = run("du", desk.spec.name).stdout
    assert "front models" in shown
    assert "models dropped" in shown


@pytest.mark.parametrize(
    ("num", "text"), [(0, "-"), (999, "999 B"), (1234, "1.23 kB"), (999_999, "1 MB"), (45_600_000, "45.6 MB")]
)
def test_bytes_are_shown_in_three_digits(num, text):
    assert disk.shown(num) == text


def older(desk):
    """Make it a study of a version that settled nothing: copies and checkpoints of all trials, every model in MLflow."""
    desk.deliver()
    assert desk.outbox.settled() == set()
    with contextlib.closing(sqlite3.connect(desk.folder.outbox_file)) as connection, connection:
        connection.execute("DROP TABLE model")
    fields = json.loads(desk.folder.spec_file.read_text())
    del fields["keep"]
    desk.folder.spec_file.write_text(json.dumps(fields))
    desk.spec = StudySpec.load(desk.folder.spec_file)
    desk.outbox.close()
    desk.outbox = Outbox(desk.folder.outbox_file)


@pytest.mark.parametrize("keep", [None, "front"])
def test_gc_of_an_older_study_says_before_what_goes_and_keeps_all_models_unless_told(make, floor, keep):  # noqa: F811
    desk = make()
    decline(desk, settled=False)
    desk.record.draw()
    older(desk)
    leftover = desk.spec.trial_folder(3).child("candidates/00000-1")
    leftover.write(".model.safetensors.0123.partial", b"x" * 100)
    desk.spec.trial_folder(8).child("checkpoints").write("step-1", b"of a trial that may go on")
    before = disk.usage(desk.folder)
    options = [] if keep is None else ["--keep", keep]
    said = json.loads(run("gc", desk.spec.name, "--dry-run", "--json", *options).stdout)
    assert disk.usage(desk.folder) == before
    (plan,) = said["studies"]
    (done,) = json.loads(run("gc", desk.spec.name, "--json", *options).stdout)["studies"]
    assert done == plan
    after = disk.usage(desk.folder)
    freed = {kind: before.num_bytes[kind] - after.num_bytes[kind] for kind in disk.KINDS}
    models = freed.pop(disk.FRONT) + freed.pop(disk.OTHERS)  # before, nobody knew the front
    assert models == plan["bytes"].pop(disk.OTHERS, 0)
    assert {kind: num for kind, num in freed.items() if num and kind not in (disk.DATABASES, disk.REST)} == plan["bytes"]
    assert (plan["models"], plan["trials"]) == (4 if keep else 0, 8)
    assert desk.kept() == (set(range(4, 8)) if keep else set(range(8)))
    assert [desk.stored(number) for number in range(9)] == [["log.txt"]] * 8 + [["checkpoints"]]
    check_front(desk)
    (again,) = json.loads(run("gc", desk.spec.name, "--json").stdout)["studies"]
    assert (again["total"], again["models"]) == (0, 0)
    assert StudySpec.load(desk.folder.spec_file).keep == (keep or "all")


def test_gc_takes_what_is_half_written_and_files_of_deleted_runs_and_leaves_what_trials_share(make):
    desk = make()
    desk.end(1.0, 1.0, candidates=[(1.0, 2.0)])
    desk.end(2.0, 2.0)
    desk.deliver()
    desk.end(3.0, 3.0, settled=False)
    client = mlflow.MlflowClient(desk.spec.tracking_uri)
    client.delete_run(desk.outbox.runs()[1])
    client.delete_logged_model(next(m.place for m in desk.outbox.models() if m.candidate == 0))
    study = desk.spec.study_folder
    for name in (".study.json.0.partial", "clock-0", "shared/.teacher.0.partial", "trials/00000/.log.txt.0.partial"):
        study.write(name, b"half")
    study.write("shared/teacher", b"whole")
    study.child("trials/00001/checkpoints").write("step-9", b"of a worker that outlived its study")
    sweep = cleaning.sweep(desk.spec.name)
    assert sweep.num_trials == 3
    assert [name for name in study.sizes() if "partial" in name or "clock" in name] == []
    assert study.child("shared").names() == ["teacher"]
    assert [desk.stored(number) for number in range(3)] == [["log.txt"]] * 3
    assert desk.kept() == {0, 2}
    assert len(desk.model_files()) == 2
    states = {(m.trial, m.candidate): m.state for m in desk.outbox.models()}
    assert states == {(0, None): "kept", (0, 0): "dropped", (1, None): "dropped", (2, None): "kept"}


@pytest.mark.parametrize("keep", ["all", "front"])
def test_gc_leaves_registered_models_and_counts_them_as_staying(make, floor, keep):  # noqa: F811
    desk = make(keep="all")
    decline(desk)
    desk.deliver()
    client, runs = mlflow.MlflowClient(desk.spec.tracking_uri), desk.outbox.runs()
    client.set_tag(runs[0], REGISTERED_TAG, "mine")
    client.create_registered_model(desk.spec.name)
    client.create_model_version(desk.spec.name, f"runs:/{runs[1]}/model", run_id=runs[1])
    client.set_tag(runs[2], REGISTERED_TAG, "mine")
    for number in (1, 2):
        client.delete_run(runs[number])
    plan = cleaning.sweep(desk.spec.name, keep=keep, dry_run=True)
    assert plan.num_models == (1 if keep == "front" else 0)
    assert cleaning.sweep(desk.spec.name, keep=keep) == plan
    assert {0, 1, 2} <= desk.kept()


def test_gc_tells_of_what_went_before_a_study_that_is_refused(make):
    first, second = make(), make()
    for desk in (first, second):
        desk.end(1.0, 1.0)
    with second.folder.lease():
        result = run("gc", first.spec.name, second.spec.name, code=1)
    assert isinstance(result.exception, UserError)
    assert f"{first.spec.name}: gone" in result.stdout


@pytest.mark.parametrize("call", ["search_runs", "set_terminated"])
def test_an_mlflow_that_fails_in_the_middle_of_gc_is_told_in_a_sentence(make, monkeypatch, call):
    desk = make()
    desk.end(1.0, 1.0)

    def fail(*_, **__):
        raise ConnectionError("gone away")

    writer = desk.writer()
    writer.deliver(3)
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"that answers, but .* does not \(gone away\)"):
        patch.setattr(mlflow.MlflowClient, call, fail)
        cleaning.sweep(desk.spec.name)


def copied(desk, home, tmp_path):
    """A copy of the home, whose study was run from the first one."""
    check_storage(desk.spec, home=Home(home))
    return shutil.copytree(home, tmp_path / "copy", ignore=shutil.ignore_patterns("storage"))


def test_a_copied_home_deletes_and_clears_nothing_of_the_first_one(make, home, tmp_path):
    desk = make()
    desk.end(1.0, 1.0, settled=False)
    desk.deliver()
    copy, name = copied(desk, home, tmp_path), desk.spec.name
    for act in (deleting.delete, cleaning.sweep):
        with pytest.raises(UserError, match=f"{name!r} was run from the home {home}, and {copy} has it, too"):
            act(name, home=copy)
    assert desk.kept() == {0}
    assert desk.stored(0) == ["charts", "checkpoints", "log.txt", "model"]
    check_storage(desk.spec)  # of a launch from the copy that another session refuses
    cleaning.sweep(name)
    check_storage(desk.spec, home=Home(copy))
    with pytest.raises(UserError, match=f"was run from the home {copy}"):
        deleting.delete(name)
    deleting.delete(name, home=copy)


@pytest.mark.parametrize("what", ["everything", "the study"])
def test_a_home_that_was_moved_deletes_its_studies(make, home, tmp_path, what):
    desk = make()
    desk.end(1.0, 1.0)
    desk.deliver()
    copy = copied(desk, home, tmp_path)
    desk.folder.path.rename(tmp_path / "away") if what == "the study" else home.rename(tmp_path / "away")
    deleting.delete(desk.spec.name, home=copy)
    assert not (copy / "studies" / desk.spec.name).exists()


def test_an_import_is_nothing_but_rows_and_can_be_deleted(home, store):
    uri, names = copy_of_store(store, home), ("in", "twin")  # two of one source have one id
    theirs = connect(uri).create_experiment(f"theirs-{uuid.uuid4().hex}")
    foreign_run(connect(uri), theirs, loss=1.0)
    for name in names:
        import_experiment(connect(uri).get_experiment(theirs).name, name=name, objectives=["loss:min"])
    assert [folder.name for folder in Home().imported()] == ["in", "twin"]
    assert "in: was imported, and is nothing but rows in MLflow" in run("gc", "in").stdout
    assert [one["study"] for one in json.loads(run("du", "--json").stdout)["studies"]] == ["in", "twin"]
    assert "needs --yes" in str(run("delete", "in", code=1).exception)
    assert "in is deleted" in run("delete", "in", "--yes").stdout
    assert not (home / "studies" / "in").exists()
    assert connect(uri).get_experiment_by_name("in") is None
    assert connect(uri).get_experiment_by_name("twin").lifecycle_stage == "active"
    assert [folder.name for folder in Home().imported()] == ["twin"]


def test_gc_of_a_study_that_is_running_is_refused_and_of_all_leaves_it_out(make):
    running, idle = make(), make()
    for desk in (running, idle):
        desk.end(1.0, 1.0)
    with running.folder.lease():
        with pytest.raises(UserError, match="must be run by one process at a time, but"):
            cleaning.sweep(running.spec.name)
        told = run("gc").stdout
    assert f"{running.spec.name}: is running, left as it is" in told
    assert f"{idle.spec.name}: gone" in told


def test_a_study_is_deleted_only_with_yes_and_then_altogether(make, home, store):
    desk, other = make(), make()
    for one in (desk, other):
        one.end(1.0, 1.0, candidates=[(1.0, 2.0)])
        one.deliver()
    name = desk.spec.name
    result = run("delete", name, code=1)
    assert isinstance(result.exception, UserError)
    assert "needs --yes" in str(result.exception)
    assert desk.kept() == {0}
    told = run("delete", name, "--yes").stdout
    assert f"{name} is deleted" in told
    assert "mlflow gc" in told
    assert list(home.rglob(f"*{name}*")) == []
    assert mlflow.MlflowClient(store).get_experiment_by_name(name) is None
    assert other.kept() == {0}
    with pytest.raises(UserError, match="must have been launched from"):
        deleting.delete(name)
    again = Desk(home, name, uri=store)  # the name is free
    again.end(1.0, 1.0)
    again.deliver()
    assert again.kept() == {0}
    again.close()


def test_what_a_refused_launch_left_is_deleted_and_its_name_is_free_again(home):
    folder = Home(home).study("draft")
    start_driver(folder, ["launch", "nowhere:space", "--name", "draft"])
    with pytest.raises(UserError, match="no module 'nowhere'"):
        await_start(folder, timeout_s=60)
    assert folder.path.exists()
    assert deleting.delete("draft", home=home) is None
    assert not folder.path.exists()
    with pytest.raises(UserError, match="there is no 'draft'"):
        deleting.delete("draft", home=home)


@pytest.mark.parametrize("instant", range(6))
def test_a_deletion_that_is_killed_is_finished_by_the_same_command(make, home, store, monkeypatch, instant):
    desk = make()
    desk.end(1.0, 1.0, settled=False)
    desk.deliver()
    name = desk.spec.name
    steps = [
        "mlflow.MlflowClient.rename_experiment", "mlflow.MlflowClient.delete_experiment", "trainables.storage._remove_tree",
        "trainables.storage.Folder.remove", "pathlib.Path.rename", "shutil.rmtree",
    ]  # fmt: skip

    class Died(BaseException):
        pass

    def die(*_, **__):
        raise Died

    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(steps[instant], die)
        deleting.delete(name)
    deleting.delete(name)
    assert list(home.rglob(f"*{name}*")) == []
    found = mlflow.MlflowClient(store).search_experiments(view_type=ViewType.ALL)
    assert [e.lifecycle_stage for e in found if e.name.startswith(name)] == ["deleted"]


def test_a_storage_of_somebody_else_is_left_as_it_is(make):
    desk = make()
    desk.end(1.0, 1.0)
    desk.deliver()
    desk.spec.study_folder.write("study.json", json.dumps({"study_id": "another"}).encode())
    deleting.delete(desk.spec.name)
    assert desk.spec.study_folder.names() == ["study.json", "trials"]
    assert desk.stored(0) == ["log.txt"]


def test_a_study_that_runs_is_not_deleted(make):
    desk = make()
    desk.end(1.0, 1.0)
    with desk.folder.lease(), pytest.raises(UserError, match="must be run by one process at a time"):
        deleting.delete(desk.spec.name)
    assert desk.stored(0) == ["charts", "checkpoints", "log.txt", "model"]


@pytest.mark.slow
def test_a_small_study_keeps_no_checkpoint_is_extended_and_deleted(home):
    options = ("cmsp_curriculum:tiny", "--name", "tiny", "--trials", "2", "--max-concurrent", "1")
    assert commands.run("launch", *options, home=home).returncode == 0
    found = disk.usage(Home(home).study("tiny"))
    assert (found.num_models, found.num_dropped) == (2, 0)
    assert found.num_bytes[disk.CHECKPOINTS] == found.num_bytes[disk.COPIES] == 0
    assert StudySpec.load(Home(home).study("tiny").spec_file).keep == "front"
    assert commands.run("extend", "tiny", "--trials", "3", home=home).returncode == 0
    found = disk.usage(Home(home).study("tiny"))
    assert (found.num_models, found.num_bytes[disk.COPIES]) == (3, 0)
    assert {path.name for path in (home / "storage" / "tiny" / "trials").glob("*/*")} == {"log.txt"}
    deleting.delete("tiny")
    assert not (home / "storage" / "tiny").exists()
