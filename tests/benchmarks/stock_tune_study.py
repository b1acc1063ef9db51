"""The study of `cmsp_curriculum:tiny` as the documentation of Ray Tune has it: OptunaSearch, MLflowLoggerCallback, Tuner.restore.

    python tests/benchmarks/stock_tune_study.py FOLDER --trials 6 --seed 0

The same command goes on with a study that was interrupted. Exit status: 0 done, 1 some trials failed. Every setting that is
not given is Ray's own; `survival.py` kills it beside ours.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from optuna.storages import RDBStorage
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.search.optuna import OptunaSearch
from stock_tune_space import SPACE, suggest

from trainables.experiment import build_experiment
from trainables.registry import load_experiment

NAME = "stock"
CLASS = load_experiment(SPACE.experiment)
GOALS = {metric.name: metric.goal for metric in CLASS.METRICS}
MAX_LOST_WORKERS = 3
"""As often, in a row, does a study of ours try a trial."""
STATE_FILE = "state.pt"


def train(config: dict[str, Any]) -> None:
    """Go on from the checkpoint, if there is one, and leave one at every step."""
    torch.set_num_threads(1)
    experiment = build_experiment(CLASS, CLASS.Config(**config), device=torch.device("cpu"))
    checkpoint = tune.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            experiment.load_state_dict(torch.load(Path(folder) / STATE_FILE, weights_only=True))
    while experiment.progress < 1.0:
        metrics = experiment.step()
        with tempfile.TemporaryDirectory() as folder:
            torch.save(experiment.state_dict(), Path(folder) / STATE_FILE)
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))


def make_tuner(folder: Path, num_trials: int, seed: int) -> tune.Tuner:
    """Restore what is there, or begin."""
    experiment = folder / "ray" / NAME
    if tune.Tuner.can_restore(experiment):
        return tune.Tuner.restore(str(experiment), trainable=train, resume_unfinished=True, restart_errored=True)
    search = OptunaSearch(
        suggest,
        metric=list(SPACE.objectives),
        mode=[GOALS[name] for name in SPACE.objectives],
        study_name=NAME,
        storage=RDBStorage(f"sqlite:///{folder / 'optuna.db'}"),
        seed=seed,
    )
    return tune.Tuner(
        train,
        tune_config=tune.TuneConfig(search_alg=search, num_samples=num_trials, max_concurrent_trials=1),
        run_config=tune.RunConfig(
            name=NAME,
            storage_path=str(folder / "ray"),
            callbacks=[MLflowLoggerCallback(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}", experiment_name=NAME)],
            failure_config=tune.FailureConfig(max_failures=MAX_LOST_WORKERS),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=2),
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of all that it keeps")
    parser.add_argument("--trials", type=int, default=SPACE.num_trials)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    results = make_tuner(options.folder.resolve(), options.trials, options.seed).fit()
    if results.errors:
        sys.exit(f"{results.num_errors} of {len(results)} trials failed: {str(results.errors[0]).strip().splitlines()[-1]}")


if __name__ == "__main__":
    main()
