"""Which score one trial of the attribution experiment holds against ablation, and on what (arXiv:2505.15811, Fig 11)."""

import dataclasses
from typing import Any, Literal, Self

from trainables.laws import require
from trainables.llm.base import BaseConfig
from trainables.llm.corpus_documents import SPLITS, CorpusConfig
from trainables.llm.training import Training
from trainables.pruning.scores import SCORES

REFERENCE = "ablation"
BLIND = ("weight_norm", "random")
"""Scores that read no text."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AttributionConfig:
    """One score, the text that it reads, and the units that are ablated to see what it is worth."""

    corpus: CorpusConfig = dataclasses.field(default_factory=CorpusConfig)
    """The documents. Paper: github-code, Python only."""
    base: BaseConfig = dataclasses.field(default_factory=BaseConfig)
    """The model. Paper: Llama-3.2-1B."""
    base_seed: int = 0
    """Of the model: all trials of a study share it."""
    kept_domain: str = "python"
    """On which units are scored and ablated. Paper: Python."""
    score: str = "attribution"
    """A name of SCORES but ablation, of which the trial is. Paper: attribution in its text."""
    beside: tuple[str, ...] = ("attribution", "abs_gradient_attribution")
    """Other scores that are told of, on the same batches. Paper: its code prunes by abs_gradient_attribution (Figs 6, 12, 13)."""
    score_windows: int = 8
    """Windows of the attribution split that the score reads, at most: whole batches of those that there are. Paper: 8."""
    score_length: int = 128
    """Tokens that each asks for, >= 1. Paper: 1024, padded."""
    batch_size: int = 8
    """Windows between two absolute values, for scores that take one a batch, >= 1. Paper: 8."""
    ablation_windows: int = 8
    """Windows that ablations are measured on, at most; all there are if fewer. Paper: 8."""
    ablation_length: int = 128
    """Tokens that each asks for, >= 1. Paper: 1024, padded."""
    ablation_split: Literal["attribution", "training", "evaluation"] = "attribution"
    """Of the kept domain. Paper: attribution, the score's own windows; evaluation asks what holds of other text, too."""
    num_neurons: int = 500
    """MLP neurons that are ablated, drawn from all layers, >= 3; all there are if fewer. Paper: 500."""
    num_dimensions: int = 2048
    """Residual dimensions that are ablated, >= 3; all there are if fewer. Paper: 2048, all."""
    seed: int = 0
    """Draws the units, and the score that is random."""
    units_per_step: int = 64
    """Units that are ablated between two reports, >= 1."""

    def __post_init__(self) -> None:
        made: dict[str, Any] = {"corpus": CorpusConfig, "base": BaseConfig}
        for name, kind in made.items():
            if not isinstance(getattr(self, name), kind):  # JSON makes dicts of them
                object.__setattr__(self, name, kind(**getattr(self, name)))
        object.__setattr__(self, "beside", tuple(self.beside))  # JSON makes lists of tuples
        known = sorted(set(SCORES) - {REFERENCE})
        for name in self.scores:
            require(name in known, f"scores must be of {', '.join(known)}", repr(name), "use attribution")
        law = f"ablation_split must be one of {', '.join(SPLITS)}"
        require(self.ablation_split in SPLITS, law, repr(self.ablation_split), "use attribution")
        counts = ("score_windows", "score_length", "batch_size", "ablation_windows", "ablation_length", "units_per_step")
        for name in counts:
            require(getattr(self, name) >= 1, f"{name} must be at least 1", getattr(self, name), "use 1 or more")
        for name in ("num_neurons", "num_dimensions"):
            law = f"{name} must be at least 3, for fewer units have no correlation"
            require(getattr(self, name) >= 3, law, getattr(self, name), "use 100 or more")
        self._check_domains()

    def _check_domains(self) -> None:
        known = self.corpus.named_domains
        law = "kept_domain must be a domain of the corpus"
        require(not known or self.kept_domain in known, law, repr(self.kept_domain), f"use one of {', '.join(sorted(known))}")
        weights = {} if self.base.pretrained else self.base.weights
        unknown = sorted(set(weights) - known) if known else []
        law = "the base's weights must be of domains of the corpus"
        require(not unknown, law, unknown, f"use {', '.join(sorted(known))}")

    @property
    def scores(self) -> tuple[str, ...]:
        """The trial's own score, then the others; each once."""
        return tuple(dict.fromkeys((self.score, *self.beside)))

    @classmethod
    def tiny(cls) -> Self:
        """A second: a model of two small blocks that hardly learns."""
        training = Training(updates=4, batch_size=4, length=32, warmup=1)
        weights = {"python": 0.5, "prose": 0.5}
        return cls(
            corpus=CorpusConfig(domains=("python", "prose"), domain_bytes=60_000, vocabulary=300),
            base=BaseConfig(width=16, num_layers=2, mlp_width=32, num_heads=2, weights=weights, training=training),
            score="activation_attribution", score_windows=4, score_length=32, batch_size=2,
            ablation_windows=2, ablation_length=32, num_neurons=20, num_dimensions=16, units_per_step=16,
        )  # fmt: skip
