"""How many updates does a search need that stops trials early, beside one that does not?

    python tests/benchmarks/search_quality.py [cmsp digits digits_with_lasso] [--seeds 20] [--stopping moasha] [--json]

Replays recorded learning curves (`record_curves.py`): a table of random draws of a space, each trained to its end. A policy takes
trials from the table, each once, for four workers; a worker makes a trial's next measurement as soon as it has made the one
before, and an update takes as long in every trial. What counts is the updates of all workers until the hypervolume of the
finished, feasible trials is 95 % of the whole table's, from one reference point. A policy that never gets there counts as
infinite. `random` takes trials in random order; `tpe` asks the study's TPE sampler and takes the trial nearest to what it draws
that has not been run: stopped trials are told to it as stopped.

`digits` are the five ways that cut first or begin small; `digits_with_lasso` are all of the table, with the group lasso, which
narrows while it trains: what its runs show at a rung tells little of their ends.
"""

import argparse
import dataclasses
import heapq
import json
import math
import statistics
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from search_spaces.space import Constraint
from study.fronts.hypervolume import hypervolume_over_time, reference_point
from study.running.rungs import Rungs, Stop, StopRule
from study.running.samplers_by_name import STOPPED

TABLES = {
    "cmsp": ("cmsp", None),
    "digits": ("digits", "attribution,weight_norm,random,distillation,from_scratch"),
    "digits_with_lasso": ("digits", None),
}
"""Which curves, and of the digits which ways."""
FOLDER = Path(__file__).parent / "curves"
NUM_WORKERS = 4
ENOUGH = 0.95
SAMPLERS = ("random", "tpe")


@dataclasses.dataclass(frozen=True)
class Shown:
    """One measurement."""

    updates: int
    progress: float
    metrics: dict[str, float]


class Table:
    """The recorded trials of one space."""

    def __init__(self, name: str) -> None:
        self.curves_of, self.ways = TABLES[name]
        table = pq.read_table(FOLDER / f"{self.curves_of}.parquet")
        about = json.loads(table.schema.metadata[b"curves"])
        self.params = about["params"]
        self.objectives, self.at_rungs = about["objectives"], about["at_rungs"]
        self.constraints = [Constraint.parse(text) for text in about["constraints"]]
        self.curves: list[list[Shown]] = [[] for _ in self.params]
        for row in table.to_pylist():
            metrics = {key: value for key, value in row.items() if key not in ("trial", "updates", "progress")}
            self.curves[row["trial"]].append(Shown(row["updates"], row["progress"], metrics))
        if self.ways is not None:
            taken = [trial for trial, params in enumerate(self.params) if params["method"] in self.ways.split(",")]
            self.params, self.curves = [self.params[trial] for trial in taken], [self.curves[trial] for trial in taken]
        signs = np.array([1.0 if goal == "min" else -1.0 for goal in self.objectives.values()])
        last = [curve[-1].metrics for curve in self.curves]
        self.costs = signs * np.array([[metrics[name] for name in self.objectives] for metrics in last])
        self.costs[[not self.is_feasible(metrics) for metrics in last]] = np.inf  # adds nothing to a hypervolume

    def is_feasible(self, metrics: Mapping[str, float]) -> bool:
        return all(constraint.violation(metrics) <= 0 for constraint in self.constraints)

    @cached_property
    def reference(self) -> np.ndarray:
        return reference_point(self.costs)

    @property
    def volume(self) -> float:
        """The hypervolume of the whole table."""
        return float(hypervolume_over_time(self.costs, self.reference)[-1])

    def facts(self) -> dict[str, Any]:
        feasible = np.isfinite(self.costs).all(axis=1)
        updates = [curve[-1].updates for curve in self.curves]
        return {"trials": len(self.curves), "feasible": int(feasible.sum()), "updates": sum(updates)}


class InRandomOrder:
    """Takes the table's trials in random order."""

    def __init__(self, table: Table, seed: int) -> None:
        self._left = np.random.default_rng(seed).permutation(len(table.curves)).tolist()

    def take(self) -> int | None:
        return self._left.pop() if self._left else None

    def tell(self, trial: int, metrics: Mapping[str, float], stop: Stop | None) -> None:
        pass


class ByTpe:
    """Takes the trial nearest to what the study's TPE draws, and tells it how the trial ended."""

    def __init__(self, table: Table, seed: int) -> None:
        import optuna
        from record_curves import SPACES

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        own = {} if table.ways is None else {"ways": table.ways}
        self._table, self._seed, self._suggest = table, seed, SPACES[table.curves_of](**own).suggest
        directions = ["minimize" if goal == "min" else "maximize" for goal in table.objectives.values()]
        self._study = optuna.create_study(directions=directions)
        self._left = list(range(len(table.curves)))
        self._asked: dict[int, Any] = {}

    def take(self) -> int | None:
        import optuna

        from study.running.samplers import make_sampler

        if not self._left:
            return None
        self._study.sampler = make_sampler("tpe", self._seed, len(self._asked))
        drawn = self._study.ask()
        self._suggest(drawn)
        self._study.tell(drawn, state=optuna.trial.TrialState.FAIL)  # it is not run: no sampler looks at it again
        trial = min(self._left, key=lambda left: _distance(drawn, self._table.params[left]))
        self._left.remove(trial)
        self._study.enqueue_trial(self._table.params[trial])
        self._asked[trial] = self._study.ask()
        self._suggest(self._asked[trial])
        return trial

    def tell(self, trial: int, metrics: Mapping[str, float], stop: Stop | None) -> None:
        import optuna

        asked = self._asked[trial]
        for constraint in self._table.constraints:
            asked.set_constraint(str(constraint), constraint.violation(metrics))
        if stop is not None:
            signs = {name: 1 if goal == "min" else -1 for name, goal in self._table.at_rungs.items()}
            costs = [sign * stop.values[name] for name, sign in signs.items()]
            asked.set_user_attr(STOPPED, {"rung": stop.rung, "costs": costs})
            self._study.tell(asked, state=optuna.trial.TrialState.PRUNED)
        else:
            self._study.tell(asked, [metrics[name] for name in self._table.objectives])


def _distance(drawn: Any, params: Mapping[str, Any]) -> float:
    """Of parameters from 0 to 1 along their ranges; categories, and what only one of the two has, differ by 1."""
    total = float(len(drawn.params.keys() ^ params.keys()))
    for name in drawn.params.keys() & params.keys():
        distribution, values = drawn.distributions[name], (drawn.params[name], params[name])
        if not hasattr(distribution, "low"):
            total += values[0] != values[1]
            continue
        scale: Callable[[float], float] = math.log if distribution.log else float
        span = scale(distribution.high) - scale(distribution.low)
        total += ((scale(values[0]) - scale(values[1])) / span) ** 2
    return total


@dataclasses.dataclass(frozen=True)
class Replay:
    """One search.

    Attributes:
        updates: of all workers, when each trial finished.
        trials: that finished, in their order.
    """

    updates: list[int]
    trials: list[int]
    num_stopped: int

    def updates_until(self, table: Table, share: float) -> float:
        """Updates until this share of the table's hypervolume; infinite if it is never there."""
        volumes = hypervolume_over_time(table.costs[self.trials], table.reference)
        enough = np.flatnonzero(volumes >= share * table.volume)
        return float(self.updates[enough[0]]) if len(enough) else math.inf


def replay(table: Table, policy: Any, rule: StopRule) -> Replay:
    """Run four workers through a table, until it is empty."""
    rungs = Rungs(rule, table.at_rungs, table.constraints)
    updates, trials, num_stopped, num_made = [], [], 0, 0
    busy: list[tuple[int, int, int, int]] = []  # when a worker has made its next measurement; which worker, trial, measurement

    def begin(worker: int, now: int) -> None:
        trial = policy.take()
        if trial is not None:
            heapq.heappush(busy, (now + table.curves[trial][0].updates, worker, trial, 0))

    for worker in range(NUM_WORKERS):
        begin(worker, 0)
    while busy:
        now, worker, trial, place = heapq.heappop(busy)
        curve = table.curves[trial]
        shown = curve[place]
        num_made += shown.updates - (curve[place - 1].updates if place else 0)
        stop = rungs.judge(trial, shown.progress, shown.metrics)
        if stop is None and shown.progress < 1.0:
            heapq.heappush(busy, (now + curve[place + 1].updates - shown.updates, worker, trial, place + 1))
            continue
        if stop is None:
            updates.append(num_made)
            trials.append(trial)
        num_stopped += stop is not None
        policy.tell(trial, shown.metrics, stop)
        begin(worker, now)
    return Replay(updates, trials, num_stopped)


def compare(table: Table, rule: StopRule, num_seeds: int) -> dict[str, Any]:
    """Updates of every policy, medians over seeds, and the ratios that count."""
    policies = {"random": InRandomOrder, "tpe": ByTpe}
    needed: dict[str, list[float]] = {}
    for name, make in policies.items():
        for label, own in (("", StopRule()), (" + stopping", rule)):
            replays = [replay(table, make(table, seed), own) for seed in range(num_seeds)]
            needed[name + label] = [one.updates_until(table, ENOUGH) for one in replays]
    medians = {name: statistics.median(values) for name, values in needed.items()}
    best = min(("random + stopping", "tpe + stopping"), key=lambda name: medians[name])
    ratios = {
        f"{name} + stopping / {other}": medians[name + " + stopping"] / medians[other] for name in policies for other in policies
    }
    return {
        "facts": table.facts(),
        "medians": medians,
        "never": {name: sum(map(math.isinf, values)) for name, values in needed.items()},
        "ratio_to_random": medians["tpe + stopping"] / medians["random"],
        "ratio_to_tpe": medians["tpe + stopping"] / medians["tpe"],
        "best": best,
        "ratios": ratios,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(TABLES))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--stopping", default="moasha")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = {name: compare(Table(name), StopRule.parse(asked.stopping), asked.seeds) for name in asked.names}
    if asked.json:
        print(json.dumps(found))
        return
    for name, told in found.items():
        print(f"{name}: {told['facts']}")
        for policy, median in told["medians"].items():
            print(f"  {policy:18} {median:10.0f} updates to {ENOUGH:.0%} of the hypervolume; {told['never'][policy]} seeds never")
        print("  " + ", ".join(f"{pair} {ratio:.2f}" for pair, ratio in told["ratios"].items()))


if __name__ == "__main__":
    main()
