"""Which way to a narrow image classifier is cheapest? Six ways, each with its own parameters, for the MNIST narrowing experiment.

Without `data_dir` the images are scikit-learn's digits; with it, the IDX files in that folder:
`study launch mnist_narrowing:cpu --set data_dir=FOLDER ...`. On a cluster all nodes must see the folder.
`--set ways=random,distillation` searches these alone.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces.space import StudySpace
from trainables.laws import require

if TYPE_CHECKING:
    import optuna

_OBJECTIVES = ("datapoints", "neurons_kept", "accuracy")
_LOG_SCALE = ("datapoints", "neurons_kept")
_CONSTRAINTS = ("fraction_reached >= 0.5",)  # as the paper has it: a setting has failed if most of its runs do
_AT_RUNGS = {"datapoints": "validation_accuracy"}
"""Before it has reached the target, a network's datapoints are all that it has read, whatever it has learned."""
_OWN: dict[str, dict[str, Any]] = {
    "group_lasso": {"lasso_way": "mask", "mask_strength": 5e-3},
    "attribution": {"ranking": "per_layer"},
    "weight_norm": {"ranking": "per_layer"},
    "random": {"ranking": "per_layer"},
    "distillation": {"temperature": 20.0, "alpha": 0.1},
    "from_scratch": {"batch_size": 64},
}
"""The methods, and what each has beside its size and learning rate: the paper's values."""


def tiny(data_dir: str | None = None, ways: str | None = None) -> StudySpace:
    """Two small networks of the digits: a trial takes a second, for tests and a first look."""
    teacher = {"widths": [24, 24], "epochs": 10, "batch_size": 64, "dropout": 0.0, "learning_rate": 5e-3}
    fixed = {"target_accuracy": 0.85, "samples_per_check": 320, "samples_budget": 4800, "checks_per_step": 5, "num_seeds": 2}
    return _space(data_dir, ways, {"teacher": teacher, **fixed}, sizes=(8, 48), num_trials=8)


def cpu(data_dir: str | None = None, ways: str | None = None) -> StudySpace:
    """Narrow networks of 20 to 400 neurons, cut from 400 or trained: minutes on two cores."""
    if data_dir is None:
        teacher = {"widths": [200, 200], "epochs": 40, "batch_size": 64}
        fixed = {"samples_per_check": 128, "samples_budget": 20_000, "checks_per_step": 10}
    else:  # more images: fewer epochs, and as few checks as the paper makes, for each reads thousands
        teacher, fixed = {"widths": [200, 200], "epochs": 5}, {}
    first = _first_trials(neurons=80, learning_rate=3e-3)
    return _space(data_dir, ways, {"teacher": teacher, **fixed}, sizes=(20, 400), num_trials=100, first_trials=first)


def paper(data_dir: str | None = None, ways: str | None = None) -> StudySpace:
    """The paper's teacher, sizes and budget (Fig 4), the sweep the same for all methods; for a GPU cluster, with data_dir."""
    fixed = {"samples_per_check": 1792, "samples_budget": 50_000, "num_seeds": 10}
    first = [trial for neurons in (100, 400, 1200) for trial in _first_trials(neurons=neurons, learning_rate=1e-3)]
    return _space(data_dir, ways, fixed, sizes=(24, 2400), num_trials=240, first_trials=first, num_gpus=0.25)


def _space(
    data_dir: str | None,
    ways: str | None,
    fixed: dict[str, Any],
    *,
    sizes: tuple[int, int],
    num_trials: int,
    first_trials: list[dict[str, Any]] | None = None,
    num_gpus: float = 0,
) -> StudySpace:
    """Search ways to sizes between two; a lasso run's smallest good network stands for it in the search."""
    methods = _chosen(ways)
    folder = None if data_dir is None else str(Path(str(data_dir)).expanduser().absolute())

    def suggest(trial: "optuna.Trial") -> dict[str, Any]:
        method = trial.suggest_categorical("method", methods)
        return fixed | _suggest_own(trial, method) | {
            "data_dir": folder,
            "method": method,
            "neurons": trial.suggest_int("neurons", *sizes, log=True),
            "learning_rate": trial.suggest_float("learning_rate", 5e-4, 2e-2, log=True),
        }  # fmt: skip

    return StudySpace(
        experiment="mnist_narrowing",
        suggest=suggest,
        objectives=_OBJECTIVES,
        constraints=_CONSTRAINTS,
        representative="neurons_kept",
        at_rungs=_AT_RUNGS,
        log_scale=_LOG_SCALE,
        color_by="method",
        first_trials=tuple(first for first in first_trials or () if first["method"] in methods),
        num_trials=num_trials,
        num_gpus=num_gpus,
    )


def _chosen(ways: str | None) -> list[str]:
    """The methods that are named, with commas; all of them by default."""
    named = list(_OWN) if ways is None else [way.strip() for way in str(ways).split(",")]
    known, unknown = ", ".join(_OWN), [way for way in named if way not in _OWN]
    require(not unknown and len(set(named)) == len(named), f"ways must be some of {known}", ways, "name each once, with commas")
    return named


def _suggest_own(trial: "optuna.Trial", method: str) -> dict[str, Any]:
    """Draw what only this method has: one or two numbers, so that no method's sweep is much wider than another's."""
    if method == "group_lasso":
        way = trial.suggest_categorical("lasso_way", ["mask", "proximal"])
        low, high = (1e-3, 2e-2) if way == "mask" else (0.3, 5.0)
        return {"lasso_way": way, "lasso_strength": trial.suggest_float(f"{way}_strength", low, high, log=True)}
    if method == "distillation":
        temperature = trial.suggest_float("temperature", 1.0, 30.0, log=True)
        return {"temperature": temperature, "alpha": trial.suggest_float("alpha", 0.0, 0.9)}
    if method == "from_scratch":
        return {"batch_size": trial.suggest_categorical("batch_size", [16, 32, 64])}
    return {"ranking": trial.suggest_categorical("ranking", ["per_layer", "global"])}


def _first_trials(*, neurons: int, learning_rate: float) -> list[dict[str, Any]]:
    """Each way once at one size, with the paper's values where it has one."""
    return [{"method": method, **own, "neurons": neurons, "learning_rate": learning_rate} for method, own in _OWN.items()]
