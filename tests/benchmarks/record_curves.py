"""Trains random draws of two small spaces to their end and keeps every measurement: what `search_quality.py` replays.

    python tests/benchmarks/record_curves.py cmsp digits      # about 10 minutes on one core

Writes `curves/NAME.parquet` beside this file. A row is a measurement: `trial`, `updates` made until then, `progress`, and all
metrics of the experiment as float64. The file's metadata holds, as JSON under `curves`, the parameters of every trial and how
the space is judged: goals of the objectives, constraints, and goals of what stands for the objectives at a rung.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces import cmsp_curriculum, mnist_narrowing
from search_spaces.space import StudySpace

if TYPE_CHECKING:
    import optuna

FOLDER = Path(__file__).parent / "curves"
NUM_TRIALS = 150
SEED = 0


def cmsp() -> StudySpace:
    """Three atoms of two bits among 24, two seeds, 3000 updates, a measurement each 50: two seconds a trial."""
    task = {"num_task_bits": 24, "bits_per_atom": 2, "composite_size": 3, "num_atoms": 4, "num_seeds": 2}
    sizes = {"samples_per_update": 400, "sample_budget": 1_200_000, "samples_per_evaluation": 400, "updates_per_step": 50}

    def suggest(trial: "optuna.Trial") -> dict[str, Any]:
        breadth = {"related_atoms": trial.suggest_int("related_atoms", 0, 3)}
        breadth["unrelated_atoms"] = trial.suggest_int("unrelated_atoms", 0, 1)
        share = trial.suggest_float("composite_share", 0.1, 0.95) if any(breadth.values()) else 1.0
        return task | sizes | breadth | {
            "composite_share": share,
            "depth": trial.suggest_int("depth", 2, 3),
            "width": trial.suggest_int("width", 16, 64, step=8),
            "learning_rate": trial.suggest_float("learning_rate", 5e-4, 5e-3, log=True),
        }  # fmt: skip

    return StudySpace(
        experiment="cmsp_curriculum",
        suggest=suggest,
        objectives=("samples_to_convergence", "parameters"),
        constraints=("fraction_converged >= 0.5",),
        at_rungs=cmsp_curriculum.cpu().at_rungs,
    )


def digits(ways: str | None = None) -> StudySpace:
    """`mnist_narrowing:cpu`, with a measurement each 256 images."""
    space = mnist_narrowing.cpu(ways=ways)

    def suggest(trial: "optuna.Trial") -> dict[str, Any]:
        return {**space.suggest(trial), "checks_per_step": 2}

    return dataclasses.replace(space, suggest=suggest)


SPACES: dict[str, Callable[..., StudySpace]] = {"cmsp": cmsp, "digits": digits}


def updates_of(experiment: Any) -> int:
    """Updates made so far."""
    state, config = experiment.state_dict(), experiment.config
    return state["update"] if "update" in state else state["num_checks"] * config.samples_per_check // config.batch_size


def record(name: str) -> None:
    """Train all draws of one space and write its file."""
    import optuna
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    from trainables.experiment import make_experiment
    from trainables.registry import load_experiment
    from trainables.shared import make_alone

    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space, device, made = SPACES[name](), torch.device("cpu"), {}
    experiment_class = load_experiment(space.experiment)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=SEED))
    rows, params = [], []
    for number in range(NUM_TRIALS):
        start, trial = time.perf_counter(), study.ask()
        config = experiment_class.Config(**space.suggest(trial))
        recipes = experiment_class.needs(config)
        for recipe in recipes.values():
            made[recipe.key] = made.get(recipe.key) or make_alone(recipe, device)
        given = {need: made[recipe.key] for need, recipe in recipes.items()}
        experiment = make_experiment(experiment_class, config, device=device, given=given)
        while experiment.progress < 1.0:
            metrics = experiment.step()
            rows.append({"trial": number, "updates": updates_of(experiment), "progress": experiment.progress, **metrics})
        params.append(trial.params)
        print(f"{name} {number}: {time.perf_counter() - start:.1f} s, {rows[-1]['updates']} updates", file=sys.stderr)
    goals = {metric.name: metric.goal for metric in experiment_class.METRICS}
    about = {
        "params": params,
        "objectives": {objective: goals[objective] for objective in space.objectives},
        "constraints": list(space.constraints),
        "at_rungs": {guide: goals[guide] for guide in (space.at_rungs.get(o, o) for o in space.objectives)},
    }
    columns = {key: [row[key] if key in ("trial", "updates") else float(row[key]) for row in rows] for key in rows[0]}
    table = pa.table(columns).replace_schema_metadata({"curves": json.dumps(about)})
    FOLDER.mkdir(exist_ok=True)
    pq.write_table(table, FOLDER / f"{name}.parquet", compression="zstd")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=list(SPACES))
    for name in parser.parse_args().names:
        record(name)


if __name__ == "__main__":
    main()
