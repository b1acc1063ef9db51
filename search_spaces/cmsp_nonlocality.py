"""How narrow can a broad network be cut? Group lasso, scores, sparsity, width and breadth for the CMSP nonlocality experiment."""

from typing import TYPE_CHECKING, Any

from search_spaces.space import StudySpace

if TYPE_CHECKING:
    import optuna

_OBJECTIVES = ("target_accuracy", "neurons_kept", "other_accuracy")
_CONSTRAINTS = ("target_accuracy >= 0.9",)
_PLAIN = {"method": "none", "score": "ablation"}
_SUBGRADIENT = {"method": "subgradient", "subgradient_strength": 1e-3, "score": "ablation"}
_PROXIMAL = {"method": "proximal", "proximal_strength": 3.0, "score": "ablation"}


def tiny() -> StudySpace:
    """Two atoms of one bit a task: a trial a second, for tests and a first look."""

    def suggest(trial: "optuna.Trial") -> dict[str, Any]:
        task = {
            "num_task_bits": 4,
            "bits_per_atom": 1,
            "composite_size": 2,
            "related_atoms": 2,
            "other_atoms": 2,
            "learning_rate": 5e-3,
            "pretraining_samples": 32,
            "pretraining_updates": 300,
            "lasso_samples": 64,
            "score_samples": 200,
            "sparsities": [0.0, 0.5, 0.75],
            "recovery_updates": 60,
            "recovery_samples": 64,
            "num_seeds": 2,
            "updates_per_evaluation": 20,
            "updates_per_step": 100,
        }
        return task | _suggest_pruning(trial, updates=(100, 300)) | {"width": trial.suggest_int("width", 16, 32, step=16)}

    return StudySpace(
        experiment="cmsp_nonlocality",
        suggest=suggest,
        objectives=_OBJECTIVES,
        log_scale=("neurons_kept",),
        color_by="method",
        num_trials=6,
    )


def cpu() -> StudySpace:
    """Two atoms of three bits a task: about five minutes on two cores, and the paper's effect shows."""

    def suggest(trial: "optuna.Trial") -> dict[str, Any]:
        task = {
            "num_task_bits": 12,
            "bits_per_atom": 3,
            "composite_size": 2,
            "related_atoms": 2,
            "pretraining_samples": 300,
            "pretraining_updates": 2500,
            "lasso_samples": 1200,
            "score_samples": 1000,
            "sparsities": [0.0, 0.5, 0.7, 0.8, 0.9, 0.95],
            "recovery_updates": 200,
            "recovery_samples": 1000,
            "num_seeds": 2,
        }
        return task | {
            **_suggest_pruning(trial, updates=(1000, 6000)),
            "width": trial.suggest_categorical("width", [64, 96, 128]),
            "other_atoms": trial.suggest_int("other_atoms", 0, 2),
        }

    fig_3 = {"width": 128, "other_atoms": 2}
    return StudySpace(
        experiment="cmsp_nonlocality",
        suggest=suggest,
        objectives=_OBJECTIVES,
        constraints=_CONSTRAINTS,
        log_scale=("neurons_kept",),
        color_by="method",
        first_trials=(
            # the paper's Fig 3 at this size: plain pruning, and the group lasso; then the proximal step in half the updates
            fig_3 | _PLAIN | {"sparsity": 0.5},
            fig_3 | _SUBGRADIENT | {"lasso_updates": 6000, "sparsity": 0.9},
            fig_3 | _PROXIMAL | {"lasso_updates": 3000, "sparsity": 0.9},
        ),
        num_trials=16,
    )


def paper() -> StudySpace:
    """The paper's task and budgets (Figs 3 and 10): n=18, m=6, k=3, 98 sparsities, 5 seeds; for a GPU cluster."""

    def suggest(trial: "optuna.Trial") -> dict[str, Any]:
        return {
            **_suggest_pruning(trial, updates=(1000, 20_000)),
            "width": trial.suggest_int("width", 32, 2048, log=True),
            "related_atoms": trial.suggest_int("related_atoms", 0, 3),
            "other_atoms": trial.suggest_int("other_atoms", 0, 3),
            "other_composite": trial.suggest_categorical("other_composite", [True, False]),
        }

    broad = {"related_atoms": 3, "other_atoms": 3, "other_composite": True}
    return StudySpace(
        experiment="cmsp_nonlocality",
        suggest=suggest,
        objectives=(*_OBJECTIVES, "updates_spent"),
        constraints=_CONSTRAINTS,
        log_scale=("neurons_kept", "updates_spent"),
        color_by="method",
        first_trials=(
            *(broad | _PLAIN | {"width": width, "sparsity": 0.5} for width in (64, 128, 256, 512, 1024)),
            *(broad | _SUBGRADIENT | {"lasso_updates": 10_000, "width": width, "sparsity": 0.9} for width in (64, 256, 1024)),
        ),
        num_trials=100,
        num_gpus=1,
    )


def _suggest_pruning(trial: "optuna.Trial", *, updates: tuple[int, int]) -> dict[str, Any]:
    """Draw how neurons are made to stand out, how they are ranked, and how many go."""
    method = trial.suggest_categorical("method", ["subgradient", "proximal", "none"])
    drawn: dict[str, Any] = {"method": method}
    if method == "subgradient":
        drawn["lasso_strength"] = trial.suggest_float("subgradient_strength", 1e-4, 3e-2, log=True)
    if method == "proximal":
        drawn["lasso_strength"] = trial.suggest_float("proximal_strength", 0.1, 10.0, log=True)
    if method != "none":
        drawn["lasso_updates"] = trial.suggest_int("lasso_updates", *updates, log=True)
    return drawn | {
        "score": trial.suggest_categorical("score", ["ablation", "attribution", "weight_norm", "random"]),
        "sparsity": trial.suggest_float("sparsity", 0.3, 0.95, step=0.05),
    }
