"""How broad must a mixture be to teach a composite skill? Breadth, shares and shape of the CMSP curriculum."""

from typing import TYPE_CHECKING, Any

from search_spaces.space import StudySpace
from trainables.cmsp.networks import Shape, matched_width

if TYPE_CHECKING:
    import optuna

_OBJECTIVES = ("samples_to_convergence", "parameters")
_CONSTRAINTS = ("fraction_converged >= 0.5",)
_AT_RUNGS = {"samples_to_convergence": "composite_loss_bits"}
"""Before it has converged, a network's samples to convergence are the budget, whatever it has learned."""
_FIGURE_2 = {"unrelated_atoms": 0, "intermediate_composites": 0, "depth": 3, "width": 128, "learning_rate": 1e-3}
_SMALL: dict[str, Any] = {
    "num_task_bits": 32,
    "bits_per_atom": 3,
    "composite_size": 3,
    "samples_per_update": 800,
    "sample_budget": 2_600_000,
    "num_seeds": 2,
    "samples_per_evaluation": 500,
    "updates_per_step": 250,
}


def tiny() -> StudySpace:
    """Two atoms of two bits: a trial a second, for tests and a first look."""

    def suggest(trial: "optuna.Trial") -> dict[str, Any]:
        task = {
            "num_task_bits": 6,
            "bits_per_atom": 2,
            "composite_size": 2,
            "samples_per_update": 64,
            "sample_budget": 25_600,
            "num_seeds": 2,
            "samples_per_evaluation": 256,
            "updates_per_step": 100,
        }
        return task | {
            **_suggest_breadth(trial, composite_size=2),
            "width": trial.suggest_int("width", 16, 48, step=16),
            "learning_rate": trial.suggest_float("learning_rate", 1e-3, 1e-2, log=True),
        }

    return StudySpace(
        experiment="cmsp_curriculum",
        suggest=suggest,
        objectives=_OBJECTIVES,
        at_rungs=_AT_RUNGS,
        constraints=_CONSTRAINTS,
        log_scale=_OBJECTIVES,
        color_by="related_atoms",
        num_trials=6,
    )


def cpu() -> StudySpace:
    """Three atoms of three bits among 32: about four minutes on two cores, and the paper's effect shows."""

    def suggest(trial: "optuna.Trial") -> dict[str, Any]:
        return _SMALL | {
            **_suggest_breadth(trial, composite_size=3, unrelated=1, intermediate=1),
            "depth": trial.suggest_int("depth", 2, 3),
            "width": trial.suggest_categorical("width", [32, 64, 96, 128]),
            "learning_rate": trial.suggest_float("learning_rate", 1e-3, 4e-3, log=True),
        }

    return StudySpace(
        experiment="cmsp_curriculum",
        suggest=suggest,
        objectives=_OBJECTIVES,
        at_rungs=_AT_RUNGS,
        constraints=_CONSTRAINTS,
        log_scale=_OBJECTIVES,
        color_by="related_atoms",
        first_trials=(
            # the broad and the narrow arm of the paper's Fig 2, at this size
            _FIGURE_2 | {"related_atoms": 3, "composite_share": 0.25},
            _FIGURE_2 | {"related_atoms": 0},
        ),
        num_trials=30,
    )


def depth() -> StudySpace:
    """Two, three or four layers with as many parameters (Fig 7), at small scale: about three minutes on two cores."""

    def suggest(trial: "optuna.Trial") -> dict[str, Any]:
        layers = trial.suggest_int("depth", 2, 4)
        size = trial.suggest_categorical("width_at_depth_3", [64, 96, 128])
        num_inputs = _SMALL["num_task_bits"] + _SMALL["composite_size"]
        num_parameters = Shape.of_depth(num_inputs=num_inputs, depth=3, width=size).num_parameters
        return _SMALL | {
            "num_atoms": 3,
            "related_atoms": 3,
            "composite_share": 0.25,
            "depth": layers,
            "width": matched_width(num_inputs=num_inputs, depth=layers, num_parameters=num_parameters),
            "num_seeds": 4,
        }

    return StudySpace(
        experiment="cmsp_curriculum",
        suggest=suggest,
        objectives=_OBJECTIVES,
        at_rungs=_AT_RUNGS,
        log_scale=_OBJECTIVES,
        color_by="depth",
        first_trials=tuple({"depth": layers, "width_at_depth_3": size} for size in (64, 96, 128) for layers in (2, 3, 4)),
        num_trials=9,
    )


def paper() -> StudySpace:
    """The paper's task and budget (Figs 2 and 7), with room for four unrelated atoms: n=64, k=4, 40 seeds, 2e9 samples."""

    def suggest(trial: "optuna.Trial") -> dict[str, Any]:
        return {
            "num_task_bits": 64,
            "bits_per_atom": 4,
            "composite_size": 4,
            "samples_per_update": 10_000,
            "sample_budget": 2_000_000_000,
            "num_seeds": 40,
            **_suggest_breadth(trial, composite_size=4, unrelated=4, intermediate=2, unrelated_pairs=2),
            "depth": trial.suggest_int("depth", 2, 4),
            "width": trial.suggest_int("width", 32, 512, log=True),
            "learning_rate": trial.suggest_float("learning_rate", 2e-4, 5e-3, log=True),
        }

    return StudySpace(
        experiment="cmsp_curriculum",
        suggest=suggest,
        objectives=_OBJECTIVES,
        at_rungs=_AT_RUNGS,
        constraints=_CONSTRAINTS,
        log_scale=_OBJECTIVES,
        color_by="related_atoms",
        first_trials=tuple(
            _FIGURE_2 | {"unrelated_composites": 0} | arm
            for arm in (
                {"related_atoms": 4, "composite_share": 0.2},
                {"related_atoms": 0},
                {"related_atoms": 4, "composite_share": 0.2, "depth": 2},
                {"related_atoms": 4, "composite_share": 0.2, "depth": 2, "width": 348},  # as many parameters
                # a two-level hierarchy, and its control: as many atoms and pairs, all of them unrelated
                {"related_atoms": 4, "intermediate_composites": 2, "composite_share": 1 / 7},
                {"related_atoms": 0, "unrelated_atoms": 4, "unrelated_composites": 2, "composite_share": 1 / 7},
            )
        ),
        num_trials=100,
        num_gpus=1,
    )


def _suggest_breadth(
    trial: "optuna.Trial", *, composite_size: int, unrelated: int = 0, intermediate: int = 0, unrelated_pairs: int = 0
) -> dict[str, Any]:
    """Draw what is in the mixture, and the composite's share of it where there is anything else."""
    breadth = {"related_atoms": trial.suggest_int("related_atoms", 0, composite_size)}
    if unrelated:
        breadth["unrelated_atoms"] = trial.suggest_int("unrelated_atoms", 0, unrelated)
    if intermediate:
        breadth["intermediate_composites"] = trial.suggest_int("intermediate_composites", 0, intermediate)
    if unrelated_pairs:
        breadth["unrelated_composites"] = trial.suggest_int("unrelated_composites", 0, unrelated_pairs)
    alone = not any(breadth.values())
    return breadth | {
        "num_atoms": composite_size + unrelated,  # fixed: breadth must not change the number of parameters
        "composite_share": 1.0 if alone else trial.suggest_float("composite_share", 0.1, 0.95),
    }
