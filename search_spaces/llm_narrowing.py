"""From a broad language model to a small one for Python: which way, how sparse, how long, on how broad a mixture?

The base model and the corpus are made once a study, by the trial that needs them first.
"""

from typing import TYPE_CHECKING, Any

from search_spaces.space import StudySpace

if TYPE_CHECKING:
    import optuna

_OBJECTIVES = ("kept_loss_nats", "parameters_kept", "tokens_spent")
_LOG_SCALE = ("parameters_kept", "tokens_spent")
_OWN: dict[str, dict[str, Any]] = {
    "group_lasso": {"lasso_way": "subgradient", "subgradient_strength": 1e-3, "lasso_updates": 60, "lasso_learning_rate": 1e-3},
    "attribution": {"per_layer": False, "recovery_teacher_share": 0.0},
    "weight_norm": {"per_layer": False, "recovery_teacher_share": 0.0},
    "random": {"per_layer": False, "recovery_teacher_share": 0.0},
    "distillation": {"teacher_share": 0.5, "warmup": 20},
    "from_scratch": {"warmup": 20},
}
"""The methods, and what each has beside sizes, mixture, length and learning rate of its recovery."""


def tiny() -> StudySpace:
    """A model that hardly learns: a trial takes a second, for tests and a first look."""
    short = {"batch_size": 4, "length": 32}
    weights = {"python": 0.5, "prose": 0.5}
    fixed = {
        "corpus": {"domains": ["python", "prose"], "domain_bytes": 60_000, "vocabulary": 300},
        "base": {
            "width": 16,
            "num_layers": 2,
            "mlp_width": 32,
            "num_heads": 2,
            "weights": weights,
            "training": {"updates": 10, "warmup": 2, **short},
        },
        "relearning": {"updates": 2, "warmup": 0, **short},
        "score_windows": 4,
        "evaluation_windows": 4,
        "updates_per_step": 4,
    }
    return _space(fixed, short, updates=(4, 8), num_trials=6)


def cpu() -> StudySpace:
    """A Llama of 0.3 million parameters, trained on the installed packages: minutes on two cores, pretraining included."""
    fixed = {
        "corpus": {"vocabulary": 512},
        "base": {"training": {"updates": 600, "learning_rate": 4e-3, "warmup": 50}},
        "relearning": {"updates": 20},
        "score_windows": 32,
        "evaluation_windows": 48,
        "updates_per_step": 20,
        "target_loss_nats": 3.4,
    }
    first = _first_trials({"neuron_sparsity": 0.8, "residual_sparsity": 0.0, "recovery_updates": 100, "learning_rate": 2e-3})
    return _space(fixed, {}, updates=(20, 200), num_trials=24, first_trials=first)


def _space(
    fixed: dict[str, Any],
    training: dict[str, Any],
    *,
    updates: tuple[int, int],
    num_trials: int,
    first_trials: tuple[dict[str, Any], ...] = (),
) -> StudySpace:
    def suggest(trial: "optuna.Trial") -> dict[str, Any]:
        method = trial.suggest_categorical("method", list(_OWN))
        config = fixed | _suggest_own(trial, method, training, updates)
        recovery = training | {
            "updates": trial.suggest_int("recovery_updates", *updates, log=True),
            "learning_rate": trial.suggest_float("learning_rate", 3e-4, 1e-2, log=True),
            "warmup": config.pop("warmup", 4),
        }
        return config | {
            "method": method,
            "neuron_sparsity": trial.suggest_float("neuron_sparsity", 0.3, 0.95),
            "residual_sparsity": trial.suggest_float("residual_sparsity", 0.0, 0.6),
            "breadth": trial.suggest_float("breadth", 0.0, 0.5),
            "recovery": recovery,
        }

    return StudySpace(
        experiment="llm_narrowing",
        suggest=suggest,
        objectives=_OBJECTIVES,
        log_scale=_LOG_SCALE,
        color_by="method",
        first_trials=first_trials,
        num_trials=num_trials,
    )


def _suggest_own(trial: "optuna.Trial", method: str, training: dict[str, Any], updates: tuple[int, int]) -> dict[str, Any]:
    """Draw what only this method has."""
    if method == "group_lasso":
        way = trial.suggest_categorical("lasso_way", ["subgradient", "proximal"])
        low, high = (1e-4, 1e-2) if way == "subgradient" else (3.0, 100.0)
        lasso = training | {
            "updates": trial.suggest_int("lasso_updates", *updates, log=True),
            "learning_rate": trial.suggest_float("lasso_learning_rate", 3e-4, 1e-2, log=True),
            "warmup": 4,
        }
        strength = trial.suggest_float(f"{way}_strength", low, high, log=True)
        return {"lasso_way": way, "lasso_strength": strength, "lasso": lasso}
    if method == "from_scratch":
        return {"warmup": trial.suggest_int("warmup", 1, 40, log=True)}
    if method == "distillation":
        share = trial.suggest_float("teacher_share", 0.1, 0.9)
        return {"warmup": trial.suggest_int("warmup", 1, 40, log=True), "teacher_share": share}
    # above 0, a hybrid of pruning and distillation
    share = trial.suggest_float("recovery_teacher_share", 0.0, 0.9)
    return {"per_layer": trial.suggest_categorical("per_layer", [False, True]), "teacher_share": share}


def _first_trials(shared: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """Each way once at one size, on the kept domain alone."""
    return tuple({"method": method, **own, **shared, "breadth": 0.0} for method, own in _OWN.items())
