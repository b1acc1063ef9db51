"""Shapes of the networks, and how many of one shape lie in memory as one tensor.

Sizes are padded with zeros to whole cache lines, since matrix kernels round differently at other alignments. Zero weights
stay zero: no gradient reaches them. The biases of the first layer are the weights of one more input, which is always 1.

Axes: P networks, I inputs, H hidden units, O outputs, F all parameters of a network, flat and padded.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor

from trainables.laws import require
from trainables.pruning.units import Units, mlp_neurons
from trainables.randomness import draw_bytes

NUM_CLASSES = 2
_CACHE_LINE = 16  # float32 numbers
_PROBE_SAMPLES = 16


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Sizes of a network with ReLU between linear layers and two logits.

    Attributes:
        widths: hidden units of each hidden layer, at least one layer of at least one unit.
    """

    num_inputs: int
    widths: tuple[int, ...]

    def __post_init__(self) -> None:
        require(bool(self.widths), "a network must have a hidden layer", "none", "give one width or more")
        require(min(self.widths) >= 1, "width must be at least 1", min(self.widths), "use 128 as the paper does")

    @classmethod
    def of_depth(cls, *, num_inputs: int, depth: int, width: int) -> Self:
        """All hidden layers alike; depth counts linear layers, so depth 3 has two hidden layers."""
        require(depth >= 2, "depth must be at least 2", depth, "depth counts linear layers; use 2 or 3")
        return cls(num_inputs=num_inputs, widths=(width,) * (depth - 1))

    @property
    def layers(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of every linear layer."""
        return list(pairwise([self.num_inputs, *self.widths, NUM_CLASSES]))

    @property
    def num_parameters(self) -> int:
        return sum((fan_in + 1) * fan_out for fan_in, fan_out in self.layers)

    @property
    def padded(self) -> "Shape":
        """The same with hidden layers of whole cache lines."""
        return Shape(num_inputs=self.num_inputs, widths=tuple(pad(width) for width in self.widths))

    @property
    def num_columns(self) -> int:
        """Width of the rows that hold a sample: its inputs, a 1, and zeros."""
        return pad(self.num_inputs + 1)

    @property
    def num_padded(self) -> int:
        """F, the numbers that a network takes in memory."""
        first, *others = self.padded.layers
        return pad(self.num_columns * first[1] + sum((fan_in + 1) * fan_out for fan_in, fan_out in others))

    @property
    def neurons(self) -> list[Units]:
        """The hidden units, layer by layer, as `trainables.pruning` takes them; for tensors named as `split` does."""
        names = [(f"layer{layer}.weight", f"layer{layer}.bias") for layer in range(len(self.layers))]
        return mlp_neurons(names, counts=self.widths, orientation="in_out")


def pad(size: int) -> int:
    """Round up to whole cache lines."""
    return -(-size // _CACHE_LINE) * _CACHE_LINE


def matched_width(*, num_inputs: int, depth: int, num_parameters: int) -> int:
    """The width at which a network's number of parameters is nearest to the given one.

    Source: arXiv:2505.15811, Fig 7: depth 2 with 361 units for depth 3 with 128 (25 633 and 25 602 parameters).
    """

    def distance(width: int) -> int:
        return abs(Shape.of_depth(num_inputs=num_inputs, depth=depth, width=width).num_parameters - num_parameters)

    return min(range(1, num_parameters // num_inputs + 2), key=distance)


def split(shape: Shape, flat_PF: Tensor) -> dict[str, Tensor]:
    """View flat parameters by name, sharing memory.

    Returns:
        for layer 0, 1, ...: `layer0.weight` of shape (P, inputs, outputs) and `layer0.bias` of shape (P, outputs).
    """
    tensors = {}
    for layer, ((weight_PIO, bias_P1O), (fan_in, fan_out)) in enumerate(
        zip(split_padded(shape, flat_PF), shape.layers, strict=True)
    ):
        tensors[f"layer{layer}.weight"] = weight_PIO[:, :fan_in, :fan_out]
        tensors[f"layer{layer}.bias"] = bias_P1O[:, 0, :fan_out]
    return tensors


def split_padded(shape: Shape, flat_PF: Tensor) -> list[tuple[Tensor, Tensor]]:
    """View flat parameters as (weight_PIO, bias_P1O) of every layer in padded sizes, sharing memory.

    The first layer's weight has a row for every column of a sample, its bias among them. The last one's is stored by output.
    """
    (_, first_out), *others = shape.padded.layers
    stop = shape.num_columns * first_out
    weight_PIO = flat_PF[:, :stop].view(-1, shape.num_columns, first_out)
    views = [(weight_PIO, weight_PIO[:, shape.num_inputs : shape.num_inputs + 1])]
    for fan_in, fan_out in others:
        start, stop = stop, stop + fan_in * fan_out
        if fan_out == NUM_CLASSES:
            weight_PIO = flat_PF[:, start:stop].view(-1, fan_out, fan_in).mT
        else:
            weight_PIO = flat_PF[:, start:stop].view(-1, fan_in, fan_out)
        start, stop = stop, stop + fan_out
        views.append((weight_PIO, flat_PF[:, start:stop].unsqueeze(1)))
    return views


def join(shape: Shape, networks: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Lay networks, each with tensors as `split` names them but without the axis P, side by side: parameter_PF.

    A network may have fewer units than `shape`; the rest is zero, as if masked.
    """
    flat_PF = torch.zeros(len(networks), shape.num_padded)
    views = split(shape, flat_PF)
    for place, tensors in enumerate(networks):
        for name, tensor in tensors.items():
            views[name][place][tuple(slice(size) for size in tensor.shape)] = tensor
    return flat_PF


def probe_logits(networks: Sequence[torch.nn.Sequential]) -> dict[str, Tensor]:
    """What networks as torch modules say of inputs that are always the same: `logits`, S networks x B x O."""
    first = next(networks[0].parameters())
    bit_BI = draw_bytes(_PROBE_SAMPLES * first.shape[1], "probe").view(_PROBE_SAMPLES, -1) & 1
    return {"logits": torch.stack([network(bit_BI.to(first.dtype)) for network in networks])}
