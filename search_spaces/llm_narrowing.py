"""From a broad language model to a small one for Python: which way, how sparse, how long, on how broad a mixture?

The base model and the corpus are made once a study, by the trial that needs them first. `--set pretrained=FOLDER` takes a
model of transformers, a .gguf file or a name on the hub in the embedded model's place.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces.space import StudySpace

if TYPE_CHECKING:
    import optuna

_OBJECTIVES = ("kept_loss_nats", "parameters_kept", "tokens_spent")
_LOG_SCALE = ("parameters_kept", "tokens_spent")
_METHODS = ("group_lasso", "attribution", "weight_norm", "random", "distillation", "from_scratch")
_SCORES = ("attribution", "sample_activation_attribution")
_STUDENTS = ("distillation", "from_scratch")
LLAMA = "NousResearch/Llama-3.2-1B"
"""The paper's model, on the hub."""
GITHUB_CODE = {"kind": "hub", "where": "codeparrot/github-code", "text_column": "code", "domain_column": "language"}
"""The paper's text."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Scale:
    """What differs between a laptop and a cluster.

    Attributes:
        fixed: fields of the config that are not searched.
        training: fields of every training that are not searched.
        updates, lasso_updates, rates, lasso_rates, student_rates, student_warmups: ranges, all on a log scale.
        strengths: of the group lasso, by its way.
        others: the domains beside the kept one.
        pretraining: shares of the other domains in pretraining, for a base model that the study trains itself.
    """

    fixed: dict[str, Any]
    training: dict[str, Any]
    updates: tuple[int, int]
    lasso_updates: tuple[int, int]
    rates: tuple[float, float] = (3e-4, 1e-2)
    lasso_rates: tuple[float, float] = (3e-4, 1e-2)
    student_rates: tuple[float, float] = (3e-4, 1e-2)
    warmup: int = 4
    student_warmups: tuple[int, int] = (1, 40)
    strengths: dict[str, tuple[float, float]] = dataclasses.field(
        default_factory=lambda: {"subgradient": (1e-4, 1e-2), "proximal": (3.0, 100.0)}
    )
    others: tuple[str, ...] = ("cpp", "prose")
    pretraining: tuple[float, ...] = ()


def tiny() -> StudySpace:
    """A model that hardly learns: a trial takes a second, for tests and a first look."""
    short = {"batch_size": 4, "length": 32}
    shape = {"width": 16, "num_layers": 2, "mlp_width": 32, "num_heads": 2}
    fixed = {
        "corpus": {"domains": ["python", "prose"], "domain_bytes": 60_000, "vocabulary": 300},
        "base": {**shape, "weights": _weights(0.5, ("prose",)), "training": {"updates": 10, "warmup": 2, **short}},
        "relearning": {"updates": 2, "warmup": 0, **short},
        "window_length": 32,
        "score_windows": 4,
        "evaluation_windows": 4,
        "updates_per_step": 4,
    }
    return _space(_Scale(fixed=fixed, training=short, updates=(4, 8), lasso_updates=(4, 8), others=("prose",)), num_trials=6)


def cpu(pretrained: str = "") -> StudySpace:
    """A Llama of 0.3 million parameters, trained on the installed packages: minutes on two cores, pretraining included.

    Args:
        pretrained: another model, to be narrowed on the same texts; of hundreds of millions of parameters, a trial takes
            minutes.
    """
    if pretrained:
        return _space(_pretrained_on_cpu(pretrained), num_trials=8)
    fixed = {
        "corpus": {"vocabulary": 512},
        "base": {"training": {"updates": 600, "learning_rate": 4e-3, "warmup": 50}},
        "relearning": {"updates": 20},
        "score_windows": 32,
        "evaluation_windows": 48,
        "updates_per_step": 20,
        "target_loss_nats": 3.4,
    }
    scale = _Scale(fixed=fixed, training={}, updates=(20, 200), lasso_updates=(20, 200), pretraining=(0.5, 0.0))
    shared = {"neuron_sparsity": 0.8, "residual_sparsity": 0.0, "recovery_updates": 100, "learning_rate": 2e-3}
    own = {"lasso_updates": 60, "lasso_learning_rate": 1e-3, "subgradient_strength": 1e-3, "warmup": 20}
    return _space(scale, num_trials=24, first_trials=_first_trials(scale, shared, own))


def paper(pretrained: str = LLAMA) -> StudySpace:
    """The paper's model, text, sizes and lengths (Figs 5, 6, 12 and 13), the sweep the same for all methods; one GPU a trial.

    Args:
        pretrained: the base model.
    """
    training = {"batch_size": 64, "micro_batch_size": 8, "length": 1024}
    fixed = {
        "corpus": {"sources": [GITHUB_CODE], "domains": ["Python", "C++", "Markdown"], "domain_bytes": 1_000_000_000},
        "base": {"pretrained": pretrained},
        "kept_domain": "Python",
        "relearning": {"updates": 200, "warmup": 20, **training},
        "relearning_rates": [1e-6, 5e-6, 1e-5, 5e-5, 1e-4],
        "window_length": 1024,
        "score_windows": 1024,
        "evaluation_windows": 256,
        "updates_per_step": 250,
        "target_loss_nats": 1.7,
    }
    scale = _Scale(
        fixed=fixed,
        training=training,
        updates=(1000, 20_000),
        lasso_updates=(10_000, 70_000),
        rates=(1e-5, 5e-4),
        lasso_rates=(1e-6, 1e-4),
        student_rates=(1e-4, 1e-3),
        warmup=1000,
        student_warmups=(1000, 10_000),
        strengths={"subgradient": (1e-4, 1e-3), "proximal": (0.1, 10.0)},
        others=("C++", "Markdown"),
    )
    own = {"lasso_updates": 70_000, "lasso_learning_rate": 2e-6, "subgradient_strength": 5e-4, "warmup": 10_000}
    first: list[dict[str, Any]] = []
    for neuron_sparsity, residual_sparsity in ((0.5, 0.2), (0.8, 0.5), (0.9, 0.5)):
        sizes = {"neuron_sparsity": neuron_sparsity, "residual_sparsity": residual_sparsity}
        first += _first_trials(scale, {**sizes, "recovery_updates": 20_000, "learning_rate": 5e-5}, own, student_rate=5e-4)
    return _space(scale, num_trials=120, first_trials=first, num_gpus=1.0)


def _pretrained_on_cpu(pretrained: str) -> _Scale:
    """Short sequences and few updates, for a model that is large for two cores."""
    path = Path(pretrained)
    training = {"batch_size": 2, "length": 256}
    fixed = {
        "corpus": {"domain_bytes": 500_000},
        "base": {"pretrained": str(path.absolute()) if path.exists() else pretrained},
        "relearning": {"updates": 2, "warmup": 0, **training},
        "relearning_rates": [1e-5],
        "window_length": 256,
        "score_windows": 8,
        "evaluation_windows": 8,
        "updates_per_step": 5,
    }
    rates = (1e-5, 3e-4)
    return _Scale(
        fixed=fixed, training=training, updates=(5, 20), lasso_updates=(5, 20), rates=rates, lasso_rates=rates, warmup=2
    )


def _space(
    scale: _Scale, *, num_trials: int, first_trials: list[dict[str, Any]] | None = None, num_gpus: float = 0.0
) -> StudySpace:
    def suggest(trial: "optuna.Trial") -> dict[str, Any]:
        method = trial.suggest_categorical("method", _METHODS)
        return {
            **scale.fixed,
            **_suggest_base(trial, method, scale),
            "method": method,
            "neuron_sparsity": trial.suggest_float("neuron_sparsity", 0.3, 0.95),
            "residual_sparsity": trial.suggest_float("residual_sparsity", 0.0, 0.6),
            **_suggest_mixture(trial, method, scale),
            **_suggest_own(trial, method, scale),
            "recovery": _suggest_recovery(trial, method, scale),
        }

    return StudySpace(
        experiment="llm_narrowing",
        suggest=suggest,
        objectives=_OBJECTIVES,
        log_scale=_LOG_SCALE,
        color_by="method",
        first_trials=tuple(first_trials or ()),
        num_trials=num_trials,
        num_gpus=num_gpus,
    )


def _suggest_base(trial: "optuna.Trial", method: str, scale: _Scale) -> dict[str, Any]:
    """Draw how broad pretraining was, where the study trains the base model and the method uses it."""
    if not scale.pretraining:
        return {}
    is_used = method != "from_scratch"
    share = trial.suggest_categorical("pretraining_breadth", scale.pretraining) if is_used else scale.pretraining[0]
    return {"base": {**scale.fixed["base"], "weights": _weights(share, scale.others)}}


def _suggest_mixture(trial: "optuna.Trial", method: str, scale: _Scale) -> dict[str, Any]:
    """Draw which other domains lasso and recovery read, and how much of them."""
    names = ["alone", *(f"with_{domain}" for domain in scale.others), *(["with_all"] if len(scale.others) > 1 else [])]
    mixture = trial.suggest_categorical("mixture", names)
    if mixture == "alone":
        return {}
    weights = {domain: 1.0 for domain in scale.others if mixture in ("with_all", f"with_{domain}")}
    lasso = {"lasso_breadth": trial.suggest_float("lasso_breadth", 0.0, 0.5)} if method == "group_lasso" else {}
    return {"other_weights": weights, "breadth": trial.suggest_float("breadth", 0.0, 0.5), **lasso}


def _suggest_recovery(trial: "optuna.Trial", method: str, scale: _Scale) -> dict[str, Any]:
    is_student = method in _STUDENTS
    rates = scale.student_rates if is_student else scale.rates
    return {
        **scale.training,
        "updates": trial.suggest_int("recovery_updates", *scale.updates, log=True),
        "learning_rate": trial.suggest_float("student_learning_rate" if is_student else "learning_rate", *rates, log=True),
        "warmup": trial.suggest_int("warmup", *scale.student_warmups, log=True) if is_student else scale.warmup,
    }


def _suggest_own(trial: "optuna.Trial", method: str, scale: _Scale) -> dict[str, Any]:
    """Draw what only this method has."""
    if method == "group_lasso":
        way = trial.suggest_categorical("lasso_way", list(scale.strengths))
        lasso = {
            **scale.training,
            "updates": trial.suggest_int("lasso_updates", *scale.lasso_updates, log=True),
            "learning_rate": trial.suggest_float("lasso_learning_rate", *scale.lasso_rates, log=True),
            "warmup": scale.warmup,
        }
        strength = trial.suggest_float(f"{way}_strength", *scale.strengths[way], log=True)
        interval = max(10, scale.lasso_updates[1] // 20)
        adjusts = trial.suggest_categorical("lasso_adjusts", [False, True])
        rule = {"lasso_rule": {"interval": interval, "warmup": interval}} if adjusts else {}
        return {"lasso_way": way, "lasso_strength": strength, "lasso": lasso, **rule}
    if method == "from_scratch":
        return {}
    if method == "distillation":
        return {"teacher_share": trial.suggest_float("teacher_share", 0.1, 0.9)}
    # above 0, a hybrid of pruning and distillation
    share = trial.suggest_float("recovery_teacher_share", 0.0, 0.9)
    own = {"per_layer": trial.suggest_categorical("per_layer", [False, True]), "teacher_share": share}
    return own | ({"attribution_score": trial.suggest_categorical("score", _SCORES)} if method == "attribution" else {})


def _weights(breadth: float, others: tuple[str, ...]) -> dict[str, float]:
    """A mixture of Python and, to equal parts, others."""
    return {"python": 1 - breadth, **dict.fromkeys(others, breadth / len(others))}


def _first_trials(
    scale: _Scale, shared: dict[str, Any], own: dict[str, Any], *, student_rate: float | None = None
) -> list[dict[str, Any]]:
    """Each way once at one size, on the kept domain alone."""
    lasso = ("lasso_updates", "lasso_learning_rate", "subgradient_strength")
    trials = []
    for method in _METHODS:
        trial = {"method": method, "mixture": "alone", **shared}
        if scale.pretraining and method != "from_scratch":
            trial["pretraining_breadth"] = scale.pretraining[0]
        if method in _STUDENTS:
            trial |= {"student_learning_rate": student_rate or trial["learning_rate"], "warmup": own["warmup"]}
            del trial["learning_rate"]
        if method == "distillation":
            trial["teacher_share"] = 0.5
        elif method == "group_lasso":
            trial |= {"lasso_way": "subgradient", "lasso_adjusts": False, **{name: own[name] for name in lasso}}
        elif method not in _STUDENTS:
            trial |= {"per_layer": False, "recovery_teacher_share": 0.0}
        if method == "attribution":
            trial["score"] = _SCORES[0]
        trials.append(trial)
    return trials
