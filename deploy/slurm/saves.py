"""The study home of a SLURM job: on a node's own disk while it runs, saved to the file system that all nodes share.

    python saves.py begin SHARED HOME          before the driver starts: bring HOME to the newest state that there is
    python saves.py keep SHARED HOME PID       while PID, the driver, runs: save every --every seconds
    python saves.py end SHARED HOME            after it: the last save
    python saves.py show SHARED HOME           on any machine: lay the newest save down, to be asked for fronts and models

SQLite's write-ahead log works on a local disk only, and the next allocation may get another node. So the home is copied, and a
save is what SIGKILL at one instant would have left, which a study survives: driver and writer stand still while all databases
are copied and the storage's files, on the shared file system, get a second name (they are never written twice, but deleted when
MLflow has them). A save is there whole or not at all. MLflow's files lie on the shared file system and are not copied.
"""

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import sqlite3
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

LEASE_EXPIRES_S = 65.0
"""A session that was cut off with its node is taken for dead after a minute (`study/running/lease.py`)."""
WRITERS_END_S = 20.0
"""So long the last save waits for what is on its way to MLflow."""
STOPS_WITHIN_S = 5.0
NUM_KEPT = 2
NOT_COPIED = {"index", "mlartifacts", "storage"}
"""A cache, and what lies on the shared file system."""
LOCKS = {"lock", "writer.lock", "stop"}
"""Of processes that are gone."""


def begin(shared: Path, home: Path) -> None:
    """Bring the home to the newest state: its own, if the last allocation ran here, else that of the newest save."""
    claim_folder(home.parent)
    refuse_company(home)
    for folder in (shared / "saves", shared / "mlartifacts"):
        folder.mkdir(parents=True, exist_ok=True)
    last, own = read_json(shared / "allocation.json"), read_json(home / "allocation.json")
    if own is not None and own == last:
        say(f"going on with {home}, as the last allocation left it")
    else:
        if home.exists():  # of an allocation before the last one, or of another study
            shutil.rmtree(home.with_name(home.name + ".old"), ignore_errors=True)
            home.rename(home.with_name(home.name + ".old"))
        await_lease(shared / "storage")
        restore(shared, home, last)
    job = f"{os.environ.get('SLURM_JOB_ID', 'none')}.{os.environ.get('SLURM_RESTART_COUNT', '0')}"
    allocation = {"job": job, "host": socket.gethostname(), "id": uuid.uuid4().hex}
    for folder in (home, shared):
        write_whole(folder / "allocation.json", json.dumps(allocation))


def restore(shared: Path, home: Path, last: dict[str, Any] | None) -> None:
    """Go back to the newest save; without one, begin anew."""
    newest = next(reversed(saves(shared)), None)
    if newest is None:
        home.mkdir()
        (home / "mlartifacts").symlink_to(shared / "mlartifacts", target_is_directory=True)
        shutil.rmtree(shared / "storage", ignore_errors=True)  # of an allocation killed before its first save: nobody knows it
        return
    facts = json.loads((newest / "save.json").read_text())
    say(f"going on from the save of {facts['time']}")
    if not facts["is_last"]:
        where = f"the allocation {last['job']} on {last['host']}" if last else "the last allocation"
        say(f"{where} ended without a last save: what it did after that is done again")
        put_back_storage(newest / "storage", shared / "storage")
    lay_down(newest, shared, home)  # last: a home that is there is one that its storage fits


def lay_down(newest: Path, shared: Path, home: Path) -> None:
    """Copy a save's home to the local disk."""
    partial = home.with_name(home.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(newest, partial, ignore=lambda folder, _: {"storage"} if Path(folder) == newest else set())
    (partial / "mlartifacts").symlink_to(shared / "mlartifacts", target_is_directory=True)
    partial.rename(home)


def put_back_storage(saved: Path, storage: Path) -> None:
    """Have the storage be as it was when the home was saved: what came after it, nobody knows of."""
    partial, newer = storage.with_name("storage.partial"), storage.with_name("storage.newer")
    for folder in (partial, newer):
        shutil.rmtree(folder, ignore_errors=True)
    link_tree(saved, partial)
    if storage.exists():
        storage.rename(newer)
    partial.rename(storage)
    shutil.rmtree(newer, ignore_errors=True)


def link_tree(source: Path, target: Path) -> None:
    """Give every file a second name; one that is deleted meanwhile is left out."""
    target.mkdir(parents=True, exist_ok=True)
    for folder, _, files in os.walk(source):
        place = target / Path(folder).relative_to(source)
        place.mkdir(exist_ok=True)
        for name in files:
            if name != "lease.json" and not name.startswith("."):  # said for an instant; half written
                with contextlib.suppress(FileNotFoundError):
                    os.link(Path(folder) / name, place / name)


def await_lease(storage: Path) -> None:
    """Wait until a driver that may still run on another node is gone, or known to be cut off."""
    for file in storage.glob("*/lease.json"):
        if (read_json(file) or {}).get("host") == socket.gethostname():
            continue  # the kernel's lock tells
        say(f"waiting until {file} is given back, or not renewed for {LEASE_EXPIRES_S:g} s")
        seen, since = b"", time.monotonic()
        while file.exists() and time.monotonic() < since + LEASE_EXPIRES_S:
            with contextlib.suppress(FileNotFoundError):
                if file.read_bytes() != seen:
                    seen, since = file.read_bytes(), time.monotonic()
            time.sleep(1)


def keep(shared: Path, home: Path, driver: int, every_s: float) -> None:
    """Save again and again while the driver runs; what cannot be saved now is saved the next time."""
    wait_s = min(5.0, every_s)  # the first one soon: an allocation may be short
    while psutil.pid_exists(driver):
        time.sleep(wait_s)
        try:
            if any(home.glob("studies/*/optuna.db")):
                save(shared, home, driver=driver)
                wait_s = every_s
        except (OSError, sqlite3.Error) as error:
            say(f"could not save the study home to {shared} ({error}); the next try is in {every_s:g} s")


def end(shared: Path, home: Path) -> None:
    """Save the home for the last time in this allocation."""
    refuse_company(home)
    deadline = time.monotonic() + WRITERS_END_S
    while writers_of(home) and time.monotonic() < deadline:
        time.sleep(0.5)
    if any(home.glob("studies/*/study_id")):
        save(shared, home, driver=None)
        say(f"the study home is saved in {shared / 'saves'}")


def show(shared: Path, home: Path) -> None:
    """Lay down the newest save where MLflow's paths in it lead, in place of one that was shown before."""
    if not saves(shared):
        sys.exit(f"a study must have been saved to be shown, but there is nothing in {shared / 'saves'}; wait a minute")
    if (home / "allocation.json").exists():
        sys.exit(f"a study home that may be in use must not be replaced, but a job left {home}; set STUDY_HOME to it")
    claim_folder(home.parent)
    shutil.rmtree(home, ignore_errors=True)
    lay_down(saves(shared)[-1], shared, home)
    (home / "allocation.json").unlink(missing_ok=True)  # it is a copy, and no job shall go on with it


def save(shared: Path, home: Path, *, driver: int | None) -> None:
    """Copy the home to the local disk while nobody writes there, then to the shared file system; keep the newest two saves.

    Args:
        driver: its process; None when it has ended, and this is the last save.
    """
    cut, partial = home.with_name(home.name + ".cut"), shared / "saves" / ".partial"
    for folder in (cut, partial):
        shutil.rmtree(folder, ignore_errors=True)
    with standing_still(driver, home) as is_quiet:
        copy_home(home, cut)
        link_tree(shared / "storage", partial / "storage")
    facts = {"time": time.strftime("%Y-%m-%d %H:%M:%S %z"), "host": socket.gethostname(), "is_last": is_quiet}
    (cut / "save.json").write_text(json.dumps(facts))
    shutil.copytree(cut, partial, dirs_exist_ok=True)
    for file in partial.rglob("*"):
        if not file.is_relative_to(partial / "storage"):  # those were synced when they were written
            sync(file)
    numbers = [int(folder.name) for folder in saves(shared)]
    partial.rename(shared / "saves" / f"{max(numbers, default=0) + 1:08d}")
    sync(shared / "saves")
    for folder in saves(shared)[:-NUM_KEPT]:
        shutil.rmtree(folder)


@contextlib.contextmanager
def standing_still(driver: int | None, home: Path) -> Iterator[bool]:
    """Inside, a driver, all that it started, and every writer of the home do nothing; tells whether there is none of them."""
    stopped: list[psutil.Process] = []
    try:
        if driver is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(driver)
                for member in (process, *process.children(recursive=True)):
                    stop(member, stopped)
        for writer in writers_of(home):
            stop(writer, stopped)
        yield driver is None and not stopped
    finally:
        for member in reversed(stopped):
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(signal.SIGCONT)


def stop(process: psutil.Process, stopped: list[psutil.Process]) -> None:
    """Have a process stand still, unless it is gone: the signal is sent before it is heard."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGSTOP)
        stopped.append(process)
        deadline = time.monotonic() + STOPS_WITHIN_S
        while process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE) and time.monotonic() < deadline:
            time.sleep(0.001)


def writers_of(home: Path) -> list[psutil.Process]:
    """Who carries events from the home to MLflow; a writer outlives its driver, however that ends."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "study.recording.writer" in words and any(word.startswith(f"{home}/studies/") for word in words):
            found.append(process)
    return found


def copy_home(home: Path, target: Path) -> None:
    """Copy databases as of their last commit, and other files as they are."""
    for folder, folders, files in os.walk(home):
        folders[:] = [name for name in folders if Path(folder) != home or name not in NOT_COPIED]
        place = target / Path(folder).relative_to(home)
        place.mkdir(parents=True)
        for name in files:
            file = Path(folder) / name
            if file.suffix == ".db":
                copy_database(file, place / name)
            elif name not in LOCKS and not name.endswith((".db-wal", ".db-shm")):
                shutil.copy2(file, place / name)


def copy_database(source: Path, target: Path) -> None:
    """Copy an SQLite database that others have open."""
    with contextlib.closing(sqlite3.connect(source, timeout=30)) as old, contextlib.closing(sqlite3.connect(target)) as new:
        old.backup(new)


def saves(shared: Path) -> list[Path]:
    """Whole saves, oldest first."""
    return sorted(folder for folder in (shared / "saves").glob("[0-9]*") if folder.is_dir())


def claim_folder(folder: Path) -> None:
    """Make a folder that nobody else can enter, or find out that it is ours: its place may be one where all may write."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        sys.exit(f"the study home's folder must be yours, but {folder} is somebody else's; set LOCAL to another one")
    folder.chmod(0o700)


def refuse_company(home: Path) -> None:
    """End, unless nobody runs a study of this home: a job of the same name on this node may."""
    for file in home.glob("studies/*/lock"):
        with file.open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # gone with the file, as it is closed
            except BlockingIOError:
                sys.exit(f"a study must be run by one job at a time, but another one on this node runs it in {home}; see squeue")


def read_json(file: Path) -> dict[str, Any] | None:
    """What a file says; None if it is not there, or torn."""
    try:
        fields: dict[str, Any] = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return fields


def write_whole(file: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text)
    sync(partial)
    partial.rename(file)


def sync(path: Path) -> None:
    """Have a file or folder survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def say(sentence: str) -> None:
    """Tell it in the job's log, at once."""
    print(sentence, flush=True)


def main() -> None:
    """Do what the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("begin", "keep", "end", "show"))
    parser.add_argument("shared", type=Path)
    parser.add_argument("home", type=Path)
    parser.add_argument("driver", type=int, nargs="?")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two saves")
    given = parser.parse_args()
    shared, home = given.shared.absolute(), given.home.absolute()
    if given.action == "begin":
        begin(shared, home)
    elif given.action == "keep":
        keep(shared, home, given.driver, given.every)
    elif given.action == "show":
        show(shared, home)
    else:
        end(shared, home)


if __name__ == "__main__":
    main()
