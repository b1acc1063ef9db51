"""What does a report of 16 metrics cost the control loop of a study, beside Ray's own MLflow callback?

    python tests/benchmarks/report_cost.py
    python tests/benchmarks/report_cost.py --rounds 50 --json

Three arms in turns, in one process. `alone`: the searcher hears a report and puts it into the outbox, and no writer runs.
`delivered`: the same while a writer carries what is put to MLflow, a database as `study launch` uses by default. `stock`:
`MLflowLoggerCallback.log_trial_result`, on an SQLite store of MLflow's making. All reports are new, and are on disk or in
MLflow when the call returns. Not in it: what Ray Tune itself does with a report, the same for all arms.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from ray.air.integrations.mlflow import MLflowLoggerCallback
from rich.console import Console

from search_spaces import cmsp_curriculum
from study.home import Home, StudyFolder
from study.probe import describe_space
from study.recording.delivery import Delivery
from study.recording.outbox import Outbox
from study.running.record import TrialRecord
from study.running.searcher import StudySearcher
from study.spec import StudySpec
from trainables.protocol import Measurement, Report

NUM_METRICS = 16
STEPS_PER_TRIAL = 10_000
Arm = Callable[[int], None]
"""Hears a trial's report of a step."""


class Nobody:
    """Stands in for the live view, which is drawn by a thread of its own."""

    def trial_started(self, *_: Any) -> None: ...
    def trial_measured(self, *_: Any) -> None: ...
    def trial_finished(self, *_: Any) -> None: ...
    def trial_failed(self, *_: Any) -> None: ...
    def trial_lost(self, *_: Any) -> None: ...


class Trial:
    """All that the stock callback asks of a trial."""

    config: dict[str, Any]

    def __init__(self) -> None:
        self.config = {}

    def __str__(self) -> str:
        return "trial"


def metrics_at(step: int) -> dict[str, float]:
    return {f"metric_{number:02d}": step + 1 / (1 + number) for number in range(NUM_METRICS)}


def study_arm(home: Path, name: str, stack: ExitStack, *, is_delivered: bool) -> tuple[Arm, Outbox]:
    """One trial of a study at work, with or without the process that carries its reports on."""
    Home(home).prepare()
    folder = Home(home).study(name)
    folder.path.mkdir(parents=True)
    space = cmsp_curriculum.tiny()
    spec = StudySpec(
        name=name, study_id=name, space="cmsp_curriculum:tiny", import_paths=[], description=describe_space(space),
        sampler="random",
        seed=0, num_trials=1, num_cpus=1, num_gpus=0, storage=str(home / "storage"), tracking_uri=folder.home.tracking_uri,
        log_scale=[], color_by=None, versions={}, commit=None,
    )  # fmt: skip
    spec.save(folder.spec_file)
    outbox = stack.enter_context(closing(Outbox(folder.outbox_file)))
    session = outbox.start_session({})
    if is_delivered:
        _deliver(folder, outbox, session, stack)
    searcher = StudySearcher(spec, TrialRecord(folder, spec, space), outbox, Nobody(), max_concurrent=lambda: 1)
    searcher.suggest("trial")

    def hear(step: int) -> None:
        searcher.hear("trial", results[step])
        assert searcher.error is None

    results = Reports()
    return hear, outbox


def _deliver(folder: StudyFolder, outbox: Outbox, session: int, stack: ExitStack) -> None:
    delivery = stack.enter_context(Delivery(folder, outbox, session, Console(stderr=True)))
    delivery.require_ready()


class Reports(dict[int, dict[str, Any]]):
    """What Tune hands on: a worker's report as JSON; looked up by step, made beforehand."""

    def __missing__(self, step: int) -> dict[str, Any]:
        measurement = Measurement(step=step, metrics=metrics_at(step), progress=step / STEPS_PER_TRIAL)
        report = Report(trial=0, attempt=1, measurements=[measurement], finished=False, failure=None, host="host", pid=1)
        self[step] = {"reports": [report.to_json()]}
        return self[step]


def stock_arm(folder: Path) -> Arm:
    callback = MLflowLoggerCallback(tracking_uri=f"sqlite:///{folder / 'stock.db'}", experiment_name="stock")
    callback.setup()
    trial = Trial()
    callback.log_trial_start(trial)

    def hear(step: int) -> None:
        callback.log_trial_result(step, trial, metrics_at(step) | {"training_iteration": step})

    return hear


def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds of every report, by arm."""
    times: dict[str, list[float]] = {"alone": [], "delivered": [], "stock": []}
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        alone, _ = study_arm(Path(scratch) / "home", "alone", stack, is_delivered=False)
        delivered, outbox = study_arm(Path(scratch) / "home", "delivered", stack, is_delivered=True)
        arms = {"alone": alone, "delivered": delivered, "stock": stock_arm(Path(scratch))}
        for arm in arms.values():
            arm(1)  # makes what is made once
        for _ in range(options.rounds):
            for name, arm in arms.items():
                for _ in range(options.stock_reports if name == "stock" else options.reports):
                    step = len(times[name]) + 2
                    start = time.perf_counter()
                    arm(step)
                    times[name].append(1000 * (time.perf_counter() - start))
                    time.sleep(options.pause_ms / 1000)
        assert outbox.num_pending() < len(times["delivered"]), "the writer was not at work"
    return times


def summarise(times: dict[str, list[float]]) -> dict[str, Any]:
    stock = statistics.median(times["stock"])
    return {
        name: {
            "reports": len(values),
            "median_ms": round(statistics.median(values), 4),
            "p99_ms": round(statistics.quantiles(values, n=100)[98], 4),
            "worst_ms": round(max(values), 4),
            "stock_over_it": round(stock / statistics.median(values), 1),
        }
        for name, values in times.items()
    } | {"cpus": os.cpu_count(), "load": [round(load, 1) for load in os.getloadavg()]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--reports", type=int, default=100, help="of each of our arms, a round")
    parser.add_argument("--stock-reports", type=int, default=5, help="a round")
    parser.add_argument("--pause-ms", type=float, default=1.0, help="between two reports, outside the clock")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = summarise(measure(options))
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print(f"a report of {NUM_METRICS} metrics, milliseconds; {found['cpus']} CPUs, load {found['load']}")
    print(f"{'arm':<12}{'reports':>8}{'median':>10}{'p99':>10}{'worst':>10}{'stock / it':>12}")
    for name in ("alone", "delivered", "stock"):
        row = found[name]
        figures = f"{row['median_ms']:>10.3f}{row['p99_ms']:>10.3f}{row['worst_ms']:>10.3f}{row['stock_over_it']:>12.1f}"
        print(f"{name:<12}{row['reports']:>8}{figures}")


if __name__ == "__main__":
    main()
