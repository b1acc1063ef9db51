"""The index of a study on disk: what MLflow told when it was last asked, as two Parquet files and a note of what that was.

While an embedded database is as it was then, the index answers alone, and MLflow is not even imported.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from trainables.storage import Folder

Progress = Callable[[int], None]
"""Told how many runs have been read so far."""
_FORMAT = 4
_NOTE = ("format", "digests", "fingerprint", "until_ms", "origin")
_SQLITE = "sqlite:///"
_SETTLING_NS = 100_000_000
"""File times are no finer than a clock's tick: a file that was touched a moment ago may be touched again unseen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """The experiment of MLflow that an index is of, and of a study its parent run.

    Attributes:
        study_id: of ours; None for an experiment of somebody else's.
        created_ms: tells it from another of its name in another database.
        run_id, tags: of the parent run; none in an experiment of somebody else's.
    """

    experiment_id: str
    name: str
    study_id: str | None
    created_ms: int
    run_id: str | None
    tags: dict[str, str]

    @property
    def identity(self) -> list[Any]:
        """What must be the same for an index to be of use."""
        return [self.experiment_id, self.name, self.study_id, self.created_ms]


@dataclass(frozen=True, slots=True)
class Index:
    """What is known of an experiment.

    Attributes:
        runs: all, deleted ones too, in no order; columns as in `study.asking.trials`.
        candidates: those that are ready.
        complete_until_ms: every candidate made before is among them.
        digests: of the files that these very tables are kept in; None for tables that are in none.
    """

    origin: Origin
    runs: pa.Table
    candidates: pa.Table
    complete_until_ms: int = 0
    digests: Mapping[str, str] | None = None


class IndexFiles:
    """The files of one index. What is damaged, or of another format, counts as missing.

    Args:
        folder: for the indexes of all studies; None to keep nothing.
    """

    def __init__(self, folder: Path | None, tracking_uri: str, name: str) -> None:
        self._folder = None if folder is None else Folder(folder)
        self._tracking_uri = tracking_uri
        self._name = _digest(f"{tracking_uri}\n{name}".encode())[:16]

    def fingerprint(self) -> list[list[int]] | None:
        """What changes whenever an embedded database does; None for a server, or for a database that changes now."""
        if not self._tracking_uri.startswith(_SQLITE) or "?" in self._tracking_uri:
            return None
        database = self._tracking_uri.removeprefix(_SQLITE)
        states = []
        for path in (database, f"{database}-wal"):
            with suppress(FileNotFoundError):
                found = os.stat(path)
                if found.st_size:  # an empty log is none
                    states.append([found.st_ino, found.st_size, found.st_mtime_ns])
        is_settled = all(time.time_ns() - state[2] > _SETTLING_NS for state in states)
        return states if states and is_settled else None

    def load_current(self) -> Index | None:
        """The index, if the database has not changed since; else None."""
        fingerprint = self.fingerprint()
        note = self._note()
        if fingerprint is None or note is None or note["fingerprint"] != fingerprint:
            return None
        return self._load(note)

    def load(self, origin: Origin) -> Index | None:
        """What is known of an experiment; None if that is nothing, or of another."""
        note = self._note()
        found = None if note is None else self._load(note)
        return found if found is not None and found.origin.identity == origin.identity else None

    def save(self, index: Index, fingerprint: list[list[int]] | None) -> None:
        """Keep an index; a folder that cannot be written keeps nothing, and nothing depends on it.

        Tables that are in files already are not written. If somebody else has replaced these since, the index counts as missing:
        a fingerprint says nothing of tables that were read at another time.

        Args:
            fingerprint: of before MLflow was asked.
        """
        if self._folder is None:
            return
        with suppress(OSError):
            digests = index.digests
            if digests is None:
                digests = {"runs": self._write("runs", index.runs), "candidates": self._write("candidates", index.candidates)}
            values = (_FORMAT, digests, fingerprint, index.complete_until_ms, asdict(index.origin))
            text = json.dumps(dict(zip(_NOTE, values, strict=True))).encode()
            self._folder.write(f"{self._name}.note", _digest(text).encode() + b"\n" + text)

    def _note(self) -> dict[str, Any] | None:
        """What was kept last; None if that is nothing, damaged, or of another format."""
        if self._folder is not None:
            with suppress(OSError, ValueError):
                digest, _, text = self._folder.read(f"{self._name}.note").partition(b"\n")
                note = json.loads(text) if _digest(text).encode() == digest else {}
                if tuple(note) == _NOTE and note["format"] == _FORMAT:
                    return dict(note)
        return None

    def _load(self, note: dict[str, Any]) -> Index | None:
        with suppress(OSError):
            runs, candidates = (self._read(what, note["digests"][what]) for what in ("runs", "candidates"))
            if runs is not None and candidates is not None:
                return Index(Origin(**note["origin"]), runs, candidates, note["until_ms"], note["digests"])
        return None

    def _read(self, what: str, digest: str) -> pa.Table | None:
        """A table; None if it is damaged, or of a save that was cut short or came between."""
        from pyarrow import parquet

        assert self._folder is not None
        data = self._folder.read(self._file(what))
        return parquet.ParquetFile(pa.BufferReader(data)).read() if _digest(data) == digest else None  # a data set needs pandas

    def _write(self, what: str, table: pa.Table) -> str:
        from pyarrow import parquet

        assert self._folder is not None
        buffer = pa.BufferOutputStream()
        parquet.write_table(table, buffer, compression="zstd")
        data = buffer.getvalue().to_pybytes()
        self._folder.write(self._file(what), data)
        return _digest(data)

    def _file(self, what: str) -> str:
        return f"{self._name}.{what}.parquet"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
