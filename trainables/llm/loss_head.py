"""The head of a language model, found and shown with numbers, so that logits can be made of few tokens at a time.

Logits are by far the largest tensor of a small model with a large vocabulary, N x V numbers; what its head reads is N x D.

Axes: B sequences, T tokens of each, N tokens of all, D width, V vocabulary.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.llm.observation import evaluating, tokens

FEW_LOGITS = 2**22
"""B x T x V up to which logits are made all at once: 16 MiB."""
_HIGH = 1e3  # of logits, where a cap would show

Change = Callable[[nn.Module], Callable[..., Any]]
"""What is done with a module before it is run, such as compiling it."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Head:
    """The linear map at a model's end, and the module before it, which says what the head reads."""

    body: nn.Module
    linear: nn.Linear


def find_head(model: nn.Module, *, num_tokens: int) -> Head | None:
    """Find the head of a model of transformers, if it is worth it.

    It takes two short runs to show that logits are what the head makes of the body's output, whatever their size.

    Args:
        num_tokens: that the model is to read at once.

    Returns:
        None where there are few logits, and for a model that scales or caps them or does not tell its parts.
    """
    parts = getattr(model, "base_model", None), getattr(model, "get_output_embeddings", lambda: None)()
    body, linear = parts
    if not isinstance(body, nn.Module) or body is model or type(linear) is not nn.Linear:
        return None
    head = Head(body=body, linear=linear)
    if num_tokens * linear.out_features <= FEW_LOGITS or not _is_last(model, head):
        return None
    return head


def _is_last(model: nn.Module, head: Head) -> bool:
    """Whether the head reads the body's output, and the logits are the head's, also where they are high."""
    read: list[Tensor] = []
    said: list[Tensor] = []

    def replace(module: nn.Module, args: tuple[Any, ...], logits_BTV: Tensor) -> Tensor:
        read.append(args[0])
        said.append(torch.linspace(-_HIGH, _HIGH, logits_BTV.numel(), device=logits_BTV.device).view_as(logits_BTV))
        return said[-1]

    hook = head.linear.register_forward_hook(replace)
    try:
        with evaluating(model):
            logits_BTV = model(tokens(model), use_cache=False).logits
            hidden_BTD = head.body(tokens(model), use_cache=False)[0]
    finally:
        hook.remove()
    return len(read) == 1 and _agree(read[0], hidden_BTD) and _agree(said[0], logits_BTV)


def _agree(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one.float(), other.float(), rtol=1e-4, atol=1e-5)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What a model says of N tokens, one number for each of the vocabulary, made when it is asked for.

    Attributes:
        read: hidden_ND, what the head reads; logits_NV, where there is no head.
        weight_VD: of the head, as it multiplies; None if logits are there already.
        bias_V: of the head, if it has one.
    """

    read: Tensor
    weight_VD: Tensor | None
    bias_V: Tensor | None

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.read.shape[-1] if self.weight_VD is None else len(self.weight_VD)

    def logits(self, part: slice) -> Tensor:
        """Of some of the tokens: logits_NV."""
        if self.weight_VD is None:
            return self.read[part]
        return functional.linear(self.read[part].to(self.weight_VD.dtype), self.weight_VD, self.bias_V)


class Speaker:
    """Asks a model for the next tokens, with its head apart if there is one worth it; on CUDA products are in bfloat16.

    Args:
        num_tokens: that are read at once.
        run: what is done with the module that reads them.

    Attributes:
        head: None if logits come all at once.
    """

    def __init__(self, model: nn.Module, *, num_tokens: int, run: Change | None = None) -> None:
        found = find_head(model, num_tokens=num_tokens)
        self.head = None if found is None else found.linear
        body = model if found is None else found.body
        self._run: Callable[..., Any] = body if run is None else run(body)

    def __call__(self, token_BT: Tensor) -> Answers:
        """Read all tokens but the last of each sequence, and say what follows each."""
        with torch.autocast("cuda", torch.bfloat16, enabled=token_BT.is_cuda):
            output = self._run(token_BT[:, :-1], use_cache=False)
        if self.head is None:
            return Answers(read=output.logits.flatten(0, 1), weight_VD=None, bias_V=None)
        hidden_ND = output[0].flatten(0, 1)
        dtype = torch.bfloat16 if token_BT.is_cuda else hidden_ND.dtype
        bias_V = None if self.head.bias is None else self.head.bias.detach().to(dtype)
        return Answers(read=hidden_ND, weight_VD=self.head.weight.detach().to(dtype), bias_V=bias_V)
