"""What does it take to ask a study of 20,000 finished trials for its front, beside `mlflow.search_runs` and a plain front?

    python tests/benchmarks/front_query.py
    python tests/benchmarks/front_query.py --home /tmp/big --runs 20000 --rounds 5 --json

Makes, once a home, an MLflow SQLite store with a study of 3 objectives, 8 metrics and 8 parameters a trial: one trial by the
writer of studies, the others as copies of its rows with other numbers, written into MLflow's own tables. Whole processes are
timed with their imports, as a shell starts them; `query` is what is left inside of a process that runs already. The two sides
come in turns, and must come to the same front.

`cold`: everything is read from MLflow. `unchanged`: again. `one more`: a trial has ended since. `search_runs`: the pages as one
data frame, and each trial compared with the front so far.
"""

import argparse
import json
import os
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

NAME = "big"
OBJECTIVES = {"loss_nats": "min", "parameters": "min", "accuracy": "max"}
METRICS = (*OBJECTIVES, "seconds", "samples", "other_loss_nats", "sparsity")
"""Beside progress: eight in all."""
STUDY = [sys.executable, "-m", "study.cli"]
Times = dict[str, list[tuple[float, float]]]
"""Seconds that passed, and seconds of CPU, by what was asked."""


def make_home(home: Path, num_runs: int) -> None:
    """Make the study, unless the home has it."""
    if (home / "mlflow.db").exists():
        return
    from study.home import Home
    from study.recording.outbox import Outbox
    from study.recording.tracking_writer import StudyWriter

    Home(home).prepare()
    outbox = Outbox(home / "outbox.db")
    draw = random.Random(0)
    tags = {
        "objectives": [{"metric": metric, "goal": goal, "unit": ""} for metric, goal in OBJECTIVES.items()],
        "constraints": [], "log_scale": [], "color_by": "null", "num_trials": str(num_runs), "space": "none:none",
        "experiment": "none", "storage": str(home),
    }  # fmt: skip
    outbox.put("session_start", "session/1/start", {"tags": tags})
    params, metrics = draw_params(draw), draw_metrics(draw)
    started = {"params": params, "tags": {"params": params, "attempts": 1, "hostname": "host"}}
    outbox.put("trial_start", "trial/0/start/1", started, trial=0)
    outbox.put("measurement", "trial/0/1", {"step": 1, "metrics": metrics, "progress": 1.0}, trial=0)
    ended = {"state": "finished", "tags": {"repeated_steps": 0, "repeated_seconds": 0.0}, "model": None, "charts": None}
    outbox.put("trial_end", "trial/0/end/1", ended, trial=0)
    StudyWriter(outbox, name=NAME, study_id="big", tracking_uri=Home(home).tracking_uri, artifacts=None).deliver()
    outbox.close()
    with closing(sqlite3.connect(home / "mlflow.db")) as database, database:
        database.execute("PRAGMA synchronous=OFF")
        template = Template(database)
        for trial in range(1, num_runs):
            template.copy(trial, draw_params(draw), draw_metrics(draw))


def draw_params(draw: random.Random) -> dict[str, Any]:
    numbers = {f"strength_{number}": draw.random() for number in range(5)}
    return {
        "width": draw.choice([32, 64, 128]),
        "way": draw.choice(["lasso", "random", "scratch"]),
        "deep": draw.random() < 0.5,
        **numbers,
    }


def draw_metrics(draw: random.Random) -> dict[str, float]:
    return {name: draw.random() for name in METRICS}


class Template:
    """The rows of trial 0, to be copied with other values.

    Args:
        database: MLflow's.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        database.row_factory = sqlite3.Row
        (self._run_id,) = database.execute(
            "SELECT run_uuid FROM tags WHERE key = 'narrow_study.trial' AND value = '0'"
        ).fetchone()
        tables = ("runs", "metrics", "latest_metrics", "params", "tags")
        self._rows = {
            table: [dict(row) for row in database.execute(f"SELECT * FROM {table} WHERE run_uuid = ?", [self._run_id])]
            for table in tables
        }

    def copy(self, trial: int, params: dict[str, Any], metrics: dict[str, float]) -> None:
        """Write a finished trial; it ends a second after the one before it."""
        run_id = uuid.uuid4().hex
        name = f"{NAME}-{trial:04d}"
        values = metrics | {"progress": 1.0}
        tags = {"narrow_study.trial": str(trial), "narrow_study.params": json.dumps(params), "mlflow.runName": name}
        changes: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "runs": lambda row: {
                "name": name,
                "end_time": row["end_time"] + 1000 * trial,
                "start_time": row["start_time"] + 1000 * trial,
            },
            "metrics": lambda row: {"value": values[row["key"]]},
            "latest_metrics": lambda row: {"value": values[row["key"]]},
            "params": lambda row: {"value": str(params[row["key"]])},
            "tags": lambda row: {"value": tags.get(row["key"], row["value"])},
        }
        for table, rows in self._rows.items():
            made = [{**row, "run_uuid": run_id, **changes[table](row)} for row in rows]
            names = ", ".join(f'"{column}"' for column in made[0])
            places = ", ".join(f":{column}" for column in made[0])
            self._database.executemany(f"INSERT INTO {table} ({names}) VALUES ({places})", made)


def add_trial(home: Path, draw: random.Random) -> None:
    """One more trial, ended last."""
    with closing(sqlite3.connect(home / "mlflow.db", timeout=60)) as database, database:
        (count,) = database.execute("SELECT count(*) FROM tags WHERE key = 'narrow_study.trial'").fetchone()
        template = Template(database)
        template.copy(count - 1, draw_params(draw), draw_metrics(draw))  # the parent has the tag, too


def ask_study(home: Path, *options: str) -> list[int]:
    """`study pareto` as a process of its own; the front's trials."""
    command = [*STUDY, "pareto", NAME, "--json", *options]
    done = subprocess.run(command, env=os.environ | {"STUDY_HOME": str(home)}, capture_output=True, text=True, check=True)
    return sorted(row["trial"] for row in json.loads(done.stdout)["front"])


def ask_mlflow(home: Path) -> list[int]:
    """The same question without our code, as a process of its own."""
    command = [sys.executable, str(Path(__file__)), "--plain", "--home", str(home)]
    return list(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["front"])


def plain_query(home: Path) -> list[int]:
    """All runs as a data frame; the front by comparing each trial with the front so far."""
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{home / 'mlflow.db'}")
    frame = mlflow.search_runs(experiment_names=[NAME], filter_string="attributes.status = 'FINISHED'")
    signs = {"min": 1.0, "max": -1.0}
    costs = np.stack([signs[goal] * frame[f"metrics.{metric}"] for metric, goal in OBJECTIVES.items()], axis=1)
    front = np.empty(0, dtype=int)
    for index, cost in enumerate(costs):
        known = costs[front]
        if not ((known <= cost).all(axis=1) & (known < cost).any(axis=1)).any():
            is_beaten = (cost <= known).all(axis=1) & (cost < known).any(axis=1)
            front = np.append(front[~is_beaten], index)
    return sorted(int(trial) for trial in frame["tags.narrow_study.trial"].iloc[front])


def study_query(home: Path) -> list[int]:
    """`open_study` and `front` in this process."""
    from study import open_study

    return sorted(row.number for row in open_study(NAME, home=home).front().rows)


@contextmanager
def clock(times: Times, name: str) -> Iterator[None]:
    start, cpu = time.perf_counter(), sum(os.times()[:4])
    yield
    times.setdefault(name, []).append((time.perf_counter() - start, sum(os.times()[:4]) - cpu))


def measure(home: Path, options: argparse.Namespace) -> Times:
    times: Times = {}
    draw = random.Random(1)
    study_query(home)  # a running process has its modules
    for turn in range(options.rounds):
        fronts = []
        if turn < options.cold_rounds:
            with clock(times, "study pareto, cold"):
                ask_study(home, "--refresh")
        add_trial(home, draw)
        with clock(times, "study pareto, one more"):
            fronts.append(ask_study(home))
        time.sleep(options.pause_s)
        ask_study(home)  # a database that changed a moment ago is asked once more
        with clock(times, "study pareto, unchanged"):
            fronts.append(ask_study(home))
        with clock(times, "query, unchanged"):
            fronts.append(study_query(home))
        add_trial(home, draw)
        with clock(times, "query, one more"):
            front = study_query(home)
        if turn < options.cold_rounds:
            with clock(times, "search_runs, query"):
                assert plain_query(home) == front
            with clock(times, "search_runs, process"):
                assert ask_mlflow(home) == front
        assert fronts[0] == fronts[1] == fronts[2]
    return times


def median_of(values: list[tuple[float, float]], column: int) -> float:
    return statistics.median(value[column] for value in values)


def summarise(times: Times, num_runs: int) -> dict[str, Any]:
    plain = {kind: median_of(times[f"search_runs, {kind}"], 0) for kind in ("query", "process")}
    rows = {}
    for name, values in times.items():
        median = median_of(values, 0)
        rows[name] = {
            "times": len(values),
            "median_s": round(median, 4),
            "worst_s": round(max(seconds for seconds, _ in values), 4),
            "cpu_s": round(median_of(values, 1), 4),
            "plain_over_it": round(plain["query" if "query" in name else "process"] / median, 1),
        }
    return {"runs": num_runs, "cpus": os.cpu_count(), "load": [round(load, 1) for load in os.getloadavg()], "rows": rows}


def run(options: argparse.Namespace) -> None:
    home = Path(options.home).absolute()
    start = time.perf_counter()
    make_home(home, options.runs)
    print(f"store made or found in {time.perf_counter() - start:.1f} s", file=sys.stderr)
    found = summarise(measure(home, options), options.runs)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{found['runs']} finished trials, seconds; {found['cpus']} CPUs, load {found['load']}")
    print(f"{'asked':<28}{'times':>7}{'median':>10}{'worst':>10}{'CPU':>10}{'plain / it':>12}")
    for name, row in found["rows"].items():
        seconds = "".join(f"{row[column]:>10.3f}" for column in ("median_s", "worst_s", "cpu_s"))
        print(f"{name:<28}{row['times']:>7}{seconds}{row['plain_over_it']:>12.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", help="where the store is made, or was; by default a folder that goes afterwards")
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold-rounds", type=int, default=2, help="in how many of them everything is read from MLflow")
    parser.add_argument("--pause-s", type=float, default=0.5, help="for the database to be at rest")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        print(json.dumps({"front": plain_query(Path(options.home))}))
    elif options.home:
        run(options)
    else:
        with tempfile.TemporaryDirectory() as options.home:
            run(options)


if __name__ == "__main__":
    main()
