"""How long and how fast a language model is trained."""

import dataclasses
import math

from trainables.laws import require

_LAST_SHARE = 0.1  # of the learning rate, at the end of the cosine


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """How long and how fast a model is trained. Defaults: for a model of less than a million parameters."""

    updates: int = 200
    """Of AdamW, >= 0. Paper: 20000 in recovery."""
    batch_size: int = 16
    """Sequences an update, >= 1. Paper: 64."""
    length: int = 128
    """Tokens that each sequence asks for, >= 1. Paper: 1024, padded."""
    learning_rate: float = 1e-3
    """At its highest, > 0; a cosine takes it to a tenth. Paper: 5e-5 in recovery, 5e-4 from scratch."""
    warmup: int = 10
    """Updates of linear rise, >= 0. Paper: 1000 in recovery."""
    weight_decay: float = 0.0
    """Decoupled, >= 0. Paper: 0 in recovery, 0.01 from scratch."""
    clip_norm: float = 1.0
    """Of the gradient, > 0; inf for no clipping. Paper: the trainer's 1.0."""
    micro_batch_size: int | None = None
    """Sequences of one pass, >= 1, for a smaller memory; None: all that a process has of a batch at once."""
    compile: bool = False
    """Whether `torch.compile` makes the model's passes faster, after a minute or so; it needs a C++ compiler."""

    def __post_init__(self) -> None:
        for name, least in (("updates", 0), ("batch_size", 1), ("length", 1), ("warmup", 0)):
            require(getattr(self, name) >= least, f"{name} must be at least {least}", getattr(self, name), f"use {least} or more")
        size = self.micro_batch_size
        require(size is None or size >= 1, "micro_batch_size must be at least 1, or none", size, "use a part of batch_size")
        law = "learning_rate must be positive and finite"
        require(0 < self.learning_rate < math.inf, law, self.learning_rate, "use 1e-3")
        require(0 <= self.weight_decay < math.inf, "weight_decay must be at least 0", self.weight_decay, "use 0")
        require(self.clip_norm > 0, "clip_norm must be positive", self.clip_norm, "use 1.0")

    @property
    def tokens(self) -> int:
        """Tokens that all updates ask for."""
        return self.updates * self.batch_size * self.length

    def rate(self, update: int) -> float:
        """The learning rate of an update: a linear rise, then a cosine."""
        if update < self.warmup:
            return self.learning_rate * (update + 1) / self.warmup
        share = (update - self.warmup) / max(1, self.updates - self.warmup)
        return self.learning_rate * (_LAST_SHARE + (1 - _LAST_SHARE) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))
