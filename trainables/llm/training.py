"""Training a causal language model: AdamW under a schedule, with what narrowing adds: a penalty, a proximal step, a teacher.

Axes: B sequences, T tokens, V vocabulary.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainables.experiment import DivergedError
from trainables.llm.corpus_stream import Stream
from trainables.llm.loss_head import Speaker
from trainables.llm.losses import Teacher, TextLoss, text_nats
from trainables.llm.training_compiler import compiled, errors_told
from trainables.llm.training_config import Training
from trainables.llm.training_ranks import averaged, mean_of_ranks, num_ranks, own_rows, pausing, rank, require_rows
from trainables.randomness import stream_key

__all__ = ["Teacher", "Trainer", "Training", "mean_loss_nats"]

_BETAS = (0.9, 0.95)


class Trainer:
    """Makes updates of one model; where `torch.distributed` has several ranks, of one model together.

    Each rank must make the same trainer with the same stream, and the same calls. It takes every n-th row of a batch, and
    gradients are averaged, so that an update is that of one process, to rounding; `last_loss_nats` is of all rows.

    Args:
        add_penalty: adds a penalty's gradient to the gradients, in place.
        after_update: what follows each update, such as a proximal step; its argument is the learning rate.

    Attributes:
        update: how many are made.
        last_loss_nats: of the last one, on the tokens that it learned from, without penalty and teacher.

    Raises:
        ValueError: if the ranks cannot share a batch equally.
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
        require_rows(training.batch_size)
        self._model, self._stream, self._training = model, stream, training
        self._add_penalty, self._after_update = add_penalty, after_update
        self._parameters = dict(model.named_parameters())
        self._device = next(iter(self._parameters.values())).device
        num_rows = training.batch_size // num_ranks()
        self._rows_at_once = min(num_rows, training.micro_batch_size or num_rows)
        run = compiled if training.compile else None
        loss = TextLoss(model, teacher, num_tokens=self._rows_at_once * training.length, run=run)
        self._loss = averaged(loss, self._device)
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(), lr=training.learning_rate, betas=_BETAS, weight_decay=training.weight_decay, fused=True
        )
        self.update = 0
        self.last_loss_nats = math.nan

    def run(self, num_updates: int) -> None:
        """Make some updates.

        Raises:
            DivergedError: if the loss is not finite.
            ValueError: if the model is to be compiled and cannot be, or a teacher has another vocabulary.
        """
        if num_updates == 0:
            return
        loss_nats = torch.tensor(math.nan)
        self._model.train()
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            for _ in range(num_updates):
                torch.manual_seed(stream_key("dropout", self.update, rank()))
                loss_nats = self._make_update(self._stream.batch(self.update))
                self.update += 1
        self._model.eval()
        self.last_loss_nats = mean_of_ranks(loss_nats)
        if not math.isfinite(self.last_loss_nats):
            raise DivergedError(f"the loss must be finite, but is {self.last_loss_nats} at learning rate "
                                f"{self._training.learning_rate}; lower it")  # fmt: skip

    def _make_update(self, token_BT: Tensor) -> Tensor:
        """Make one, and return the loss on the rank's part of the text."""
        rate = self._training.rate(self.update)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        loss_nats = self._find_gradients(own_rows(token_BT).to(self._device))
        if self._add_penalty is not None:
            gradients = {name: parameter.grad for name, parameter in self._parameters.items() if parameter.grad is not None}
            self._add_penalty(self._parameters, gradients)
        nn.utils.clip_grad_norm_(self._parameters.values(), self._training.clip_norm)
        self._optimizer.step()
        if self._after_update is not None:
            self._after_update(self._parameters, rate)
        return loss_nats

    def _find_gradients(self, token_BT: Tensor) -> Tensor:
        """Leave the gradients of the mean loss in the parameters, rows after rows, and return that of the text."""
        self._optimizer.zero_grad()
        parts = torch.split(token_BT, self._rows_at_once)
        total = torch.zeros((), device=self._device)
        for index, part_BT in enumerate(parts):
            share = len(part_BT) / len(token_BT)
            with pausing(self._loss, is_paused=index < len(parts) - 1), errors_told():
                loss, text = self._loss(part_BT)
                (share * loss).backward()
            total += share * text
        return total

    def state_dict(self) -> dict[str, Any]:
        """What going on needs beside the model's parameters."""
        return {"update": self.update, "optimizer": self._optimizer.state_dict(), "last_loss_nats": self.last_loss_nats}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.update, self.last_loss_nats = state["update"], state["last_loss_nats"]
        self._optimizer.load_state_dict(state["optimizer"])


@torch.no_grad()
def mean_loss_nats(model: nn.Module, window_WT: Tensor, *, batch_size: int) -> float:
    """Mean next-token cross-entropy over windows, in nats.

    Raises:
        DivergedError: if it is not finite.
    """
    device = next(model.parameters()).device
    num_predicted = window_WT.shape[1] - 1
    says = Speaker(model, num_tokens=min(batch_size, len(window_WT)) * num_predicted)
    total = 0.0
    for token_BT in torch.split(window_WT.to(device), batch_size):
        total += text_nats(says(token_BT), token_BT[:, 1:].flatten())
    mean = total / (len(window_WT) * num_predicted)
    if not math.isfinite(mean):
        raise DivergedError(f"losses must be finite, but got {mean} nats; lower the learning rate")
    return mean
