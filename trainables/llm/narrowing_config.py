"""What one trial of the language-model narrowing experiment prunes or trains, and on what (arXiv:2505.15811, section 4)."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from trainables.laws import require
from trainables.llm.base import BaseConfig
from trainables.llm.corpus_documents import CorpusConfig
from trainables.llm.training import Training
from trainables.pruning.strength import StrengthRule

Method = Literal["group_lasso", "attribution", "weight_norm", "random", "distillation", "from_scratch"]
METHODS: tuple[Method, ...] = ("group_lasso", "attribution", "weight_norm", "random", "distillation", "from_scratch")
PRUNING = ("group_lasso", "attribution", "weight_norm", "random")
"""Methods that cut the base model; the others train a small one of the same shape."""
ATTRIBUTIONS = ("attribution", "sample_activation_attribution")
LASSO_WAYS = ("subgradient", "proximal")
Stage = Literal["lasso", "recovery", "relearning"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class NarrowingConfig:
    """One way from a broad language model to a small one that keeps one domain."""

    corpus: CorpusConfig = dataclasses.field(default_factory=CorpusConfig)
    """The documents. Paper: github-code, Python only."""
    base: BaseConfig = dataclasses.field(default_factory=BaseConfig)
    """The broad model. Paper: Llama-3.2-1B."""
    base_seed: int = 0
    """Of the base model: all trials of a study share it."""
    kept_domain: str = "python"
    """What the narrow model is to know. Paper: Python."""
    method: Method = "attribution"
    """How it becomes narrow: a name of METHODS. Paper: all but weight_norm."""
    neuron_sparsity: float = 0.8
    """Share of the MLP neurons that go, [0, 1). Paper: 0.5..0.95."""
    residual_sparsity: float = 0.0
    """Share of the residual dimensions that go, [0, 1), down to a multiple of the heads. Paper: 0.2..0.9."""
    per_layer: bool = False
    """Whether neurons are ranked within each layer, so that all layers keep as many. Paper: all layers together."""
    window_length: int = 128
    """Tokens of each window that scores and losses read, >= 1. Paper: 1024, and 512 for lasso and Fig 5."""
    attribution_score: Literal["attribution", "sample_activation_attribution"] = "attribution"
    """What attribution ranks units by: the second agrees better with ablation on other text. Paper's text: the first."""
    score_windows: int = 64
    """Windows of the kept domain's attribution split that scores read. Paper: 1024 documents."""
    lasso_way: Literal["subgradient", "proximal"] = "subgradient"
    """How the group lasso acts. Paper: its subgradient."""
    lasso_strength: float = 1e-3
    """Weight of the group lasso on neurons in the loss, > 0. Paper: 1e-4..1e-3."""
    lasso_rule: StrengthRule | None = None
    """How lasso_strength adjusts itself to the loss; None: not at all. Paper: tried, not in what is published."""
    lasso: Training = dataclasses.field(default_factory=Training)
    """Training under the lasso, before pruning. Paper: 70000 updates."""
    recovery: Training = dataclasses.field(default_factory=Training)
    """Training after pruning, or of a small model from its start. Paper: 20000 updates, and 100000 from the start."""
    lasso_breadth: float = 0.0
    """Share of the other domains in the sequences of the lasso, [0, 1). Paper: 0."""
    breadth: float = 0.0
    """Share of the other domains in the sequences of recovery, [0, 1). Paper: 0."""
    other_weights: dict[str, float] = dataclasses.field(default_factory=dict)
    """How much of the other domains' share each has, by name, >= 0; empty: all the same."""
    teacher_share: float | None = None
    """Share of the base model's answers in what is learned, [0, 1]; None: 0.5 in distillation, else 0. Not used from scratch."""
    temperature: float = 2.0
    """Of the base model's answers, > 0. Paper: 2."""
    target_loss_nats: float = 3.0
    """Held-out loss on the kept domain that counts as reached, > 0. Paper: 1.7, of training."""
    relearning: Training = dataclasses.field(default_factory=lambda: Training(updates=50))
    """Training on the other domains in the end, to see how fast they come back. Paper: fine-tuning on benchmarks."""
    relearning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    """Learning rates of which relearning takes the best, the same for every method. Paper: five, not for all."""
    evaluation_windows: int = 64
    """Windows of each domain that losses are measured on. Paper: 2048 documents."""
    seed: int = 0
    """Of everything but the base model."""
    updates_per_step: int = 50
    """Updates between two reports, >= 1."""

    def __post_init__(self) -> None:
        made: dict[str, Any] = {"corpus": CorpusConfig, "base": BaseConfig, "lasso": Training, "recovery": Training}
        for name, kind in (made | {"relearning": Training}).items():
            if not isinstance(getattr(self, name), kind):  # JSON makes dicts of them
                object.__setattr__(self, name, kind(**getattr(self, name)))
        object.__setattr__(self, "relearning_rates", tuple(self.relearning_rates))
        if isinstance(self.lasso_rule, Mapping):
            object.__setattr__(self, "lasso_rule", StrengthRule(**self.lasso_rule))
        for name in ("neuron_sparsity", "residual_sparsity", "lasso_breadth", "breadth"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{name} must be in [0, 1)", value, "use 0.8 for four in five")
        share = self.teacher_share
        require(share is None or 0 <= share <= 1, "teacher_share must be in [0, 1], or none", share, "use 0.5")
        for name in ("lasso_strength", "temperature", "target_loss_nats"):
            require(0 < getattr(self, name) < math.inf, f"{name} must be positive", getattr(self, name), "see the paper's value")
        for name in ("window_length", "score_windows", "evaluation_windows", "updates_per_step"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1", getattr(self, name), "use 1 or more")
        require(self.method in METHODS, f"method must be one of {', '.join(METHODS)}", repr(self.method), "use attribution")
        law = f"attribution_score must be one of {', '.join(ATTRIBUTIONS)}"
        require(self.attribution_score in ATTRIBUTIONS, law, repr(self.attribution_score), "use attribution")
        law = f"lasso_way must be one of {', '.join(LASSO_WAYS)}"
        require(self.lasso_way in LASSO_WAYS, law, repr(self.lasso_way), "use subgradient")
        are_rates = all(0 < rate < math.inf for rate in self.relearning_rates)
        law = "relearning_rates must be positive and finite, at least one"
        require(bool(self.relearning_rates) and are_rates, law, self.relearning_rates, "use (1e-3,)")
        self._check_domains()

    def _check_domains(self) -> None:
        known = self.corpus.named_domains
        law = "kept_domain must be a domain of the corpus"
        require(not known or self.kept_domain in known, law, repr(self.kept_domain), f"use one of {', '.join(sorted(known))}")
        law = "a corpus must have a domain beside the kept one"
        require(not known or len(known) > 1, law, sorted(known), "name another, to see what is left of it")
        base_weights = {} if self.base.pretrained else self.base.weights
        for what, weights in (("the base's weights", base_weights), ("other_weights", self.other_weights)):
            unknown = sorted(set(weights) - known) if known else []
            require(not unknown, f"{what} must be of domains of the corpus", unknown, f"use {', '.join(sorted(known))}")
        law = "other_weights must be at least 0 and finite, one of them above 0, and none the kept domain's"
        weights = self.other_weights
        are_weights = all(0 <= weight < math.inf for weight in weights.values()) and (not weights or sum(weights.values()) > 0)
        require(are_weights and self.kept_domain not in weights, law, weights, "use shares, such as 0.5, or none")

    @property
    def prunes(self) -> bool:
        return self.method in PRUNING

    @property
    def teacher_weight(self) -> float:
        """Share of the base model's answers: none from scratch."""
        if self.method == "from_scratch":
            return 0.0
        by_default = 0.5 if self.method == "distillation" else 0.0
        return by_default if self.teacher_share is None else self.teacher_share

    @property
    def trainings(self) -> dict[Stage, Training]:
        """The stages that this method goes through, in their order."""
        lasso: dict[Stage, Training] = {"lasso": self.lasso} if self.method == "group_lasso" else {}
        return {**lasso, "recovery": self.recovery, "relearning": self.relearning}

    def relearning_at(self, learning_rate: float) -> Training:
        """Relearning at one of its learning rates."""
        return dataclasses.replace(self.relearning, learning_rate=learning_rate)

    @classmethod
    def tiny(cls) -> Self:
        """A second or two: a model of two small blocks that hardly learns."""
        short = Training(updates=4, batch_size=4, length=32, warmup=1)
        weights = {"python": 0.5, "prose": 0.5}
        return cls(
            corpus=CorpusConfig(domains=("python", "prose"), domain_bytes=60_000, vocabulary=300),
            base=BaseConfig(width=16, num_layers=2, mlp_width=32, num_heads=2, weights=weights, training=short),
            neuron_sparsity=0.5, residual_sparsity=0.25, score_windows=4, lasso=short, recovery=short,
            relearning=Training(updates=2, batch_size=4, length=32, warmup=0), relearning_rates=(1e-3, 3e-3),
            window_length=32, evaluation_windows=4, updates_per_step=2, target_loss_nats=5.6,
        )  # fmt: skip
