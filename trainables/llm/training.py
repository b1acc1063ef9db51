"""Training a causal language model: AdamW under a schedule, with what narrowing adds: a penalty, a proximal step, a teacher.

Axes: B sequences, T tokens, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.experiment import DivergedError
from trainables.laws import require
from trainables.llm.corpus_stream import Stream

_BETAS = (0.9, 0.95)
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

    def __post_init__(self) -> None:
        for name, least in (("updates", 0), ("batch_size", 1), ("length", 1), ("warmup", 0)):
            require(getattr(self, name) >= least, f"{name} must be at least {least}", getattr(self, name), f"use {least} or more")
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


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Teacher:
    """Whose answers a student also learns: loss = alpha CE + (1 - alpha) T^2 KL(teacher || student).

    Source: arXiv:2505.15811, Fig 6 (alpha 0.5, T 2); Hinton, Vinyals and Dean 2015.
    """

    model: nn.Module
    alpha: float
    temperature: float


class Trainer:
    """Makes updates of one model.

    Args:
        add_penalty: adds a penalty's gradient to the gradients, in place.
        after_update: what follows each update, such as a proximal step; its argument is the learning rate.

    Attributes:
        update: how many are made.
        last_loss_nats: of the last one, on the tokens that it learned from, without penalty and teacher.
    """

    def __init__(
        self,
        model: nn.Module,
        stream: Stream,
        training: Training,
        *,
        teacher: Teacher | None = None,
        add_penalty: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], None] | None = None,
        after_update: Callable[[Mapping[str, Tensor], float], None] | None = None,
    ) -> None:
        self._model, self._stream, self._training, self._teacher = model, stream, training, teacher
        self._add_penalty, self._after_update = add_penalty, after_update
        self._parameters = dict(model.named_parameters())
        self._device = next(iter(self._parameters.values())).device
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(), lr=training.learning_rate, betas=_BETAS, weight_decay=training.weight_decay, fused=True
        )
        self.update = 0
        self.last_loss_nats = math.nan

    def run(self, num_updates: int) -> None:
        """Make some updates.

        Raises:
            DivergedError: if the loss is not finite.
        """
        self._model.train()
        for _ in range(num_updates):
            self._make_update(self._stream.batch(self.update).to(self._device))
            self.update += 1
        self._model.eval()
        if num_updates and not math.isfinite(self.last_loss_nats):
            raise DivergedError(f"the loss must be finite, but is {self.last_loss_nats} at learning rate "
                                f"{self._training.learning_rate}; lower it")  # fmt: skip

    def _make_update(self, token_BT: Tensor) -> None:
        rate = self._training.rate(self.update)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        loss = self._loss(token_BT)
        gradients = torch.autograd.grad(loss, list(self._parameters.values()))
        named = dict(zip(self._parameters, gradients, strict=True))
        if self._add_penalty is not None:
            self._add_penalty(self._parameters, named)
        for name, parameter in self._parameters.items():
            parameter.grad = named[name]
        nn.utils.clip_grad_norm_(self._parameters.values(), self._training.clip_norm)
        self._optimizer.step()
        if self._after_update is not None:
            self._after_update(self._parameters, rate)

    def _loss(self, token_BT: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=self._device.type == "cuda"):
            logits_BTV = next_token_logits(self._model, token_BT)
            teacher_BTV = None
            if self._teacher is not None:
                with torch.no_grad():
                    teacher_BTV = next_token_logits(self._teacher.model, token_BT)
        loss = functional.cross_entropy(logits_BTV.flatten(0, 1).float(), token_BT[:, 1:].flatten())
        self.last_loss_nats = float(loss.detach())
        if self._teacher is None or teacher_BTV is None:
            return loss
        soft = _divergence(logits_BTV, teacher_BTV, self._teacher.temperature)
        return self._teacher.alpha * loss + (1 - self._teacher.alpha) * self._teacher.temperature**2 * soft

    def state_dict(self) -> dict[str, Any]:
        """What going on needs beside the model's parameters."""
        return {"update": self.update, "optimizer": self._optimizer.state_dict(), "last_loss_nats": self.last_loss_nats}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.update, self.last_loss_nats = state["update"], state["last_loss_nats"]
        self._optimizer.load_state_dict(state["optimizer"])


def next_token_logits(model: nn.Module, token_BT: Tensor) -> Tensor:
    """What a model says of each token but the first: logits_BTV."""
    logits_BTV: Tensor = model(token_BT[:, :-1], use_cache=False).logits
    return logits_BTV


def _divergence(student_BTV: Tensor, teacher_BTV: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of softened answers, mean over tokens, nats."""
    student, teacher = ((logits.float() / temperature).log_softmax(-1).flatten(0, 1) for logits in (student_BTV, teacher_BTV))
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True)


@torch.no_grad()
def mean_loss_nats(model: nn.Module, window_WT: Tensor, *, batch_size: int) -> float:
    """Mean next-token cross-entropy over windows, in nats.

    Raises:
        DivergedError: if it is not finite.
    """
    device = next(model.parameters()).device
    total = 0.0
    for token_BT in torch.split(window_WT, batch_size):
        with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
            logits_BTV = next_token_logits(model, token_BT.to(device))
        target = token_BT[:, 1:].flatten().to(device)
        total += float(functional.cross_entropy(logits_BTV.flatten(0, 1).float(), target, reduction="sum"))
    mean = total / (window_WT.shape[0] * (window_WT.shape[1] - 1))
    if not math.isfinite(mean):
        raise DivergedError(f"losses must be finite, but got {mean} nats; lower the learning rate")
    return mean
