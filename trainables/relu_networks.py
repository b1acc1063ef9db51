"""Networks of linear layers with ReLU between them, as named tensors: drawn, run, turned into torch modules.

For layer 0, 1, ... there are `layer0.weight` of shape (..., inputs, outputs) and `layer0.bias` of shape (..., outputs).
Axes in front count networks, which then compute side by side.

Axes: ... networks, B samples, I inputs, H hidden units, O outputs.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trainables.pruning.units import Tensors, Units, mlp_neurons


def initial_network(layers: Sequence[tuple[int, int]], generator: torch.Generator) -> dict[str, Tensor]:
    """Weights and biases uniform in +-1/sqrt(fan_in), as torch.nn.Linear draws them.

    Args:
        layers: (inputs, outputs) of every linear layer.
    """
    tensors = {}
    for layer, (fan_in, fan_out) in enumerate(layers):
        bound = 1 / math.sqrt(fan_in)
        tensors[f"layer{layer}.weight"] = torch.empty(fan_in, fan_out).uniform_(-bound, bound, generator=generator)
        tensors[f"layer{layer}.bias"] = torch.empty(fan_out).uniform_(-bound, bound, generator=generator)
    return tensors


def num_layers(tensors: Tensors) -> int:
    """How many linear layers there are."""
    return len(tensors) // 2


def hidden_neurons(tensors: Tensors) -> list[Units]:
    """The hidden units, layer by layer, as `trainables.pruning` takes them."""
    names = [(f"layer{layer}.weight", f"layer{layer}.bias") for layer in range(num_layers(tensors))]
    return mlp_neurons(names, counts=[tensors[bias].shape[-1] for _, bias in names[:-1]], orientation="in_out")


def logits(tensors: Tensors, x: Tensor, gates: Mapping[str, Tensor] | None = None) -> Tensor:
    """Run the networks: logits_...BO.

    Args:
        x: x_...BI, with the axes in front that the tensors have, or that broadcast to them.
        gates: for some hidden layers, by `Units.name`, what their activations are multiplied with: gate_H, gate_...BH.
    """
    last = num_layers(tensors) - 1
    for layer in range(last + 1):
        x = x @ tensors[f"layer{layer}.weight"] + tensors[f"layer{layer}.bias"].unsqueeze(-2)
        if layer < last:
            x = x.relu()
            if gates and f"layer{layer}" in gates:
                x = x * gates[f"layer{layer}"]
    return x


@dataclasses.dataclass(frozen=True, slots=True)
class CrossEntropy:
    """Mean cross-entropy of one network on one batch, in nats; see `trainables.pruning.scores.BatchLoss`."""

    x_BI: Tensor
    label_B: Tensor

    @property
    def activation_shape(self) -> tuple[int, ...]:
        return (len(self.label_B),)

    def __call__(self, tensors: Tensors, gates: Mapping[str, Tensor]) -> Tensor:
        return torch.nn.functional.cross_entropy(logits(tensors, self.x_BI, gates), self.label_B)


@torch.no_grad()
def fold_constants(tensors: Tensors, layer: int, gone_H: Tensor) -> None:
    """Give the next layer's bias, in place, what neurons of `layer` emit when nothing reaches them: ReLU(bias).

    A neuron whose in-weights are zero may then be masked or removed, and the network computes what it did.

    Args:
        gone_H: bool; gone_...H for a choice of its own for each network.

    Source: arXiv:2505.15811, Fig 4. Differs: the authors mask in-weights alone, so that a pruned neuron goes on emitting
    ReLU(bias) and can never be removed.
    """
    constant_H = tensors[f"layer{layer}.bias"].relu() * gone_H
    through_O = constant_H.unsqueeze(-2) @ tensors[f"layer{layer + 1}.weight"]
    tensors[f"layer{layer + 1}.bias"].add_(through_O.squeeze(-2))


def stack(networks: Sequence[Tensors]) -> dict[str, Tensor]:
    """Lay networks without axes in front side by side: tensors_P.... Those with fewer units get units of zeros."""
    stacked = {}
    for name, first in sorted(networks[0].items()):  # a file gives names in any order, and sums over them round by it
        shapes = [network[name].shape for network in networks]
        stacked[name] = first.new_zeros(len(networks), *map(max, zip(*shapes, strict=True)))
        for place, network in enumerate(networks):
            stacked[name][place][tuple(map(slice, network[name].shape))] = network[name]
    return stacked


def modules(tensors: Tensors) -> torch.nn.Sequential:
    """One network as torch modules.

    Args:
        tensors: for layer 0, 1, ...: `layer0.weight` of shape (outputs, inputs), as torch.nn.Linear holds it, and `layer0.bias`.
    """
    layers: list[torch.nn.Module] = []
    for layer in range(num_layers(tensors)):
        weight_OI, bias_O = tensors[f"layer{layer}.weight"], tensors[f"layer{layer}.bias"]
        linear = torch.nn.Linear(1, 1, device="meta")  # its own initialisation would warn of a layer that is empty
        linear.out_features, linear.in_features = weight_OI.shape
        linear.weight, linear.bias = torch.nn.Parameter(weight_OI), torch.nn.Parameter(bias_O)
        layers += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def from_modules(network: torch.nn.Sequential) -> dict[str, Tensor]:
    """The tensors of a network that `modules` made, as they are named here: copies without gradient."""
    linear = [module for module in network if isinstance(module, torch.nn.Linear)]
    tensors = {}
    for layer, module in enumerate(linear):
        tensors[f"layer{layer}.weight"] = module.weight.detach().mT.clone(memory_format=torch.contiguous_format)
        tensors[f"layer{layer}.bias"] = module.bias.detach().clone()
    return tensors


def for_modules(tensors: Tensors) -> dict[str, Tensor]:
    """Turn tensors, with or without axes in front, to the orientation that `modules` takes; copies."""
    turned = {name: tensor.mT if name.endswith("weight") else tensor for name, tensor in tensors.items()}
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in turned.items()}


def by_seed(networks: Sequence[Tensors]) -> dict[str, Tensor]:
    """Name the tensors of several networks for a model's file: `seed0.layer0.weight` of shape (outputs, inputs), on the CPU."""
    return {
        f"seed{place}.{name}": tensor.cpu()
        for place, network in enumerate(networks)
        for name, tensor in for_modules(network).items()
    }


def from_seeds(tensors: Tensors) -> list[torch.nn.Sequential]:
    """Make the networks that `by_seed` named, in the order of their seeds."""
    networks: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        seed, _, parameter = name.partition(".")
        networks.setdefault(int(seed.removeprefix("seed")), {})[parameter] = tensor
    return [modules(networks[place]) for place in sorted(networks)]
