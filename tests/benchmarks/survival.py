"""What is left of a study that is killed again and again: of ours, and of one by Ray Tune's, Optuna's and MLflow's own means?

    python tests/benchmarks/survival.py --kills 20 --seed 7
    python tests/benchmarks/survival.py --kills 4 --trials 4 --columns stock spared --json

Both search `cmsp_curriculum:tiny`, one trial at a time, first in peace and then under one schedule: SIGKILL to the driver, a
worker, the raylet or all of them, or all of them and the newest checkpoint cut in half; after each death the same command is
launched again. Moments are shares of each one's own time for a first trial, or a later one, in peace. Stock code has neither
our places to die nor a process of its own that writes to MLflow: there its driver dies at that moment. After the last kill
each is launched until it ends by itself with exit code 0, or has failed to for the fifth time. Then the same questions go to
the two databases of each. Checkpoints alone are ever torn: Ray's snapshots and the databases are left whole.

A stock study that is killed before Ray's first snapshot makes one trial and says that it is done: a Tuner that finds no
snapshot to restore begins anew without its `num_samples`. As this hides all that comes later, there is a column in which
it is spared until that snapshot.
"""

import argparse
import contextlib
import dataclasses
import json
import logging
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import optuna
from mlflow.entities import Run
from rich.console import Console
from rich.table import Table

from search_spaces.cmsp_curriculum import tiny
from study.chaos.chaos import run_chaos
from study.chaos.faults import Fault, draw_faults, newest
from study.chaos.patient import Pace, Patient, StuckError
from study.home import Home
from study.recording.tracking import TRIAL_TAG
from trainables.registry import load_experiment

STOCK = "stock"
STOCK_SCRIPT = Path(__file__).with_name("stock_tune_study.py")
SPACE = tiny()
METRICS = [metric.name for metric in load_experiment(SPACE.experiment).METRICS]
MAX_IN_VAIN = 5
MAX_RUNS = 10_000
MAX_WORDS = 160
"""Characters of an error that the table shows."""

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What Optuna and MLflow know of a study.

    Attributes:
        states: of Optuna's trials.
        sets: how many trials have each parameter set.
        complete: parameters and values of the trials that are COMPLETE; `front`: of the best of them.
        statuses: of MLflow's runs of trials.
        num_histories, num_bad: metrics of these runs; those whose steps do not go 1, 2, 3 to the last.
    """

    states: Counter[str]
    sets: Counter[str]
    complete: Counter[str]
    front: Counter[str]
    statuses: Counter[str]
    num_histories: int
    num_bad: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ordeal:
    """How it went with one of the two: what it is, in peace and after the kills, and what was seen on the way."""

    peace: Facts
    killed: Facts
    happened: list[str]
    errors: list[str]
    num_launches: int
    says_done: bool
    minutes: float


class StockPatient(Patient):
    """The stock study, done when it says so itself.

    Args:
        folder: of its own; made here.
    """

    def __init__(self, folder: Path, num_trials: int) -> None:
        self.kept = folder / STOCK
        super().__init__(folder, (), num_trials)
        self.optuna_file = self.kept / "optuna.db"
        self.max_surprises = sys.maxsize

    def _arguments(self) -> list[str]:
        return [str(STOCK_SCRIPT), str(self.kept), "--trials", str(self._num_trials)]

    @property
    def is_done(self) -> bool:
        return self._driver.poll() == 0

    def has_snapshot(self) -> bool:
        """Whether Ray has kept anything that a Tuner can be restored from."""
        return any(self.kept.glob(f"ray/{STOCK}/experiment_state-*.json"))

    def _newest_checkpoint(self) -> Path | None:
        return newest(self.kept.glob(f"ray/{STOCK}/*/checkpoint_*/*.pt"))

    def suffer(self, fault: Fault, pace: Pace) -> bool:
        """As ours does; what stock code has no place or process for befalls its driver."""
        is_timed = fault.place is None and fault.target != "writer"
        return super().suffer(fault if is_timed else Fault("driver", fault.moment), pace)

    def finish(self) -> None:
        """Let it run to its end, or until it has failed to come there so often."""
        self.max_surprises = len(self.surprises) + MAX_IN_VAIN - 1
        super().finish()


def read_facts(optuna_file: Path, name: str, tracking_uri: str, is_trial: Callable[[Run], bool]) -> Facts:
    """Ask the two databases of a study."""
    study = optuna.load_study(study_name=name, storage=f"sqlite:///{optuna_file}")
    trials = study.get_trials(deepcopy=False)
    client = mlflow.MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name(name)
    found = [] if experiment is None else client.search_runs([experiment.experiment_id], max_results=MAX_RUNS)
    runs = [run for run in found if is_trial(run)]
    steps = [
        sorted(row.step for row in client.get_metric_history(run.info.run_id, key))
        for run in runs
        for key in METRICS
        if key in run.data.metrics
    ]
    return Facts(
        states=Counter(trial.state.name for trial in trials),
        sets=Counter(shown_params(trial) for trial in trials),
        complete=Counter(f"{shown_params(trial)} {trial.values}" for trial in trials if trial.state.name == "COMPLETE"),
        front=Counter(f"{shown_params(trial)} {trial.values}" for trial in study.best_trials),
        statuses=Counter(run.info.status for run in runs),
        num_histories=len(steps),
        num_bad=sum(row != list(range(1, len(row) + 1)) for row in steps),
    )


def shown_params(trial: optuna.trial.FrozenTrial) -> str:
    return json.dumps(trial.params, sort_keys=True)


def torment_ours(num_trials: int, kills: int, seed: int, say: Say) -> Ordeal:
    """Kill a study of ours; its folder is left where a check of `study chaos` fails."""
    command = ("cmsp_curriculum:tiny", "--trials", str(num_trials), "--max-concurrent", "1")
    report = run_chaos(command, num_trials=num_trials, kills=kills, seed=seed, keep=True, say=say)
    folder = Path(str(report.folder))
    facts = []
    for part in ("peace", "killed"):
        study = Home(folder / part / "home").study("chaos")
        facts.append(read_facts(study.optuna_file, study.name, study.home.tracking_uri, is_trial_of_ours))
    for check in report.checks:
        if not check.holds:
            say(f"FAIL: {check.name}: expected {check.expected}, found {check.found}; the studies are in {folder}")
    if report.passed:
        shutil.rmtree(folder)
    errors = next(check.found for check in report.checks if check.name.startswith("launches that ended"))
    return Ordeal(
        peace=facts[0],
        killed=facts[1],
        happened=report.faults,
        errors=[] if errors == "none" else re.split(r"; (?=exit code|it ends|for )", errors),
        num_launches=report.num_launches,
        says_done=not re.search("it ends by itself|nor ended", errors),
        minutes=report.seconds / 60,
    )


def is_trial_of_ours(run: Run) -> bool:
    return int(run.data.tags.get(TRIAL_TAG, -1)) >= 0


def torment_stock(num_trials: int, kills: int, seed: int, say: Say, *, spared: bool = False) -> Ordeal:
    """Kill the stock study; its folder stays.

    Args:
        spared: until Ray's first snapshot.
    """
    begin = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="stock-chaos-"))
    say(f"the stock study in peace; both are kept in {folder}")
    launched = time.time()
    with contextlib.closing(StockPatient(folder / "peace", num_trials)) as peace:
        peace.finish()
    peace_facts = facts_of_stock(peace)
    with contextlib.closing(StockPatient(folder / "killed", num_trials)) as patient:
        if spared:
            patient.go_on(patient.has_snapshot)
        happened = list(befall(patient, draw_faults(kills, seed), pace_of(peace, launched), say))
        says_done = patient.is_done
    return Ordeal(
        peace=peace_facts,
        killed=facts_of_stock(patient),
        happened=happened,
        errors=patient.surprises,
        num_launches=patient.num_launches,
        says_done=says_done,
        minutes=(time.monotonic() - begin) / 60,
    )


def facts_of_stock(patient: StockPatient) -> Facts:
    return read_facts(patient.optuna_file, STOCK, f"sqlite:///{patient.kept / 'mlflow.db'}", lambda _: True)


def pace_of(peace: StockPatient, launched_at: float) -> Pace:
    """How fast it was, launched at a time in seconds since 1970."""
    trials = optuna.load_study(study_name=STOCK, storage=f"sqlite:///{peace.optuna_file}").get_trials(deepcopy=False)
    ends = sorted(trial.datetime_complete.timestamp() for trial in trials if trial.datetime_complete is not None)
    return Pace(first_s=ends[0] - launched_at, trial_s=(ends[-1] - ends[0]) / max(1, len(ends) - 1))


def befall(patient: StockPatient, faults: list[Fault], pace: Pace, say: Say) -> Iterator[str]:
    """Have it suffer every fault and come to its end, if it does; a launch that hangs is killed by hand."""
    for number, fault in enumerate(faults, start=1):
        try:
            if patient.suffer(fault, pace):
                yield str(fault)
        except StuckError as error:
            patient.surprises.append(str(error))
            patient.close()
        say(f"kill {number} of {len(faults)}: {fault}; {patient.num_ended} trials have ended, {len(patient.surprises)} errors")
    try:
        patient.finish()
    except StuckError as error:
        say(f"given up: {error}")


def rows(ordeal: Ordeal, num_trials: int, kills: int) -> dict[str, str]:
    """The same questions for each."""
    peace, killed = ordeal.peace, ordeal.killed
    return {
        "kills that hit": f"{len(ordeal.happened)} of {kills}",
        "says in the end that it is done": "yes" if ordeal.says_done else "no",
        "trials COMPLETE in Optuna": f"{killed.states['COMPLETE']} of {num_trials} asked for",
        "trials RUNNING for ever in Optuna": str(killed.states["RUNNING"]),
        "trials more than asked for": str(max(0, killed.states.total() - num_trials)),
        "parameter sets drawn twice": str(sum(count - 1 for count in killed.sets.values())),
        "runs of trials in MLflow": str(killed.statuses.total()),
        "runs RUNNING for ever in MLflow": str(killed.statuses["RUNNING"]),
        "metrics with a gap or a repeat of steps": f"{killed.num_bad} of {killed.num_histories}",
        "launches that failed by themselves": f"{len(ordeal.errors)} of {ordeal.num_launches}",
        "last word of the last of these": ordeal.errors[-1][:MAX_WORDS] if ordeal.errors else "-",
        "trials as in its own run in peace": shared(peace.complete, killed.complete),
        "front as in its own run in peace": shared(peace.front, killed.front),
        "minutes, with the run in peace": f"{ordeal.minutes:.1f}",
    }


def shared(peace: Counter[str], killed: Counter[str]) -> str:
    """How much of what there is in peace, and how much else."""
    num_others = (killed - peace).total()
    return f"{(peace & killed).total()} of {peace.total()}" + (f", and {num_others} others" if num_others else "")


def attempt(torment: Callable[..., Ordeal], num_trials: int, kills: int, seed: int, say: Say) -> tuple[dict[str, str], Any]:
    """Rows of one of the two, whatever becomes of it."""
    try:
        ordeal = torment(num_trials, kills, seed, say)
    except Exception as error:
        return {"it could not be measured": f"{type(error).__name__}: {error}"}, None
    return rows(ordeal, num_trials, kills), vars(ordeal) | {"peace": vars(ordeal.peace), "killed": vars(ordeal.killed)}


def as_markdown(columns: dict[str, dict[str, str]]) -> str:
    lines = [["", *columns], ["---"] * (len(columns) + 1), *([name, *cells] for name, cells in lines_of(columns))]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def as_table(columns: dict[str, dict[str, str]]) -> Table:
    table = Table("", *columns)
    for name, cells in lines_of(columns):
        table.add_row(name, *cells)
    return table


def lines_of(columns: dict[str, dict[str, str]]) -> Iterator[tuple[str, list[str]]]:
    for name in dict.fromkeys(name for column in columns.values() for name in column):
        yield name, [column.get(name, "-") for column in columns.values()]


TORMENTS: dict[str, tuple[str, Callable[..., Ordeal]]] = {
    "ours": ("Narrow Study", torment_ours),
    "stock": ("stock Ray Tune", torment_stock),
    "spared": ("stock Ray Tune, spared until its first snapshot", partial(torment_stock, spared=True)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=7, help="of the schedule")
    parser.add_argument("--trials", type=int, help="of each study; by default twice the kills")
    parser.add_argument("--columns", nargs="+", choices=TORMENTS, default=["ours", "stock"])
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true")
    form.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.getLogger("optuna").setLevel(logging.WARNING)
    console = Console(stderr=True)
    num_trials = options.trials or 2 * options.kills
    results = {}
    for choice in options.columns:
        name, torment = TORMENTS[choice]
        results[name] = attempt(torment, num_trials, options.kills, options.seed, console.print)
    columns = {name: column for name, (column, _) in results.items()}
    if options.json:
        print(json.dumps({name: {"rows": column, "facts": facts} for name, (column, facts) in results.items()}, indent=2))
    elif options.markdown:
        print(as_markdown(columns))
    else:
        Console().print(as_table(columns))


if __name__ == "__main__":
    main()
