"""What happened, on its way to MLflow: a durable queue between the study's control loop and the writer process.

Every event has a key of its own and is put at most once, so an event that is seen again after a crash (a step made
twice, an end told twice) changes nothing. Putting one costs well under a millisecond and never waits for MLflow.
"""

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study.home import make_wal
from study.keeping.retention import Model, State
from study.running.bookkeeping import keep_books
from study.running.ledger import Ledger

_SCHEMA = """
CREATE TABLE IF NOT EXISTS event (seq INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, payload TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS run (trial INTEGER PRIMARY KEY, run_id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS delivered (only_row INTEGER PRIMARY KEY CHECK (only_row = 0), seq INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS model (
    trial INTEGER, candidate INTEGER, place TEXT NOT NULL, bytes INTEGER NOT NULL, costs TEXT, state TEXT NOT NULL,
    PRIMARY KEY (trial, candidate)
);
INSERT OR IGNORE INTO delivered VALUES (0, 0);
"""
_CLOSING = {"trial_end": "end", "trial_interrupted": "interrupted"}
_NO_CANDIDATE = -1
_SETTLED = "settled/"
_RUNG = "rung/"
"""Begin the keys of such events: all of them are found without looking at the others."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    Attributes:
        seq: its place in the order of things.
        kind: session_start, trial_start, share, measurement, repeat, rung, candidate, trial_end, trial_interrupted,
            trial_settled or session_end. A trial is settled when it has ended and the record knows: nothing goes on from its
            files any more.
        trial: number, or None where the event concerns the whole study.
        time_ms: when it happened, milliseconds since 1970.
        data: the rest.
    """

    seq: int
    kind: str
    trial: int | None
    time_ms: int
    data: dict[str, Any]


class Outbox:
    """The queue of one study.

    Args:
        file: an SQLite database; made when it does not exist.
    """

    def __init__(self, file: Path) -> None:
        make_wal(file)
        self._connection = sqlite3.connect(file, timeout=60, isolation_level=None)
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.executescript(_SCHEMA)

    def put(self, kind: str, key: str, data: Mapping[str, Any], *, trial: int | None = None, time_ms: int | None = None) -> bool:
        """Append an event unless its key is there already; return whether it was new.

        Args:
            time_ms: when it happened, milliseconds since 1970; None for now.
        """
        payload = {"kind": kind, "trial": trial, "time_ms": _now_ms() if time_ms is None else time_ms, "data": dict(data)}
        cursor = self._connection.execute("INSERT OR IGNORE INTO event (key, payload) VALUES (?, ?)", (key, json.dumps(payload)))
        return cursor.rowcount == 1

    def close_attempt(self, kind: str, trial: int, attempt: int, data: Mapping[str, Any], *, time_ms: int | None = None) -> None:
        """Note that an attempt is over, by a trial_end or a trial_interrupted, with the books of its trial until then.

        Args:
            data: with `tags`, to which the books are added.
            time_ms: when it ended, milliseconds since 1970; None for now.
        """
        now_ms = _now_ms() if time_ms is None else time_ms
        rows = self._connection.execute("SELECT seq, payload FROM event WHERE key GLOB ? ORDER BY seq", (f"trial/{trial}/*",))
        events = [Event(seq=seq, **json.loads(payload)) for seq, payload in rows]
        ledger = keep_books([*events, Event(0, kind, trial, now_ms, dict(data))])
        data = {"until_ms": now_ms, **data, "tags": {**data["tags"], "ledger": ledger.to_json()}}
        self.put(kind, f"trial/{trial}/{_CLOSING[kind]}/{attempt}", data, trial=trial, time_ms=now_ms)

    def ledgers(self) -> dict[int, Ledger]:
        """The books of every trial of which an attempt is over, without those that are under way."""
        closing = " OR ".join(f"key GLOB 'trial/*/{word}/*'" for word in _CLOSING.values())
        fields = "json_extract(payload, '$.trial'), json_extract(payload, '$.data.tags.ledger')"
        rows = self._connection.execute(f"SELECT {fields} FROM event WHERE {closing} ORDER BY seq").fetchall()
        texts = {trial: text for trial, text in rows if text is not None}  # older versions put none
        return {trial: Ledger.from_json(text) for trial, text in texts.items()}

    def pending(self, limit: int) -> list[Event]:
        """The oldest events that are not delivered yet."""
        rows = self._connection.execute(
            "SELECT seq, payload FROM event WHERE seq > (SELECT seq FROM delivered) ORDER BY seq LIMIT ?", (limit,)
        )
        return [Event(seq=seq, **json.loads(payload)) for seq, payload in rows]

    def num_pending(self) -> int:
        row = self._connection.execute("SELECT count(*) FROM event WHERE seq > (SELECT seq FROM delivered)").fetchone()
        return int(row[0])

    def repeats(self, trial: int) -> tuple[int, float]:
        """Steps of a trial that later attempts had to make again, and the seconds that those took."""
        rows = self._connection.execute("SELECT payload FROM event WHERE key GLOB ?", (f"trial/{trial}/repeat/*",)).fetchall()
        return len(rows), sum(json.loads(payload)["data"]["seconds"] for (payload,) in rows)

    def put_rung(self, trial: int, step: int, shown: Mapping[str, Any]) -> None:
        """Note what a trial showed when it reached a rung of early stopping."""
        self.put("rung", f"{_RUNG}{trial}/{step}", shown, trial=trial)

    def rungs(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """What trials showed at rungs, with their numbers, in the order in which they reached them."""
        rows = self._connection.execute("SELECT payload FROM event WHERE key GLOB ? ORDER BY seq", (f"{_RUNG}*",)).fetchall()
        return ((event["trial"], event["data"]) for event in map(json.loads, (payload for (payload,) in rows)))

    def stop_of(self, trial: int) -> dict[str, Any] | None:
        """What was noted of a trial's early stop, if it was stopped."""
        rows = self._connection.execute("SELECT payload FROM event WHERE key GLOB ? ORDER BY seq", (f"trial/{trial}/end/*",))
        ends = [json.loads(payload)["data"] for (payload,) in rows]
        return next((end for end in ends if end["state"] == "stopped"), None)

    def num_candidates(self, trial: int) -> int:
        """How many candidates a trial offered."""
        query = "SELECT count(*) FROM event WHERE key GLOB ?"
        return int(self._connection.execute(query, (f"trial/{trial}/candidate/*",)).fetchone()[0])

    def last_delivered(self) -> int:
        """Everything up to this `seq` has reached MLflow."""
        return int(self._connection.execute("SELECT seq FROM delivered").fetchone()[0])

    def mark_delivered(self, seq: int) -> None:
        """Everything up to `seq` has reached MLflow."""
        self._connection.execute("UPDATE delivered SET seq = ?", (seq,))

    def runs(self) -> dict[int, str]:
        """The MLflow run of every trial that has one; the parent run is trial -1."""
        return dict(self._connection.execute("SELECT trial, run_id FROM run"))

    def remember_run(self, trial: int, run_id: str) -> None:
        self._connection.execute("INSERT OR REPLACE INTO run VALUES (?, ?)", (trial, run_id))

    def settle(self, folders: Mapping[int, str]) -> None:
        """Note of trials that the record knows their end.

        Args:
            folders: of the trials, in the study's storage.
        """
        with self._transaction():
            for trial, folder in folders.items():
                self.put("trial_settled", f"{_SETTLED}{trial}", {"folder": folder}, trial=trial)

    def settled(self) -> set[int]:
        """Every trial that `settle` has noted."""
        rows = self._connection.execute("SELECT key FROM event WHERE key GLOB ?", (f"{_SETTLED}*",))
        return {int(key.removeprefix(_SETTLED)) for (key,) in rows}

    def remember_models(self, models: Iterable[Model]) -> None:
        """Note models that MLflow has, unless they are noted already."""
        rows = [(m.trial, _number(m.candidate), m.place, m.num_bytes, json.dumps(m.costs), m.state) for m in models]
        with self._transaction():
            self._connection.executemany("INSERT OR IGNORE INTO model VALUES (?, ?, ?, ?, ?, ?)", rows)

    def mark_model(self, model: Model, state: State) -> None:
        where = (state, model.trial, _number(model.candidate))
        self._connection.execute("UPDATE model SET state = ? WHERE trial = ? AND candidate = ?", where)

    def models(self) -> list[Model]:
        """Every model that was noted, those of the trial that was settled first before others."""
        rows = self._connection.execute("SELECT trial, candidate, place, bytes, costs, state FROM model ORDER BY rowid")
        return [
            Model(trial, None if candidate == _NO_CANDIDATE else candidate, place, num_bytes, _costs(costs), state)
            for trial, candidate, place, num_bytes, costs, state in rows
        ]

    def start_session(self, tags: Mapping[str, Any]) -> int:
        """Note that a driver took up the study; close what an earlier one left open. Returns the session's number.

        What that one left open counts until its last event: nobody knows how much longer it lived.
        """
        self.close_session(self._num_sessions(), until_ms=self._last_ms())
        session = self._num_sessions() + 1
        self.put("session_start", f"session/{session}/start", {"tags": dict(tags)})
        return session

    def close_session(self, session: int, status: str = "KILLED", *, until_ms: int | None = None) -> None:
        """Note that a session is over, and that the trials it left open are interrupted.

        Does nothing if the session is closed already or a later one has begun, so that anybody may call it at any time.

        Args:
            until_ms: when its workers ended, milliseconds since 1970; None for now.
        """
        with self._transaction():
            if session == 0 or session != self._num_sessions():
                return
            for trial, attempt in self._open_trials().items():
                told = {} if until_ms is None else {"until_ms": until_ms}
                self.close_attempt("trial_interrupted", trial, attempt, {"tags": {}, **told})
            tags = {"ledger": Ledger.sum(self.ledgers().values()).to_json()}
            self.put("session_end", f"session/{session}/end", {"status": status, "tags": tags})

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # SQLite may have rolled it back itself
                self._connection.execute("ROLLBACK")
            raise

    def _last_ms(self) -> int | None:
        row = self._connection.execute("SELECT payload FROM event ORDER BY seq DESC LIMIT 1").fetchone()
        return None if row is None else int(json.loads(row[0])["time_ms"])

    def _num_sessions(self) -> int:
        return int(self._connection.execute("SELECT count(*) FROM event WHERE key GLOB 'session/*/start'").fetchone()[0])

    def _open_trials(self) -> dict[int, int]:
        """Trials that started and neither ended nor were marked interrupted since, with their latest attempt."""
        attempts: dict[int, int] = {}
        kinds = " OR ".join(f"key GLOB 'trial/*/{kind}/*'" for kind in ("start", "end", "interrupted"))
        lifecycle = f"SELECT payload FROM event WHERE {kinds} ORDER BY seq"
        for (payload,) in self._connection.execute(lifecycle):
            event = json.loads(payload)
            if event["kind"] == "trial_start":
                attempts[event["trial"]] = event["data"]["attempt"]
            else:
                attempts.pop(event["trial"], None)
        return attempts

    def close(self) -> None:
        self._connection.close()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _number(candidate: int | None) -> int:
    return _NO_CANDIDATE if candidate is None else candidate


def _costs(text: str) -> tuple[float, ...] | None:
    costs = json.loads(text)
    return None if costs is None else tuple(costs)
