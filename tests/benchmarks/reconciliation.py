"""How long does a study with thousands of finished trials take to go on, beside plain Optuna reading the same database?

    python tests/benchmarks/reconciliation.py --trials 100 1000 5000
    python tests/benchmarks/reconciliation.py --samplers random --rounds 5 --clock cpu --json

Each round is a fresh process on a fresh copy of the study: eight parameters, some conditional, two objectives, one
constraint; a twentieth of the trials failed, three are unfinished, and MLflow has heard of all. Imports and Ray's start are
outside the clock. Plain Optuna, on its default storage settings, loads the study and its trials, then asks for one.
"""

import argparse
import io
import json
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from search_spaces.space import Constraint, StudySpace
from study.home import Home, StudyFolder
from study.probe import Parameter, SpaceDescription
from study.recording.outbox import Outbox
from study.running.board import Board
from study.running.record import TrialRecord
from study.running.samplers import make_sampler
from study.running.searcher import StudySearcher
from study.spec import StudySpec
from trainables.protocol import Assignment, Measurement, Report

NUM_UNFINISHED = 3
STEPS_PER_TRIAL = 5
METHODS = ["group_lasso", "attribution", "distillation"]
FIXED = {f"setting_{number}": number for number in range(20)}
BEFORE_A_TRIAL = ("outbox", "record", "board", "searcher", "hand out")
"""What stands between a resume and its first trial at work; a new draw is the sampler's."""
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""On a busy machine seconds of the CPU travel better; all that is timed runs in one process."""
BOTH = {"record": "load", "new draw": "ask"}
"""Which part of ours does what plain Optuna does."""


def suggest(trial: optuna.Trial) -> dict[str, Any]:
    config: dict[str, Any] = {"method": trial.suggest_categorical("method", METHODS)}
    if config["method"] == "group_lasso":
        config["lasso_strength"] = trial.suggest_float("lasso_strength", 1e-4, 1e-1, log=True)
        config["lasso_updates"] = trial.suggest_int("lasso_updates", 100, 10_000, log=True)
    if config["method"] == "distillation":
        config["temperature"] = trial.suggest_float("temperature", 1.0, 30.0, log=True)
    config["width"] = trial.suggest_int("width", 16, 1024, log=True)
    config["sparsity"] = trial.suggest_float("sparsity", 0.0, 0.95, step=0.05)
    config["learning_rate"] = trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True)
    return FIXED | config | {"batch_size": trial.suggest_categorical("batch_size", [16, 32, 64])}


def measure(params: Mapping[str, Any]) -> dict[str, float]:
    """A trade-off with noise: fewer parameters, a higher loss."""
    size = params["width"] * (1.0 - params["sparsity"])
    noise = random.Random(json.dumps(params)).random()
    return {"loss_nats": 2.0 + 10.0 / size + noise, "parameters": size, "accuracy": 1.0 - noise / 2}


SPACE = StudySpace(
    experiment="cmsp_curriculum", suggest=suggest, objectives=("loss_nats", "parameters"), constraints=("accuracy >= 0.6",)
)


def make_spec(sampler: str, num_trials: int) -> StudySpec:
    names = {p: True for p in ("lasso_strength", "lasso_updates", "temperature")}
    description = SpaceDescription(
        experiment=SPACE.experiment,
        objectives=dict.fromkeys(SPACE.objectives, "min"),
        constraints=SPACE.constraints,
        parameters=tuple(Parameter(name=name, values="", conditional=True) for name in names),
        fixed=FIXED,
        first_trials=(),
        varied_digest="",
    )
    return StudySpec(
        name="s", study_id="id", space="", import_paths=[], description=description, sampler=sampler, seed=0,
        num_trials=num_trials, num_cpus=1, num_gpus=0, storage="/s", tracking_uri="", log_scale=[], color_by=None, versions={},
        commit=None,
    )  # fmt: skip


def build(home: Path, num_finished: int) -> None:
    """Write a study as its record and its outbox would have, in bulk."""
    folder = prepare(home)
    TrialRecord(folder, make_spec("random", num_finished), SPACE)
    trials = past_trials(num_finished)
    with closing(sqlite3.connect(folder.optuna_file)) as connection, connection:
        write_trials(connection, trials)
    with closing(Outbox(folder.outbox_file)) as outbox:
        outbox.start_session({})
    with closing(sqlite3.connect(folder.outbox_file)) as connection, connection:
        rows = [(key, json.dumps(payload)) for trial in trials for key, payload in events(trial)]
        connection.executemany("INSERT INTO event (key, payload) VALUES (?, ?)", rows)
        connection.execute("UPDATE delivered SET seq = (SELECT max(seq) FROM event)")


def prepare(home: Path) -> StudyFolder:
    Home(home).prepare()
    folder = Home(home).study("s")
    folder.path.mkdir(parents=True, exist_ok=True)
    return folder


def past_trials(num_finished: int) -> list[FrozenTrial]:
    """Drawn and told in memory, with the attributes that the record gives them."""
    study = optuna.create_study(directions=["minimize"] * 2, sampler=optuna.samplers.RandomSampler(seed=0))
    for number in range(num_finished + NUM_UNFINISHED):
        trial = study.ask()
        trial.set_user_attr("config", json.dumps(suggest(trial)))
        trial.set_user_attr("attempts", 1)
        if number % 20 == 7:
            trial.set_user_attr("failure", json.dumps({"cause": "diverged", "error": "the loss is NaN"}))
            study.tell(trial, state=TrialState.FAIL)
        elif number < num_finished:
            metrics = measure(trial.params)
            for constraint in map(Constraint.parse, SPACE.constraints):
                trial.set_constraint(str(constraint), constraint.violation(metrics))
            study.tell(trial, [metrics[name] for name in SPACE.objectives])
    return study.get_trials(deepcopy=False)


def write_trials(connection: sqlite3.Connection, trials: Sequence[FrozenTrial]) -> None:
    write = {
        "trials (trial_id, number, study_id, state, datetime_start, datetime_complete)": (
            (t.number + 1, t.number, 1, t.state.name, t.datetime_start, t.datetime_complete) for t in trials
        ),
        "trial_params (trial_id, param_name, param_value, distribution_json)": (
            (t.number + 1, name, d.to_internal_repr(t.params[name]), optuna.distributions.distribution_to_json(d))
            for t in trials
            for name, d in t.distributions.items()
        ),
        "trial_values (trial_id, objective, value, value_type)": (
            (t.number + 1, index, value, "FINITE") for t in trials for index, value in enumerate(t.values or ())
        ),
        "trial_user_attributes (trial_id, key, value_json)": attributes(trials, "user_attrs"),
        "trial_system_attributes (trial_id, key, value_json)": attributes(trials, "system_attrs"),
    }
    for table, rows in write.items():
        marks = ", ".join("?" * (table.count(",") + 1))
        connection.executemany(f"INSERT INTO {table} VALUES ({marks})", [tuple(map(plain, row)) for row in rows])


def attributes(trials: Sequence[FrozenTrial], which: str) -> Iterator[tuple[int, str, str]]:
    return ((t.number + 1, key, json.dumps(value)) for t in trials for key, value in getattr(t, which).items())


def plain(value: Any) -> Any:
    return value.isoformat(" ") if hasattr(value, "isoformat") else value


def events(trial: FrozenTrial) -> Iterator[tuple[str, dict[str, Any]]]:
    def event(kind: str, key: str, data: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        return f"trial/{trial.number}/{key}", {"kind": kind, "trial": trial.number, "time_ms": 0, "data": data}

    config = json.loads(trial.user_attrs["config"])
    tags = {"params": trial.params, "config": config, "attempts": "1", "spec_hash": "0" * 12, "version.torch": "2"}
    yield event("trial_start", "start/1", {"params": trial.params, "attempt": 1, "tags": tags})
    for step in range(1, STEPS_PER_TRIAL + 1):
        data = {"step": step, "metrics": measure(trial.params), "progress": step / STEPS_PER_TRIAL}
        yield event("measurement", f"step/{step}", data)
    if trial.state.is_finished():
        end = {"state": "finished", "tags": {"hostname": "h", "pid": "1"}, "model": "/s/model", "charts": "/s/charts"}
        yield event("trial_end", "end/1", end)


def go_on(home: Path, sampler: str, num_finished: int, num_more: int, clock: str) -> dict[str, float]:
    """Do what a resume does, without Ray and MLflow; seconds of each part, in order."""
    spec = make_spec(sampler, num_finished + NUM_UNFINISHED + num_more)
    folder = prepare(home)
    took: dict[str, float] = {}

    def timed(part: str, run: Callable[[], Any]) -> Any:
        start = CLOCKS[clock]()
        result = run()
        took[part] = CLOCKS[clock]() - start
        return result

    def open_outbox() -> Outbox:
        outbox = Outbox(folder.outbox_file)
        outbox.start_session({})
        return outbox

    def show() -> Board:
        console = Console(file=io.StringIO(), width=160, force_terminal=True)
        board = Board(spec, record.past, console)
        console.print(board)
        return board

    outbox = timed("outbox", open_outbox)
    record = timed("record", lambda: TrialRecord(folder, spec, SPACE))
    board = timed("board", show)
    searcher = timed("searcher", lambda: StudySearcher(spec, record, outbox, board, max_concurrent=lambda: 8))
    timed("hand out", lambda: searcher.suggest("u0"))
    for number in range(1, NUM_UNFINISHED):
        searcher.suggest(f"u{number}")
    drawn = timed("new draw", lambda: searcher.suggest("0"))
    seconds = []
    for number in range(1, num_more):
        start = CLOCKS[clock]()
        end(searcher, str(number - 1), drawn)
        drawn = searcher.suggest(str(number))
        seconds.append(CLOCKS[clock]() - start)
    if searcher.error is not None:
        raise searcher.error
    took["a trial"] = statistics.median(seconds)
    return took


def end(searcher: StudySearcher, trial_id: str, handed: dict[str, Any]) -> None:
    """A worker's only report."""
    assignment = Assignment.from_json(handed["parcels"][0][0])
    step = Measurement(step=1, metrics=measure(assignment.config), progress=1.0)
    ids = {"trial": assignment.trial, "attempt": assignment.attempt, "host": "h", "pid": 1}
    report = Report(measurements=[step], finished=True, failure=None, **ids)
    searcher.on_trial_complete(trial_id, {"reports": [report.to_json()]})


def plain_optuna(home: Path, sampler: str, num_finished: int, num_more: int, clock: str) -> dict[str, float]:
    """What Optuna takes to read all trials, to ask for one more, and for each trial after that."""
    storage = f"sqlite:///{prepare(home).optuna_file}"
    start = CLOCKS[clock]()
    study = optuna.load_study(study_name="s", storage=storage, sampler=make_sampler(sampler, 0, num_finished))
    num_trials = len(study.trials)
    loaded = CLOCKS[clock]()
    if num_trials != num_finished + NUM_UNFINISHED:
        raise RuntimeError(f"the study must have {num_finished + NUM_UNFINISHED} trials, but has {num_trials}; build it anew")
    suggest(trial := study.ask())
    asked = CLOCKS[clock]()
    seconds = []
    for _ in range(1, num_more):
        begin = CLOCKS[clock]()
        metrics = measure(trial.params)
        study.tell(trial, [metrics[name] for name in SPACE.objectives])
        suggest(trial := study.ask())
        seconds.append(CLOCKS[clock]() - begin)
    return {"load": loaded - start, "ask": asked - loaded, "a trial": statistics.median(seconds)}


WAYS = {"ours": go_on, "plain": plain_optuna}


def in_fresh_process(way: str, study: Path, sampler: str, num_finished: int, num_more: int, clock: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as scratch:
        home = shutil.copytree(study, Path(scratch) / "home")
        arguments = ["--child", way, str(home), sampler, str(num_finished), str(num_more), clock]
        result = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(result.stdout))


def compare(study: Path, sampler: str, num_finished: int, *, rounds: int, num_more: int, clock: str) -> dict[str, Any]:
    """Medians of both ways in turns, so that both meet the same machine."""
    took: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, rows in took.items():
            rows.append(in_fresh_process(way, study, sampler, num_finished, num_more, clock))
    result: dict[str, Any] = {"finished": num_finished, "sampler": sampler, "rounds": rounds, "clock": clock}
    for way, rows in took.items():
        result[way] = {part: statistics.median(row[part] for row in rows) for part in rows[0]}
    result["ours"]["in all"] = statistics.median(sum(row[part] for part in BEFORE_A_TRIAL) for row in took["ours"])
    return result


def show(result: Mapping[str, Any]) -> None:
    ours, plainly = result["ours"], result["plain"]
    title = f"{result['finished']} finished trials, sampler {result['sampler']}"
    print(f"{title}; median of {result['rounds']} processes, ms ({result['clock']})")
    for part in (*BEFORE_A_TRIAL, "in all", "new draw", "a trial"):
        beside = plainly.get(BOTH.get(part, part))
        print(f"  {part:10s} {1e3 * ours[part]:9.1f}" + (f"   plain Optuna {1e3 * beside:9.1f}" if beside is not None else ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", default=[5000], type=int, nargs="+", help="finished trials of the study")
    parser.add_argument("--samplers", default=["random", "tpe", "nsga2"], nargs="+")
    parser.add_argument("--rounds", default=3, type=int, help="fresh processes of each way")
    parser.add_argument("--more", default=20, type=int, help="trials that are drawn and ended after")
    parser.add_argument("--clock", default="wall", choices=CLOCKS)
    parser.add_argument("--json", action="store_true", help="seconds as JSON in place of tables")
    parser.add_argument("--child", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if options.child:
        optuna.storages.RDBStorage("sqlite://")  # imports that Optuna puts off
        way, home, sampler, num_finished, num_more, clock = options.child
        print(json.dumps(WAYS[way](Path(home), sampler, int(num_finished), int(num_more), clock)))
        return
    results = []
    for num_finished in options.trials:
        with tempfile.TemporaryDirectory() as scratch:
            build(Path(scratch), num_finished)
            for sampler in options.samplers:
                results.append(
                    compare(
                        Path(scratch), sampler, num_finished, rounds=options.rounds, num_more=options.more, clock=options.clock
                    )
                )
                if not options.json:
                    show(results[-1])
    if options.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
