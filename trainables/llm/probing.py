"""What a single module computes, found by asking a copy of it with random weights: neither class nor size is trusted.

Axes: B samples, I inputs, O outputs, D what a norm is over.
"""

import copy
import dataclasses
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from trainables.pruning.units import Orientation

_Module = TypeVar("_Module", bound=nn.Module)

_LARGE = 100.0  # inputs so large that no eps is seen
_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True, slots=True)
class NormKind:
    """What a norm does.

    Attributes:
        is_centred: it subtracts the mean first, as LayerNorm does and RMSNorm does not.
        offset: it multiplies with offset + weight: 0, or 1 in the families that learn the difference from 1.
    """

    is_centred: bool
    offset: int


@torch.no_grad()
def orientation_of(module: nn.Module) -> Orientation | None:
    """How the weight of a linear module lies; None if it computes anything but weight * x + bias.

    Source: torch.nn.Linear holds (O, I); the Conv1D of transformers' GPT-2 holds (I, O), which a square weight does not show.
    """
    if type(module) is nn.Linear:
        return "out_in"
    if not _has_vectors_and(module, weight_dim=2):
        return None
    drawn = _drawn(module)
    replica = _replica(module, drawn)
    orientations: tuple[Orientation, ...] = ("out_in", "in_out")
    for orientation in orientations:
        weight_OI = drawn["weight"] if orientation == "out_in" else drawn["weight"].mT
        x_BI = _normal((3, weight_OI.shape[1]), weight_OI)
        y_BO = _output(replica, x_BI)
        bias_O = drawn.get("bias")
        if bias_O is not None and len(bias_O) != len(weight_OI):
            continue
        if y_BO is not None and _is_close(y_BO, nn.functional.linear(x_BI, weight_OI, bias_O)):
            return orientation
    return None


@torch.no_grad()
def norm_kind(module: nn.Module) -> NormKind | None:
    """What kind of norm a module with one weight a dimension is; None if it is none."""
    if not _has_vectors_and(module, weight_dim=1):
        return None
    drawn = _drawn(module)
    x_BD = _LARGE * (1 + _normal((4, len(drawn["weight"])), drawn["weight"]))
    y_BD = _output(_replica(module, drawn), x_BD)
    for kind in (NormKind(is_centred, offset) for is_centred in (False, True) for offset in (0, 1)):
        if y_BD is not None and _is_close(y_BD, _normed(x_BD, drawn, kind)):
            return kind
    return None


def _normed(x_BD: Tensor, drawn: Mapping[str, Tensor], kind: NormKind) -> Tensor:
    centred_BD = x_BD - x_BD.mean(-1, keepdim=True) if kind.is_centred else x_BD
    unit_BD = centred_BD / centred_BD.square().mean(-1, keepdim=True).sqrt()
    return unit_BD * (kind.offset + drawn["weight"]) + drawn.get("bias", 0)


@torch.no_grad()
def is_identity(module: nn.Module, width: int) -> bool:
    """Whether a module without parameters hands through what it gets, as dropout does outside training."""
    x_BD = torch.randn(4, width, generator=torch.Generator().manual_seed(0))
    y_BD = _output(copy.deepcopy(module).eval(), x_BD)
    return y_BD is not None and torch.equal(y_BD, x_BD)


@torch.no_grad()
def embedding_scale(module: nn.Embedding) -> float:
    """By what an embedding multiplies its rows on the way out: 1 for torch's own."""
    weight_BD = _normal((2, module.embedding_dim), module.weight)
    replica = _replica(module, {"weight": weight_BD})
    replica.padding_idx, replica.num_embeddings = None, 2
    row_BD = replica(torch.arange(2, device=weight_BD.device))
    return float((row_BD * weight_BD).sum() / weight_BD.square().sum())


def own_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters that lie in the module itself."""
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters(recurse=False)}


def _has_vectors_and(module: nn.Module, *, weight_dim: int) -> bool:
    """Whether all that the module owns is a weight of so many axes and perhaps a bias."""
    shapes = own_shapes(module)
    is_known = "weight" in shapes and set(shapes) <= {"weight", "bias"}
    return is_known and len(shapes["weight"]) == weight_dim and len(shapes.get("bias", (0,))) == 1


def _drawn(module: nn.Module) -> dict[str, Tensor]:
    return {name: _normal(tuple(parameter.shape), parameter) for name, parameter in module.named_parameters(recurse=False)}


def _normal(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Random numbers on the device of a tensor, or on the CPU for one that holds none."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + shape[0]))
    return values if like.is_meta else values.to(like.device)


def _replica(module: _Module, tensors: Mapping[str, Tensor]) -> _Module:
    """Copy a module with other parameters, without copying its own."""
    memo = {id(getattr(module, name)): nn.Parameter(tensor, requires_grad=False) for name, tensor in tensors.items()}
    return copy.deepcopy(module, memo).eval()


def _output(module: nn.Module, x: Tensor) -> Tensor | None:
    """What a module makes of one tensor; None if it takes more, or gives no tensor of float32."""
    try:
        y = module(x)
    except Exception:  # a module may refuse in any way what it was not made for
        return None
    return y if isinstance(y, Tensor) and y.dtype == x.dtype else None


def _is_close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=_TOLERANCE, atol=_TOLERANCE)
