"""What does a trial cost that computes nothing? Ours beside stock Ray Tune and plain Optuna.

    python tests/benchmarks/control_plane.py [--trials 300] [--rounds 1] [--json]

Trials of five reports of two numbers, durable, MLflow on a database of its own, two at a time, each way in a process of its own:

    ours         `study.launch`, until MLflow has everything
    stock        Ray Tune, OptunaSearch and MLflowLoggerCallback as their documentation shows them, a checkpoint a report
    stock_reuse  the same as a class that Tune may use again (`reuse_actors`), a checkpoint at the end
    optuna       `Study.optimize(n_jobs=2)` with SQLite and a user attribute a report; no workers, no MLflow

What is compared is the rate from the end of the first trial on, when workers are warm, until everything is where it belongs; the
rate of the whole process, with imports, Ray's start and MLflow's first tables, stands beside it. The stock ways make fewer
trials: their rate does not depend on it. `--scaling` measures our driver alone instead: what drawing, hearing and telling one
trial costs it when the study has so many already, by sampler.
"""

import argparse
import json
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ARMS = ("ours", "stock", "stock_reuse", "optuna")
FEWER = {"stock": 24, "stock_reuse": 60}
HERE = Path(__file__).parent
NUM_STEPS = 5


def ours(folder: Path, num_trials: int) -> float:
    """A study of ours; returns the seconds from its first trial's end."""
    from rich.console import Console

    from study import launch
    from study.home import Home
    from study.recording.tracking import connect
    from study.running.cluster import ray_session

    Home(folder).prepare()
    connect(Home(folder).tracking_uri).search_experiments()
    with ray_session(None):
        options = {"trials": num_trials, "sampler": "random", "max_concurrent": 2, "modules": HERE, "home": folder}
        outcome = launch("control_plane_space:no_op", name="ours", console=Console(quiet=True), **options)
        end = time.time()
    assert outcome.num_finished == num_trials, outcome
    with sqlite3.connect(folder / "studies/ours/outbox.db") as connection:
        first = "SELECT min(json_extract(payload, '$.time_ms')) FROM event WHERE key GLOB 'trial/*/end/*'"
        (first_ms,) = connection.execute(first).fetchone()
    return end - first_ms / 1000


def stock(folder: Path, num_trials: int, *, reuse: bool = False) -> float:
    """Ray Tune by its documentation; returns the seconds from its first trial's end."""
    import mlflow
    import ray
    from optuna.storages import RDBStorage
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.tune.search.optuna import OptunaSearch

    uri = f"sqlite:///{folder / 'mlflow.db'}"
    mlflow.MlflowClient(uri).search_experiments()
    search = OptunaSearch(
        by_trial,
        metric=["above", "below"],
        mode=["min", "min"],
        storage=RDBStorage(f"sqlite:///{folder / 'optuna.db'}"),
        study_name="stock",
    )
    ray.init(logging_level="ERROR", log_to_driver=False, include_dashboard=False)
    ends: list[float] = []

    class Clock(tune.Callback):
        def on_trial_complete(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    tuner = tune.Tuner(
        Again if reuse else by_function,
        tune_config=tune.TuneConfig(search_alg=search, num_samples=num_trials, max_concurrent_trials=2, reuse_actors=reuse),
        run_config=tune.RunConfig(
            name="stock",
            storage_path=str(folder / "ray"),
            verbose=0,
            stop={"training_iteration": NUM_STEPS} if reuse else None,
            callbacks=[Clock(), MLflowLoggerCallback(tracking_uri=uri, experiment_name="stock")],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True) if reuse else None,
        ),
    )
    results = tuner.fit()
    seconds = time.perf_counter() - ends[0]
    assert len(results) == num_trials and not results.errors
    ray.shutdown()
    return seconds


def by_trial(trial: Any) -> None:
    """The space, define-by-run."""
    trial.suggest_float("x", 0, 1)


def by_function(config: dict[str, Any]) -> None:
    """A trial as a function: a checkpoint a report."""
    from ray import tune

    for step in range(NUM_STEPS):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "state.json").write_text(json.dumps({"step": step}))
            tune.report(numbers(config), checkpoint=tune.Checkpoint.from_directory(folder))


def numbers(config: dict[str, Any]) -> dict[str, float]:
    return {"above": config["x"], "below": 1 - config["x"]}


try:
    from ray.tune import Trainable
except ImportError:  # plain Optuna needs no Ray
    Trainable = object  # type: ignore[assignment,misc]


class Again(Trainable):
    """A trial as a class that may be used again."""

    def setup(self, config: dict[str, Any]) -> None:
        self.values = numbers(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, float]:
        return dict(self.values)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        (Path(checkpoint_dir) / "state.json").write_text("{}")

    def load_checkpoint(self, checkpoint: Any) -> None: ...


def optuna_alone(folder: Path, num_trials: int) -> float:
    """Plain Optuna; returns the seconds from its first trial's end."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        storage=f"sqlite:///{folder / 'optuna.db'}",
        directions=["minimize", "minimize"],
        sampler=optuna.samplers.RandomSampler(seed=0),
    )

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        x = trial.suggest_float("x", 0, 1)
        for step in range(NUM_STEPS):
            trial.set_user_attr(f"step {step}", {"above": x, "below": 1 - x})
        return x, 1 - x

    ends: list[float] = []
    study.optimize(objective, n_trials=num_trials, n_jobs=2, callbacks=[lambda *_: ends.append(time.perf_counter())])
    return time.perf_counter() - ends[0]


def run_arm(name: str, num_trials: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        if name == "ours":
            return ours(Path(folder), num_trials)
        if name == "optuna":
            return optuna_alone(Path(folder), num_trials)
        return stock(Path(folder), num_trials, reuse=name == "stock_reuse")


def measure(num_trials: int, rounds: int) -> dict[str, Any]:
    """Rates of all ways, in turns, and our ratios to the others."""
    rates: dict[str, list[float]] = {name: [] for name in ARMS}
    whole: dict[str, list[float]] = {name: [] for name in ARMS}
    for _ in range(rounds):
        for name in ARMS:
            num = min(num_trials, FEWER.get(name, num_trials))
            start = time.perf_counter()
            command = [sys.executable, __file__, "--arm", name, "--trials", str(num)]
            told = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=HERE, check=False)
            if told.returncode:
                raise RuntimeError(told.stderr[-3000:])
            whole[name].append(num / (time.perf_counter() - start))
            rates[name].append((num - 1) / float(told.stdout.split()[-1]))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "trials_per_second": medians,
        "whole_process": {name: statistics.median(values) for name, values in whole.items()},
        "ratio_to_stock": medians["ours"] / medians["stock"],
        "ratio_to_stock_reuse_actors": medians["ours"] / medians["stock_reuse"],
        "ratio_to_plain_optuna": medians["ours"] / medians["optuna"],
    }


def scaling(sizes: dict[str, list[int]]) -> dict[str, dict[int, float]]:
    """CPU milliseconds of our driver for a trial, the mean of the last fifty before a study has so many, by sampler."""
    return {name: cost_by_size(name, wanted) for name, wanted in sizes.items()}


def cost_by_size(sampler: str, wanted: list[int]) -> dict[int, float]:
    import dataclasses
    import os

    sys.path[:0] = [str(HERE), str(HERE.parent / "study")]
    from control_plane_space import no_op
    from test_spec import spec

    from study.home import Home
    from study.recording.outbox import Outbox
    from study.running.record import TrialRecord
    from study.running.searcher import StudySearcher
    from trainables.protocol import Assignment, Measurement, Report

    with tempfile.TemporaryDirectory() as folder:
        os.environ["STUDY_HOME"] = folder
        Home().prepare()
        place = Home().study("s")
        place.path.mkdir(parents=True)
        own = dataclasses.replace(spec(no_op(), sampler=sampler), num_trials=max(wanted))
        outbox = Outbox(place.outbox_file)
        searcher = StudySearcher(own, TrialRecord(place, own, no_op()), outbox, _Nobody(), max_concurrent=lambda: 2)

        def errand(trial_id: str) -> int:
            """Have a worker make trials, as many as it is sent for; reports of several steps come at once."""
            parcels = searcher.suggest(trial_id)["parcels"]
            handed = [Assignment.from_json(text) for parcel in parcels for text in parcel]
            reports = [report(one, step).to_json() for one in handed for step in range(1, NUM_STEPS + 1)]
            searcher.on_trial_complete(trial_id, {"reports": reports})
            return len(handed)

        def report(handed: Assignment, step: int) -> Report:
            measurement = Measurement(step=step, metrics=numbers(handed.config), progress=step / NUM_STEPS)
            return Report(
                trial=handed.trial, attempt=1, measurements=[measurement], finished=step == NUM_STEPS, failure=None,
                host="h", pid=1, seconds=0.004,
            )  # fmt: skip

        costs: list[float] = []
        while len(costs) < max(wanted):
            start = time.process_time()
            num_trials = errand(str(len(costs)))
            costs += [(time.process_time() - start) / num_trials] * num_trials
        outbox.close()
    return {size: 1000 * statistics.fmean(costs[max(0, size - 50) : size]) for size in wanted}


class _Nobody:
    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--arm", choices=ARMS, help="only one way: prints its seconds")
    parser.add_argument("--scaling", action="store_true", help="our driver's cost by number of trials and sampler")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if asked.arm:
        print(run_arm(asked.arm, asked.trials))
        return
    if asked.scaling:
        many, some = [100, 1000, 5000], [100, 300]
        found: dict[str, Any] = scaling({"random": many, "qmc": many, "nsga2": [100, 1000], "tpe": [100, 1000], "gp": some[:1]})
    else:
        found = measure(asked.trials, asked.rounds)
    if asked.json:
        print(json.dumps(found))
        return
    for key, value in found.items():
        shown = {name: f"{number:.3g}" for name, number in value.items()} if isinstance(value, dict) else f"{value:.2f}"
        print(f"{key}: {shown}")


if __name__ == "__main__":
    main()
