"""The loss of a causal language model on text, and beside it on a teacher's answers.

Axes: B sequences, T tokens of each, N tokens of all, V vocabulary.
"""

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.laws import require
from trainables.llm.loss_chunks import Lesson, chunks, mean_loss
from trainables.llm.loss_head import Answers, Change, Speaker


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
        num_tokens: that are read at once; where they make many logits, head and loss go through them in chunks.
        run: what is done with the student's module that reads them.
    """

    def __init__(self, model: nn.Module, teacher: Teacher | None, *, num_tokens: int, run: Change | None = None) -> None:
        super().__init__()
        self.model, self._teacher = model, teacher  # the teacher is no module of this one: nothing of it is trained
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
        answers = self._answers(token_BT, student.vocabulary)
        head = self._student_says.head
        if head is None:
            return self._whole_loss(student.read, target_N, answers)
        alpha, temperature = (1.0, 1.0) if self._teacher is None else (self._teacher.alpha, self._teacher.temperature)
        lesson = Lesson(target_N=target_N, answers=answers, alpha=alpha, temperature=temperature)
        return mean_loss(student, head, lesson)

    def _answers(self, token_BT: Tensor, vocabulary: int) -> Answers | None:
        if self._teacher_says is None:
            return None
        with torch.no_grad():
            answers = self._teacher_says(token_BT)
        law = f"a teacher must have the student's vocabulary of {vocabulary} tokens"
        require(answers.vocabulary == vocabulary, law, answers.vocabulary, "use a model with the same tokenizer")
        return answers

    def _whole_loss(self, logits_NV: Tensor, target_N: Tensor, answers: Answers | None) -> tuple[Tensor, Tensor]:
        text = functional.cross_entropy(logits_NV.float(), target_N)
        if self._teacher is None or answers is None:
            return text, text.detach()
        temperature, alpha = self._teacher.temperature, self._teacher.alpha
        with torch.no_grad():
            answer_NV = answers.logits(slice(None))
        log_q_NV, log_p_NV = ((each.float() / temperature).log_softmax(-1) for each in (logits_NV, answer_NV))
        soft = functional.kl_div(log_q_NV, log_p_NV, reduction="batchmean", log_target=True)
        return alpha * text + (1 - alpha) * temperature**2 * soft, text.detach()


def text_nats(answers: Answers, target_N: Tensor) -> float:
    """Sum of the cross-entropies of tokens, without gradient."""
    losses = (
        functional.cross_entropy(answers.logits(part).float(), target_N[part], reduction="sum") for part in chunks(target_N)
    )
    return sum(map(float, losses))
