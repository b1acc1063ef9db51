"""Where studies live on this machine: `$STUDY_HOME`, one folder a study, one MLflow store for all.

$STUDY_HOME/mlflow.db            MLflow's store, unless another is named
$STUDY_HOME/mlartifacts/         its artifacts
$STUDY_HOME/studies/NAME/        spec.json, optuna.db (record.json, where --record is a server), outbox.db, lock, stop, writer.log
$STUDY_HOME/storage/NAME/        checkpoints, models and logs of the trials, unless --storage says otherwise
"""

import fcntl
import json
import os
import re
import socket
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from study.errors import UserError
from trainables.storage import Folder

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_NETWORK_FILESYSTEMS = {
    "nfs", "nfs4", "lustre", "cifs", "smb3", "smbfs", "gpfs", "beegfs", "afs", "ceph", "glusterfs", "fuse.sshfs",
    "fuse.glusterfs", "fuse.ceph", "pvfs2", "orangefs", "panfs", "wekafs", "9p",
}  # fmt: skip


def check_name(name: str) -> str:
    """Return the name of a study if it may become a path and an MLflow experiment.

    Raises:
        UserError: if it may not.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            "a study's name must be 1 to 80 letters, digits, '.', '_' and '-', beginning with a letter or digit, "
            f"but got {name!r}; try {re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('-._')[:80] or 'my-study'!r}"
        )
    return name


def model_label(trial: int, candidate: int | None) -> str:
    """How people and tables call a model: 3, the last one of trial 3; 3.4, its candidate 4."""
    return str(trial) if candidate is None else f"{trial}.{candidate}"


class Home:
    """A study home.

    Args:
        path: the folder; None for `$STUDY_HOME`, or `narrow-studies` in the user's home.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        chosen = path or os.environ.get("STUDY_HOME") or Path.home() / "narrow-studies"
        self.path = Path(chosen).expanduser().absolute()

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.path / 'mlflow.db'}"

    def study(self, name: str) -> "StudyFolder":
        """The folder of a study, which need not exist."""
        return StudyFolder(self, check_name(name))

    def studies(self) -> list["StudyFolder"]:
        """Every study that was launched from this home, by name."""
        folders = [StudyFolder(self, file.parent.name) for file in sorted((self.path / "studies").glob("*/spec.json"))]
        return [folder for folder in folders if folder.exists()]

    def imported(self) -> list["StudyFolder"]:
        """Every study that was imported into this home, by name: rows in its MLflow, and nothing else."""
        folders = [StudyFolder(self, file.parent.name) for file in sorted((self.path / "studies").glob("*/imported.json"))]
        return [folder for folder in folders if folder.is_imported]

    def prepare(self) -> None:
        """Make the home and its MLflow database ready for one writer and many readers.

        Raises:
            UserError: if the home cannot be written, or is on a network file system.
        """
        refuse_network_filesystem(self.path)
        try:
            (self.path / "studies").mkdir(parents=True, exist_ok=True)
            if (self.path / "mlflow.db").exists():
                make_wal(self.path / "mlflow.db")
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"the study home must be a folder that can be written, but {self.path} is not ({error}); "
                "make room there, or set STUDY_HOME to one that is"
            ) from error


class StudyFolder:
    """The driver's files of one study."""

    def __init__(self, home: Home, name: str) -> None:
        self.home = home
        self.name = name
        self.path = home.path / "studies" / name
        self.spec_file = self.path / "spec.json"
        self.optuna_file = self.path / "optuna.db"
        self.record_file = self.path / "record.json"
        self.warm_start_file = self.path / "warm_start.json"
        self.outbox_file = self.path / "outbox.db"
        self.writer_log = self.path / "writer.log"
        self._lock_file = self.path / "lock"
        self._stop_file = self.path / "stop"
        self._id_file = self.path / "study_id"

    def exists(self) -> bool:
        """Whether a launch got as far as its first trial; one that failed before leaves only a draft."""
        return self.spec_file.is_file() and (self.optuna_file.is_file() or self.record_file.is_file())

    @property
    def is_imported(self) -> bool:
        """Whether it was made by `study import`: it has no space, no record and no storage."""
        return (self.path / "imported.json").is_file() and not self.exists()

    def study_id(self) -> str:
        """What tells this study from another of its name: made once, and kept by a launch that fails. Needs the lease."""
        if not self._id_file.exists():
            write_whole(self._id_file, uuid.uuid4().hex)
        return self._id_file.read_text()

    def require(self) -> "StudyFolder":
        """Return itself.

        Raises:
            UserError: if no such study was launched from this home, or it was imported.
        """
        if self.is_imported:
            raise UserError(
                f"a study goes on only if it has a space to draw from, but {self.name!r} was imported; launch one of its own"
            )
        if not self.exists():
            known = ", ".join(study.name for study in self.home.studies()) or "none yet"
            raise UserError(
                f"a study must have been launched from {self.home.path}, but there is no {self.name!r} (there: {known}); "
                "see `study list`, or set STUDY_HOME"
            )
        return self

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Hold the study for this process; the kernel frees it when the process dies, however it dies.

        Raises:
            UserError: naming the process that holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with self._lock_file.open("a+") as file:
            if not _try_lock(file):
                holder = self.holder() or {"host": "unknown", "pid": "unknown"}
                raise UserError(
                    f"a study must be run by one process at a time, but {self.name!r} is being run by process "
                    f"{holder['pid']} on {holder['host']}; wait for it, or end it with: study stop {self.name}"
                )
            self._stop_file.unlink(missing_ok=True)  # it was meant for a session before this one
            self._say_holder(file, begun=False)
            try:
                yield
            finally:
                file.truncate(0)

    def say_begun(self) -> None:
        """Tell those who ask for the holder that it has refused nothing and runs the study. The caller holds the lease."""
        with self._lock_file.open("a+") as file:
            self._say_holder(file, begun=True)

    def _say_holder(self, file: IO[str], *, begun: bool) -> None:
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "begun": begun}
        file.truncate(0)
        file.write(json.dumps(holder))
        file.flush()

    def ask_to_stop(self) -> None:
        """Ask whoever runs the study now to keep what is done and end; a session that begins later does not hear it."""
        self._stop_file.touch()

    def is_asked_to_stop(self) -> bool:
        """Whether somebody asked the present session to end."""
        return self._stop_file.exists()

    def holder(self) -> dict[str, str | int] | None:
        """Who runs the study now: `host` and `pid`, and `begun`, once nothing can be refused any more; None for nobody."""
        try:
            with self._lock_file.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    held: dict[str, str | int] = json.loads(file.read() or '{"host": "unknown", "pid": "unknown"}')
                    return held
        except FileNotFoundError:
            pass
        return None


def _try_lock(file: IO[str]) -> bool:
    """Take the lock, trying for a second: somebody who only looks whether it is free holds it for an instant."""
    for _ in range(20):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.05)
    return False


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all."""
    Folder(path.parent).write(path.name, text.encode())


def make_wal(database: Path) -> None:
    """Put an SQLite database in write-ahead mode, which stays with the file: readers never block the writer."""
    with sqlite3.connect(database, timeout=30) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    connection.close()


def refuse_network_filesystem(path: Path, mounts: Path = Path("/proc/mounts")) -> None:
    """SQLite's write-ahead log needs shared memory, which network file systems lack: it would be corrupted there.

    Raises:
        UserError: if the path is on one.
    """
    kind = filesystem_of(path, mounts)
    if kind in _NETWORK_FILESYSTEMS:
        raise UserError(
            f"the study home must be on a local disk, since it holds SQLite databases, but {path} is on {kind}; set STUDY_HOME "
            "to a local folder, and name the shared one with --storage and a server with --tracking-uri"
        )


def filesystem_of(path: Path, mounts: Path = Path("/proc/mounts")) -> str | None:
    """Type of the file system that holds a path, as the kernel names it; None where the kernel does not say."""
    if not mounts.exists():
        return None
    path = path.expanduser().resolve()
    found, depth = None, -1
    for line in mounts.read_text().splitlines():
        _, mount_point, kind, *_ = line.split()
        point = Path(mount_point.replace("\\040", " "))
        if path.is_relative_to(point) and len(point.parts) >= depth:
            found, depth = kind, len(point.parts)
    return found
