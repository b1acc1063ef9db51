"""A loss and its gradient without all logits at once: head and loss go through the tokens in chunks.

Of a chunk's logits nothing stays but the loss, its gradient by what the head read, and sums for the head's own parameters.

Axes: N tokens of all sequences, or of a chunk; D width; V vocabulary.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainables.llm.loss_head import Answers

_TOKENS_AT_ONCE, _TOKENS_AT_ONCE_ON_CUDA = 512, 2048  # products at full speed, and logits that are small beside a model


def chunks(token_N: Tensor) -> Iterator[slice]:
    """Parts of the tokens, one after the other."""
    size = _TOKENS_AT_ONCE_ON_CUDA if token_N.is_cuda else _TOKENS_AT_ONCE
    return (slice(start, start + size) for start in range(0, len(token_N), size))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Lesson:
    """What is to be learned of N tokens: loss = alpha CE + (1 - alpha) T^2 KL(teacher || student).

    Attributes:
        answers: the teacher's; without them, loss = CE.
        temperature: T.
    """

    target_N: Tensor
    answers: Answers | None
    alpha: float
    temperature: float

    def teach(self, logits_NV: Tensor, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the loss of a part of the tokens, what of it is CE, and its gradient_NV; sums over tokens, float32."""
        text, gradient_NV = _cross_entropy(logits_NV, self.target_N[part])
        if self.answers is None:
            return text, text, gradient_NV
        soft, soft_gradient_NV = _divergence(logits_NV, self.answers.logits(part), self.temperature)
        weight = (1 - self.alpha) * self.temperature**2
        return self.alpha * text + weight * soft, text, gradient_NV.mul_(self.alpha).add_(soft_gradient_NV, alpha=weight)


def _cross_entropy(logits_NV: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """-log p(target), and its gradient p - 1[target], in one buffer beside the logits."""
    log_p_NV = logits_NV.log_softmax(-1, dtype=torch.float32)
    chosen_N1 = log_p_NV.gather(-1, target_N[:, None])
    gradient_NV = log_p_NV.exp_().scatter_add_(-1, target_N[:, None], -torch.ones_like(chosen_N1))
    return -chosen_N1.sum(), gradient_NV


def _divergence(student_NV: Tensor, teacher_NV: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """KL(teacher || student) of softened answers, and its gradient by the student's logits, (q - p) / T."""
    log_q_NV, log_p_NV = ((logits.float() / temperature).log_softmax(-1) for logits in (student_NV, teacher_NV))
    p_NV = log_p_NV.exp()
    loss = log_p_NV.sub_(log_q_NV).mul_(p_NV).sum()
    return loss, log_q_NV.exp_().sub_(p_NV).div_(temperature)


def mean_loss(student: Answers, head: nn.Linear, lesson: Lesson) -> tuple[Tensor, Tensor]:
    """Compute the loss of a student and what of it is CE, without gradient; means over tokens.

    Args:
        head: of which the student's answers are made.
    """
    loss, text = _MeanLoss.apply(student.read, head.weight, head.bias, student, lesson)  # type: ignore[no-untyped-call]
    return loss, text


class _MeanLoss(torch.autograd.Function):
    """The gradient is made on the way, while a chunk's logits are there."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, answers: Answers, lesson: Lesson
    ) -> tuple[Tensor, Tensor]:
        """Compute `mean_loss`.

        Args:
            hidden_ND, weight_VD, bias_V: what `answers` are made of, as autograd knows it.
        """
        gradients = _Gradients(
            hidden_ND=torch.empty_like(hidden_ND),
            weight_VD=torch.zeros_like(weight_VD),
            bias_V=None if bias_V is None else torch.zeros_like(bias_V),
        )
        sums = []
        for part in chunks(hidden_ND):
            loss, text, gradient_NV = lesson.teach(answers.logits(part), part)
            gradients.add(answers, part, gradient_NV)
            sums.append(torch.stack((loss, text)))
        ctx.save_for_backward(gradients.hidden_ND, gradients.weight_VD, gradients.bias_V)
        loss, text = torch.stack(sums).sum(0) / len(hidden_ND)
        ctx.mark_non_differentiable(text)
        return loss, text

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Multiply what forward has left, in place: these are the largest tensors of a small model."""
        made = (None if each is None else each.mul_(gradient) for each in ctx.saved_tensors)
        return (*made, None, None)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Gradients:
    """Of the mean over N tokens, by what the head reads and by its parameters."""

    hidden_ND: Tensor
    weight_VD: Tensor
    bias_V: Tensor | None

    def add(self, answers: Answers, part: slice, gradient_NV: Tensor) -> None:
        """Take up a chunk: the gradient of its sum of losses by its logits."""
        assert answers.weight_VD is not None
        count = len(self.hidden_ND)
        half_NV = gradient_NV.to(answers.weight_VD.dtype)
        torch.div(half_NV @ answers.weight_VD, count, out=self.hidden_ND[part])
        hidden_ND = answers.read[part].to(half_NV.dtype) / count
        if self.weight_VD.dtype == half_NV.dtype:
            self.weight_VD.addmm_(half_NV.T, hidden_ND)
        else:  # sums stay in full precision
            self.weight_VD.add_(half_NV.T @ hidden_ND)
        if self.bias_V is not None:
            self.bias_V.add_(gradient_NV.sum(0) / count)
