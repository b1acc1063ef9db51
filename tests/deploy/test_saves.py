"""Saves of a study home on SLURM: whole, of one instant, and back again, wherever a job is killed."""

import contextlib
import fcntl
import importlib.util
import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

SPEC = importlib.util.spec_from_file_location("saves", Path(__file__).parents[2] / "deploy/slurm/saves.py")
saves = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(saves)


@pytest.fixture
def shared(tmp_path):
    return tmp_path / "shared"


@pytest.fixture
def home(tmp_path, shared):
    """The home of an allocation that has begun."""
    home = tmp_path / "local" / "home"
    saves.begin(shared, home)
    return home


def make_study(home, name="s"):
    folder = home / "studies" / name
    folder.mkdir(parents=True)
    (folder / "study_id").write_text("1")
    (folder / "lock").touch()
    with contextlib.closing(sqlite3.connect(folder / "optuna.db")) as record:
        record.execute("CREATE TABLE trials (number INTEGER)")
        record.commit()
    return folder


@pytest.mark.parametrize("name", ["s", "index", "storage", "lock"])
def test_a_study_is_saved_and_laid_down_whatever_it_is_called(shared, home, name):
    make_study(home, name)
    saves.end(shared, home)
    shutil.rmtree(home.parent)
    saves.begin(shared, home)
    assert (home / "studies" / name / "optuna.db").exists()


def test_a_job_killed_while_it_puts_the_storage_back_leaves_it_to_the_next(shared, home, monkeypatch):
    make_study(home)
    (shared / "storage/s").mkdir(parents=True)
    (shared / "storage/s/old").touch()
    saves.save(shared, home, driver=2**30)  # nobody's number: a save while the study ran
    (shared / "storage/s/newer").touch()
    shutil.rmtree(home.parent)  # the next allocation is elsewhere
    rename = Path.rename

    def rename_and_die(path, target):
        rename(path, target)
        if target.name == "storage.newer":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", rename_and_die)
        saves.begin(shared, home)
    assert not (shared / "storage").exists()
    saves.begin(shared, home)
    assert [file.name for file in (shared / "storage/s").iterdir()] == ["old"]
    assert (home / "studies/s/optuna.db").exists()


def test_a_writer_that_outlives_its_driver_stands_still_for_a_save_which_is_not_the_last(shared, home, monkeypatch):
    folder = make_study(home)
    monkeypatch.setattr(saves, "WRITERS_END_S", 0.0)
    copy_home, states = saves.copy_home, []
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)", "study.recording.writer", str(folder), "1"]
    with subprocess.Popen(sleeper) as writer:

        def copy(*places):
            states.append(psutil.Process(writer.pid).status())
            copy_home(*places)

        with monkeypatch.context() as patch:
            patch.setattr(saves, "copy_home", copy)
            saves.end(shared, home)
        states.append(psutil.Process(writer.pid).status())
        writer.kill()
    assert states[0] == psutil.STATUS_STOPPED != states[1]
    assert json.loads((shared / "saves/00000001/save.json").read_text())["is_last"] is False
    saves.end(shared, home)
    assert json.loads((shared / "saves/00000002/save.json").read_text())["is_last"] is True


def test_a_second_job_of_a_study_on_one_node_is_refused_and_saves_nothing(shared, home):
    folder = make_study(home)
    allocation = (shared / "allocation.json").read_text()
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for step in (saves.begin, saves.end):
            with pytest.raises(SystemExit, match="run by one job at a time"):
                step(shared, home)
    assert saves.saves(shared) == []
    assert (shared / "allocation.json").read_text() == allocation
