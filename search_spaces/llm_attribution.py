"""Which score tells best what a unit of a language model matters, and how little text does it need for that?

The model and the corpus are made once a study, by the trial that needs them first. Ablations are of held-out text.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from search_spaces.llm_narrowing import GITHUB_CODE, LLAMA
from search_spaces.space import StudySpace

if TYPE_CHECKING:
    import optuna

_OBJECTIVES = ("r_log_neurons", "r_log_residual", "score_tokens")
_SCORES = ("attribution", "abs_gradient_attribution", "activation_attribution", "sample_activation_attribution", "weight_norm")
_BY_BATCH = ("abs_gradient_attribution", "activation_attribution")
"""Scores that take an absolute value a batch, so that the size of a batch matters."""


def tiny() -> StudySpace:
    """A model that hardly learns: a trial takes a second, for tests and a first look."""
    short = {"batch_size": 4, "length": 32}
    fixed = {
        "corpus": {"domains": ["python", "prose"], "domain_bytes": 60_000, "vocabulary": 300},
        "base": {
            "width": 16,
            "num_layers": 2,
            "mlp_width": 32,
            "num_heads": 2,
            "weights": {"python": 0.5, "prose": 0.5},
            "training": {"updates": 10, "warmup": 2, **short},
        },
        "ablation_windows": 4,
        "ablation_length": 32,
        "num_neurons": 24,
        "num_dimensions": 16,
        "units_per_step": 20,
    }
    return _space(fixed, windows=(1, 16), lengths=(16, 32), num_trials=6)


def cpu() -> StudySpace:
    """A Llama of 0.3 million parameters, trained on the installed packages: minutes on two cores, pretraining included."""
    fixed = {
        "corpus": {"vocabulary": 512},
        "base": {"training": {"updates": 600, "learning_rate": 4e-3, "warmup": 50}},
        "ablation_windows": 16,
        "num_neurons": 250,
        "num_dimensions": 64,
    }
    return _space(fixed, windows=(1, 128), lengths=(32, 128), num_trials=24, first_trials=_first_trials(8, 128))


def paper(pretrained: str = LLAMA) -> StudySpace:
    """The paper's model, sample and text (Fig 11: 500 neurons, all dimensions, 8 x 1024 tokens); one GPU a trial.

    Args:
        pretrained: the model, a folder or a name on the hub.
    """
    fixed = {
        "corpus": {"sources": [GITHUB_CODE], "domains": ["Python"], "domain_bytes": 100_000_000},
        "base": {"pretrained": pretrained},
        "kept_domain": "Python",
        "ablation_windows": 8,
        "ablation_length": 1024,
        "units_per_step": 256,
    }
    first = _first_trials(8, 1024)
    return _space(fixed, windows=(1, 1024), lengths=(128, 512, 1024), num_trials=60, first_trials=first, num_gpus=1)


def _space(
    fixed: dict[str, Any],
    *,
    windows: tuple[int, int],
    lengths: Sequence[int],
    num_trials: int,
    first_trials: tuple[dict[str, Any], ...] = (),
    num_gpus: float = 0,
) -> StudySpace:
    def suggest(trial: "optuna.Trial") -> dict[str, Any]:
        config = fixed | {"ablation_split": "evaluation", "score": trial.suggest_categorical("score", list(_SCORES))}
        if config["score"] == "weight_norm":  # reads nothing
            return config
        is_by_batch = config["score"] in _BY_BATCH
        return config | {
            "batch_size": trial.suggest_categorical("batch_size", [1, 2, 8]) if is_by_batch else 1,
            "score_windows": trial.suggest_int("score_windows", *windows, log=True),
            "score_length": trial.suggest_categorical("score_length", list(lengths)),
        }

    return StudySpace(
        experiment="llm_attribution",
        suggest=suggest,
        objectives=_OBJECTIVES,
        log_scale=("score_tokens",),
        color_by="score",
        first_trials=first_trials,
        num_trials=num_trials,
        num_gpus=num_gpus,
    )


def _first_trials(windows: int, length: int) -> tuple[dict[str, Any], ...]:
    """Each score once on as much text as the paper's, in one batch."""
    read = {"score_windows": windows, "score_length": length}
    one_batch = {name: {"batch_size": 8} for name in _BY_BATCH}
    texts = {name: {} if name == "weight_norm" else read for name in _SCORES}
    return tuple({"score": name} | texts[name] | one_batch.get(name, {}) for name in _SCORES)
