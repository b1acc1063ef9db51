"""The loss of a causal language model on text, and beside it on a teacher's answers, without all logits at once.

Head, loss and the loss' gradient go through the tokens in chunks: of a chunk's logits nothing is left but numbers of the
sizes of what the head reads and of its weight.

Axes: B sequences, T tokens of each, N tokens of all or of a chunk, D width, V vocabulary.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from trainables.laws import require
from trainables.llm.loss_head import Answers, Change, Speaker

_TOKENS_AT_ONCE, _TOKENS_AT_ONCE_ON_CUDA = 512, 2048  # enough for products at full speed; their logits are small beside a model


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Teacher:
    """Whose answers a student also learns: loss = alpha CE + (1 - alpha) T^2 KL(teacher || student).

    Source: arXiv:2505.15811, Fig 6 (alpha 0.5, T 2); Hinton, Vinyals and Dean 2015.
    """

    model: nn.Module
    alpha: float
    temperature: float


class TextLoss(nn.Module):
    """What a model has to learn from a batch: the next tokens and, where there is a teacher, its answers.

    Args:
        num_tokens: that are read at once.
        run: what is done with the student's module that reads them.
    """

    def __init__(self, model: nn.Module, teacher: Teacher | None, *, num_tokens: int, run: Change | None = None) -> None:
        super().__init__()
        self.model, self._teacher = model, teacher  # the teacher is not a module here, as nothing of it is trained
        self._student_says = Speaker(model, num_tokens=num_tokens, run=run)
        self._teacher_says = None if teacher is None else Speaker(teacher.model, num_tokens=num_tokens)

    def forward(self, token_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Read a batch.

        Returns:
            the loss, and its part that is of the text, without gradient; means over tokens, in nats.

        Raises:
            ValueError: if the teacher has another vocabulary.
        """
        student, target_N = self._student_says(token_BT), token_BT[:, 1:].flatten()
        lesson = _Lesson(target_N=target_N, teacher=self._teacher, answers=self._answers(token_BT, student.vocabulary))
        head = self._student_says.head
        weight, bias = (None, None) if head is None else (head.weight, head.bias)
        loss, text_nats = _MeanLoss.apply(student.read, weight, bias, student, lesson)  # type: ignore[no-untyped-call]
        return loss, text_nats

    def _answers(self, token_BT: Tensor, vocabulary: int) -> Answers | None:
        if self._teacher_says is None:
            return None
        with torch.no_grad():
            answers = self._teacher_says(token_BT)
        law = f"a teacher must have the student's vocabulary of {vocabulary} tokens"
        require(answers.vocabulary == vocabulary, law, answers.vocabulary, "use a model with the same tokenizer")
        return answers


def text_nats(answers: Answers, target_N: Tensor) -> float:
    """Sum of the cross-entropies of tokens, without gradient."""
    parts = _chunks(answers.read)
    return sum(float(functional.cross_entropy(answers.logits(part).float(), target_N[part], reduction="sum")) for part in parts)


def _chunks(read: Tensor) -> Iterator[slice]:
    size = _TOKENS_AT_ONCE_ON_CUDA if read.is_cuda else _TOKENS_AT_ONCE
    return (slice(start, start + size) for start in range(0, len(read), size))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Lesson:
    """What is to be learned of N tokens.

    Attributes:
        answers: the teacher's, if there is one.
    """

    target_N: Tensor
    teacher: Teacher | None
    answers: Answers | None

    def teach(self, logits_NV: Tensor, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the loss of some tokens, its part that is of the text, and the loss' gradient_NV; sums over tokens."""
        text, gradient_NV = _cross_entropy(logits_NV, self.target_N[part])
        if self.teacher is None or self.answers is None:
            return text, text, gradient_NV
        temperature, alpha = self.teacher.temperature, self.teacher.alpha
        soft, soft_gradient_NV = _divergence(logits_NV, self.answers.logits(part), temperature)
        weight = (1 - alpha) * temperature**2
        return alpha * text + weight * soft, text, gradient_NV.mul_(alpha).add_(soft_gradient_NV, alpha=weight)


def _cross_entropy(logits_NV: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """-log p(target), and its gradient p - 1[target], in one buffer of float32 beside the logits."""
    p_NV = logits_NV.float() - logits_NV.amax(-1, keepdim=True)
    chosen_N1 = p_NV.gather(-1, target_N[:, None])
    total_N1 = p_NV.exp_().sum(-1, keepdim=True)
    p_NV.div_(total_N1).scatter_add_(-1, target_N[:, None], -torch.ones_like(chosen_N1))
    return (total_N1.log() - chosen_N1).sum(), p_NV


def _divergence(student_NV: Tensor, teacher_NV: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """KL(teacher || student) of softened answers, and its gradient by the student's logits."""
    log_q_NV, log_p_NV = ((logits.float() / temperature).log_softmax(-1) for logits in (student_NV, teacher_NV))
    p_NV = log_p_NV.exp()
    loss = log_p_NV.sub_(log_q_NV).mul_(p_NV).sum()
    return loss, log_q_NV.exp_().sub_(p_NV).div_(temperature)


class _MeanLoss(torch.autograd.Function):
    """The mean of a lesson's loss; the gradient is made on the way, chunk by chunk, while the chunk's logits are there."""

    @staticmethod
    def forward(
        ctx: Any, read: Tensor, weight: Tensor | None, bias: Tensor | None, answers: Answers, lesson: _Lesson
    ) -> tuple[Tensor, Tensor]:
        """Compute the loss, and its part that is of the text.

        Args:
            read, weight, bias: what `answers` are made of, as autograd knows it.
        """
        gradients = _Gradients.of(read, weight, bias)
        losses = []
        for part in _chunks(read):
            loss, text, gradient_NV = lesson.teach(answers.logits(part), part)
            gradients.add(answers, part, gradient_NV)
            losses.append(torch.stack((loss, text)))
        ctx.save_for_backward(gradients.read, gradients.weight_VD, gradients.bias_V)
        loss, text = torch.stack(losses).sum(0) / len(read)
        ctx.mark_non_differentiable(text)
        return loss, text

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Multiply what forward has left."""
        held = (None if each is None else each.mul_(gradient) for each in ctx.saved_tensors)
        return (*held, None, None)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Gradients:
    """Of the mean over tokens, by what the head reads (or by the logits, where there is none), its weight and its bias."""

    read: Tensor
    weight_VD: Tensor | None
    bias_V: Tensor | None

    @classmethod
    def of(cls, read: Tensor, weight: Tensor | None, bias: Tensor | None) -> "_Gradients":
        """Make room for them."""
        weight_VD, bias_V = (None if each is None else torch.zeros_like(each) for each in (weight, bias))
        return cls(read=torch.empty_like(read), weight_VD=weight_VD, bias_V=bias_V)

    def add(self, answers: Answers, part: slice, gradient_NV: Tensor) -> None:
        """Take up a chunk."""
        count = len(self.read)
        if answers.weight_VD is None or self.weight_VD is None:
            torch.div(gradient_NV, count, out=self.read[part])
            return
        half_NV = gradient_NV.to(answers.weight_VD.dtype)
        torch.div(half_NV @ answers.weight_VD, count, out=self.read[part])
        hidden_ND = answers.read[part].to(half_NV.dtype) / count
        if self.weight_VD.dtype == half_NV.dtype:
            self.weight_VD.addmm_(half_NV.T, hidden_ND)
        else:  # sums stay in full precision
            self.weight_VD.add_(half_NV.T @ hidden_ND)
        if self.bias_V is not None:
            self.bias_V.add_(gradient_NV.sum(0) / count)
