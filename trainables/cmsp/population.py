"""P multilayer perceptrons of one shape, trained at once as one batched program.

The gradient is written out by hand: the task needs one loss and one kind of layer, and every product then is one
batched matrix product over all networks, with no graph to build. Each product treats its networks alike whatever their
number, so a network's numbers do not depend on its company (bit for bit on CPU, from two networks up: a batch of one
takes another matrix kernel). Two more things make it so. Sizes are padded with zeros to whole cache lines, since matrix kernels
round differently at other alignments; zero weights stay zero, for no gradient reaches them. And everything elementwise is
one rounding at a time: fused forms such as lerp or sigmoid round differently in a vector's tail, and where the tail falls
depends on how many networks there are.

Axes: P networks, B samples, I inputs, H hidden units, O outputs, F all parameters of a network, flat; padded all.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from trainables.experiment import require

ADAM_EPS = 1e-5  # arXiv:2505.15811, compositions experiments; torch's default is 1e-8
ADAM_BETAS = (0.9, 0.999)
NUM_CLASSES = 2
_CACHE_LINE = 16  # float32 numbers


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Sizes of the networks; depth counts linear layers, so depth 3 has two hidden layers."""

    num_inputs: int
    depth: int
    width: int

    def __post_init__(self) -> None:
        require(self.depth >= 2, "depth must be at least 2", self.depth, "depth counts linear layers; use 2 or 3")
        require(self.width >= 1, "width must be at least 1", self.width, "use 128 as the paper does")

    @property
    def layers(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of every linear layer."""
        sizes = [self.num_inputs, *[self.width] * (self.depth - 1), NUM_CLASSES]
        return list(pairwise(sizes))

    @property
    def padded_layers(self) -> list[tuple[int, int]]:
        """The same, as the population holds them: everything but the logits in whole cache lines."""
        return [(_pad(fan_in), fan_out if fan_out == NUM_CLASSES else _pad(fan_out)) for fan_in, fan_out in self.layers]

    @property
    def num_parameters(self) -> int:
        return sum((fan_in + 1) * fan_out for fan_in, fan_out in self.layers)


class Population:
    """P networks with ReLU between linear layers and two logits, and an Adam optimizer for each.

    Args:
        generators: one a network, on the CPU: its initial weights, uniform in +-1/sqrt(fan_in) as torch.nn.Linear's.
        learning_rates: one a network.
    """

    def __init__(
        self,
        shape: Shape,
        generators: Sequence[torch.Generator],
        learning_rates: Sequence[float],
        *,
        device: torch.device,
    ) -> None:
        self.shape = shape
        self._learning_rate_P1 = torch.tensor(learning_rates, dtype=torch.float32, device=device)[:, None]
        num_padded = sum(_pad((fan_in + 1) * fan_out) for fan_in, fan_out in shape.padded_layers)
        self._hold(torch.zeros(len(generators), num_padded, device=device))
        layers = unpadded_layers(shape, self.parameter_PF)
        for place, generator in enumerate(generators):
            for (weight_PIO, bias_PO), (weight_IO, bias_O) in zip(layers, _initial_layers(shape, generator), strict=True):
                weight_PIO[place], bias_PO[place] = weight_IO, bias_O
        self._mean_PF = torch.zeros_like(self.parameter_PF)
        self._square_PF = torch.zeros_like(self.parameter_PF)
        self._num_updates = 0

    def __len__(self) -> int:
        return len(self.parameter_PF)

    def _hold(self, parameter_PF: Tensor) -> None:
        self.parameter_PF = parameter_PF
        self.gradient_PF = torch.zeros_like(parameter_PF)
        self.layers = _split(self.shape, parameter_PF)
        self._gradients = _split(self.shape, self.gradient_PF)

    def margins(self, x_PBI: Tensor) -> Tensor:
        """Logit of class 1 minus logit of class 0, for every sample: margin_PB."""
        return self._forward(x_PBI)[1]

    def _forward(self, x_PBI: Tensor) -> tuple[list[Tensor], Tensor]:
        """Activations of every layer, the padded inputs first, and the margins."""
        activations = [torch.nn.functional.pad(x_PBI, (0, _pad(x_PBI.shape[-1]) - x_PBI.shape[-1]))]
        for weight_PIO, bias_P1O in self.layers[:-1]:
            activations.append(torch.baddbmm(bias_P1O, activations[-1], weight_PIO).relu_())
        weight_PHO, bias_P1O = self.layers[-1]
        slope_PH1 = weight_PHO[..., 1:] - weight_PHO[..., :1]
        offset_P11 = bias_P1O[..., 1:] - bias_P1O[..., :1]
        return activations, torch.baddbmm(offset_P11, activations[-1], slope_PH1).squeeze(-1)

    def losses(self, x_PBI: Tensor, y_PB: Tensor) -> Tensor:
        """Cross-entropy of every sample in nats: loss_PB. With two classes it is softplus(-margin of the right one)."""
        wrong_PB = self.margins(x_PBI) * (1 - 2 * y_PB)
        return wrong_PB.relu() + wrong_PB.abs().neg_().exp_().log1p_()

    def update(self, x_PBI: Tensor, y_PB: Tensor) -> None:
        """Make one Adam update of every network on the mean loss of its own samples."""
        self._backward(x_PBI, y_PB)
        self._adam()

    def _backward(self, x_PBI: Tensor, y_PB: Tensor) -> None:
        activations, margin_PB = self._forward(x_PBI)
        ones_P1B = x_PBI.new_ones(1, 1, 1).expand(len(self), 1, x_PBI.shape[1])
        probability_PB = margin_PB.neg().exp_().add_(1).reciprocal_()
        error_PB1 = ((probability_PB - y_PB) / x_PBI.shape[1])[..., None]
        slope_PH1 = torch.bmm(activations[-1].mT, error_PB1)
        offset_P11 = torch.bmm(ones_P1B, error_PB1)
        weight_PHO, _ = self.layers[-1]
        weight_gradient_PHO, bias_gradient_P1O = self._gradients[-1]
        torch.cat([-slope_PH1, slope_PH1], dim=-1, out=weight_gradient_PHO)
        torch.cat([-offset_P11, offset_P11], dim=-1, out=bias_gradient_P1O)
        error_PBH = error_PB1 * (weight_PHO[..., 1] - weight_PHO[..., 0])[:, None, :]
        for layer in reversed(range(len(self.layers) - 1)):
            error_PBH.masked_fill_(activations[layer + 1] == 0, 0.0)
            weight_gradient_PIO, bias_gradient_P1O = self._gradients[layer]
            torch.bmm(activations[layer].mT, error_PBH, out=weight_gradient_PIO)
            torch.bmm(ones_P1B, error_PBH, out=bias_gradient_P1O)
            if layer:
                error_PBH = torch.bmm(error_PBH, self.layers[layer][0].mT)

    def _adam(self) -> None:
        self._num_updates += 1
        beta1, beta2 = ADAM_BETAS
        self._mean_PF.mul_(beta1).add_(self.gradient_PF * (1 - beta1))
        self._square_PF.mul_(beta2).add_(self.gradient_PF.square() * (1 - beta2))
        scale = math.sqrt(1 - beta2**self._num_updates)
        denominator_PF = self._square_PF.sqrt().div_(scale).add_(ADAM_EPS)
        step_P1 = self._learning_rate_P1 / (1 - beta1**self._num_updates)
        self.parameter_PF.sub_(self._mean_PF.mul(step_P1).div_(denominator_PF))

    def keep(self, index_P: Tensor) -> None:
        """Go on with these networks only; the others leave the batch."""
        self._mean_PF, self._square_PF = self._mean_PF[index_P], self._square_PF[index_P]
        self._learning_rate_P1 = self._learning_rate_P1[index_P]
        self._hold(self.parameter_PF[index_P])

    def state_dict(self) -> dict[str, Any]:
        return {
            "parameters": self.parameter_PF.clone(),
            "adam_means": self._mean_PF.clone(),
            "adam_squares": self._square_PF.clone(),
            "learning_rates": self._learning_rate_P1.clone(),
            "num_updates": self._num_updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        device = self.parameter_PF.device
        self._mean_PF = state["adam_means"].to(device).clone()
        self._square_PF = state["adam_squares"].to(device).clone()
        self._learning_rate_P1 = state["learning_rates"].to(device).clone()
        self._num_updates = state["num_updates"]
        self._hold(state["parameters"].to(device).clone())


def unpadded_layers(shape: Shape, parameter_PF: Tensor) -> list[tuple[Tensor, Tensor]]:
    """View a population's parameters as (weight_PIO, bias_PO) of every layer in the sizes of `shape`, sharing memory."""
    return [
        (weight_PIO[:, :fan_in, :fan_out], bias_P1O[:, 0, :fan_out])
        for (weight_PIO, bias_P1O), (fan_in, fan_out) in zip(_split(shape, parameter_PF), shape.layers, strict=True)
    ]


def _split(shape: Shape, parameter_PF: Tensor) -> list[tuple[Tensor, Tensor]]:
    """View flat parameters as padded (weight_PIO, bias_P1O) of every layer, sharing memory."""
    layers, start = [], 0
    for fan_in, fan_out in shape.padded_layers:
        stop = start + fan_in * fan_out
        weight_PIO = parameter_PF[:, start:stop].view(-1, fan_in, fan_out)
        bias_P1O = parameter_PF[:, stop : stop + fan_out].view(-1, 1, fan_out)
        layers.append((weight_PIO, bias_P1O))
        start = _pad(stop + fan_out)
    return layers


def _pad(size: int) -> int:
    return -(-size // _CACHE_LINE) * _CACHE_LINE


def _initial_layers(shape: Shape, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    layers = []
    for fan_in, fan_out in shape.layers:
        bound = 1 / math.sqrt(fan_in)
        weight_IO = torch.empty(fan_in, fan_out).uniform_(-bound, bound, generator=generator)
        bias_O = torch.empty(fan_out).uniform_(-bound, bound, generator=generator)
        layers.append((weight_IO, bias_O))
    return layers
