"""Gates on the neurons and residual dimensions of a language model, and the loss through them that scores ask for.

Axes: B sequences, T tokens, F neurons of one MLP, D residual dimensions, V vocabulary.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainables.laws import require
from trainables.llm.anatomy import Anatomy
from trainables.pruning.units import Tensors


@contextlib.contextmanager
def gated(model: nn.Module, anatomy: Anatomy, gates: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, units are multiplied with their gates; afterwards the model is as it was.

    A neuron's gate is on the input of its MLP's projection out. A residual dimension's is on the embeddings and on what
    every projection writes, before a norm over the written, if the family has one; under LayerNorm, which makes something
    of a zero, on the norms' outputs, too. So a gate of 0 does what `trainables.pruning.surgery.mask` does.

    Args:
        gates: by `Units.name`: gate_F or gate_BTF for an MLP, gate_D or gate_BTD for "residual"; what is left out is open.

    Raises:
        ValueError: if there is a gate for something that the anatomy does not have.
    """
    downs = {block.mlp.name: block.mlp.down.name for block in anatomy.blocks}
    unknown = sorted(set(gates) - {*downs, "residual"})
    require(not unknown, "gates must be of MLPs or the residual stream", unknown, f"use names of {sorted(downs)} or residual")
    hooks = []
    for name, gate in gates.items():
        if name == "residual":
            for module in _written(anatomy):
                hooks.append(model.get_submodule(module).register_forward_hook(_OnOutput(gate)))
        else:
            hooks.append(model.get_submodule(downs[name]).register_forward_pre_hook(_OnInput(gate)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _written(anatomy: Anatomy) -> list[str]:
    """Modules whose output a residual dimension's gate is on."""
    writers = [projection.name for projection in anatomy.writers()]
    return [*anatomy.embeddings, *writers, *(norm.name for norm in anatomy.norms if norm.is_centred)]


@dataclasses.dataclass(frozen=True, slots=True)
class _OnInput:
    gate: Tensor

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0] * self.gate, *args[1:])


@dataclasses.dataclass(frozen=True, slots=True)
class _OnOutput:
    gate: Tensor

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output * self.gate


def _attention_for(gates: Mapping[str, Tensor]) -> contextlib.AbstractContextManager[None]:
    """Under vmap, attention by plain products: the fused kernels know no vmap and would run once for every unit."""
    if any(torch._C._functorch.is_batchedtensor(gate) for gate in gates.values()):
        return sdpa_kernel(SDPBackend.MATH)
    return contextlib.nullcontext()


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class NextTokenLoss:
    """Mean cross-entropy of the next token over packed sequences, in nats; a `trainables.pruning.scores.BatchLoss`.

    Attributes:
        model: outside training mode, as dropout is no part of a score.
        token_BT: token ids without padding.
    """

    model: nn.Module
    anatomy: Anatomy
    token_BT: Tensor

    @property
    def activation_shape(self) -> tuple[int, ...]:
        return tuple(self.token_BT.shape)

    def __call__(self, tensors: Tensors, gates: Mapping[str, Tensor]) -> Tensor:
        require(not self.model.training, "scores need a model outside training mode", "training mode", "call model.eval()")
        with gated(self.model, self.anatomy, gates), _attention_for(gates):
            output = torch.func.functional_call(self.model, dict(tensors), (self.token_BT,), {"use_cache": False})
        logits_NV = output.logits[:, :-1].flatten(0, 1)
        return nn.functional.cross_entropy(logits_NV.float(), self.token_BT[:, 1:].flatten())
