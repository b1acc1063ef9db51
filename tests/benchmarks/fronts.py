"""How long does a front of 100,000 rows take, beside a plain front and Optuna's?

    python tests/benchmarks/fronts.py
    python tests/benchmarks/fronts.py --arms ours optuna     # `plain` takes minutes where all rows are on the front
    python tests/benchmarks/fronts.py --rows 20000 --objectives 4 --json

Three arms in turns, in one process, on the same costs, and with the same answer. `ours`: `study.fronts.pareto`. `plain`: the
loop that most tools have, each row in turn throws out what it dominates, O(rows * front). `optuna`: what `study.best_trials`
asks, without the trials. An arm that takes longer than --patience seconds is not asked again. Then what else is asked of a
front, ours alone.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from optuna.study._multi_objective import _is_pareto_front

from study.fronts.domination import dominated_by, within
from study.fronts.hypervolume import hypervolume, hypervolume_over_time, reference_point
from study.fronts.knee import knee
from study.fronts.pareto import non_dominated

NUM_ROWS_IN_TIME = 5000
Shape = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def on_a_plane(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    costs = random.exponential(size=shape)
    return costs / costs.sum(axis=1, keepdims=True)


SHAPES: dict[str, Shape] = {
    "uniform": lambda random, shape: random.random(shape),
    "all on the front": on_a_plane,
    "integers 0..9": lambda random, shape: random.integers(0, 10, shape).astype(float),
    "correlated": lambda random, shape: random.random((shape[0], 1)) + 0.1 * random.normal(size=shape),
    "anti-correlated": lambda random, shape: on_a_plane(random, shape) + 0.02 * random.random(shape),
}


def plain_front(costs: np.ndarray) -> np.ndarray:
    """Equal rows are kept."""
    candidates = np.arange(len(costs))
    position = 0
    while position < len(candidates):
        row = costs[candidates[position]]
        values = costs[candidates]
        is_kept = (values < row).any(axis=1) | (values == row).all(axis=1)
        position = int(is_kept[:position].sum()) + 1
        candidates = candidates[is_kept]
    mask = np.zeros(len(costs), dtype=bool)
    mask[candidates] = True
    return mask


ARMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ours": non_dominated,
    "plain": plain_front,
    "optuna": lambda costs: _is_pareto_front(costs, assume_unique_lexsorted=False),
}


def seconds_of(question: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    answer = question()
    return time.perf_counter() - start, answer


def race(costs: np.ndarray, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of seconds by arm; all arms find the same front."""
    times: dict[str, list[float]] = {name: [] for name in options.arms}
    masks = {}
    for _ in range(options.rounds):
        for name in options.arms:
            if sum(times[name]) < options.patience:
                seconds, masks[name] = seconds_of(lambda name=name: ARMS[name](costs))
                times[name].append(seconds)
    assert all((mask == masks["ours"]).all() for mask in masks.values())
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = {f"{name}_over_ours": medians[name] / medians["ours"] for name in options.arms if name != "ours"}
    return {"front": int(masks["ours"].sum()), **medians, **ratios, "worst_of_ours": max(times["ours"])}


def other_questions(costs: np.ndarray) -> Iterator[tuple[str, Callable[[], Any]]]:
    reference, first = reference_point(costs), costs[:NUM_ROWS_IN_TIME]
    yield "knee", lambda: knee(costs)
    yield "dominated_by", lambda: dominated_by(costs)
    yield "within", lambda: within(costs, 0.05)
    if costs.shape[1] <= 3:
        yield "hypervolume", lambda: hypervolume(costs, reference)
        yield f"over_time_of_{len(first)}", lambda: hypervolume_over_time(first, reference)


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    costs = SHAPES[name](np.random.default_rng(0), (options.rows, options.objectives))
    others = {
        question: statistics.median(seconds_of(ask)[0] for _ in range(options.rounds)) for question, ask in other_questions(costs)
    }
    return {"shape": name, **race(costs, options), "others": others}


def show(found: dict[str, Any], options: argparse.Namespace) -> None:
    arms = [name for name in ARMS if name in options.arms]
    times = ", ".join(f"{name} {found[name]:.3f} s" for name in arms)
    ratios = ", ".join(f"{name} / ours {found[f'{name}_over_ours']:.1f}" for name in arms if name != "ours")
    print(f"{found['shape']:<17}{found['front']:>7} on it: {times} (worst of ours {found['worst_of_ours']:.3f}); {ratios}")
    print(" " * 17 + ", ".join(f"{question} {seconds:.3f}" for question, seconds in found["others"].items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--objectives", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patience", type=float, default=5.0, help="seconds an arm may take in all before it is asked no more")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.arms = ["ours", *(name for name in options.arms if name != "ours")]
    host = {"cpus": os.cpu_count(), "load": [round(load, 1) for load in os.getloadavg()]}
    if options.json:
        print(json.dumps(host | {"shapes": [measure(name, options) for name in SHAPES]}, indent=2))
        return
    print(f"{options.rows} x {options.objectives}, seconds, medians; {host['cpus']} CPUs, load {host['load']}", flush=True)
    for name in SHAPES:
        show(measure(name, options), options)


if __name__ == "__main__":
    main()
