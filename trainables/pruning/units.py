"""Prunable units, and where each of them lies in the tensors of a network.

A network is a mapping from parameter names to tensors. A unit (a neuron, a dimension of the residual stream) owns a slice
of several of them; together these are its group. Axes are counted from the last, so that tensors may carry axes in front:
what works for one network works for a population of them.

Axes: ... any axes in front (networks), H units of one layer, I inputs, O outputs.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from typing import Literal

from torch import Tensor, nn

from trainables.laws import require

Tensors = Mapping[str, Tensor]
"""Parameters by name."""

Axis = Literal[-1, -2]
"""Counted from the end, as everywhere here."""

Kind = Literal["neuron", "gated_neuron", "residual"]

Orientation = Literal["in_out", "out_in"]
"""How weights lie: `weight[..., I, O]`, or `weight[..., O, I]` as in torch.nn.Linear."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """Where the units of one layer lie in one parameter.

    Attributes:
        axis: along which the units lie; that of a bias or a norm is -1.
        role: "weight" is a matrix, of which a unit owns a row or a column; "bias" and "norm" are vectors, of which it owns
            one number. Penalties may leave biases out.
    """

    parameter: str
    axis: Axis
    role: Literal["weight", "bias", "norm"] = "weight"

    @property
    def is_vector(self) -> bool:
        return self.role != "weight"

    def sum_by_unit(self, values: Tensor) -> Tensor:
        """Sum what each unit owns of `values`, which has the parameter's shape: total_...H."""
        return values if self.is_vector else values.sum(-3 - self.axis)

    def spread(self, value_H: Tensor) -> Tensor:
        """View one number a unit, value_...H, so that it broadcasts over the parameter."""
        return value_H if self.is_vector else value_H.unsqueeze(-3 - self.axis)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Units:
    """The prunable units of one layer.

    Attributes:
        name: unique among the layers of a network.
        count: H.
        members: all that the units own. Zeroing a unit's share of each removes the unit from what the network computes.
    """

    name: str
    kind: Kind
    count: int
    members: tuple[Member, ...]

    def members_with(self, *, biases: bool) -> list[Member]:
        """All members, or all but the biases."""
        return [member for member in self.members if biases or member.role != "bias"]

    def sum_by_unit(self, values: Tensors, *, biases: bool = True) -> Tensor:
        """Sum what each unit owns of `values`, which have the parameters' names and shapes: total_...H."""
        first, *others = (member.sum_by_unit(values[member.parameter]) for member in self.members_with(biases=biases))
        return sum(others, first)

    def check(self, tensors: Tensors) -> None:
        """Refuse tensors that do not hold these units.

        Raises:
            ValueError: naming the parameter that is missing or of another size.
        """
        for member in self.members:
            require(member.parameter in tensors, f"{self.name} needs {member.parameter}", sorted(tensors), "check the name")
            shape = tuple(tensors[member.parameter].shape)
            require(
                len(shape) >= -member.axis and shape[member.axis] == self.count,
                f"{member.parameter} must hold the {self.count} units of {self.name} along axis {member.axis}",
                f"shape {shape}",
                "check names and orientation",
            )


def mlp_neurons(
    linears: Sequence[tuple[str, str | None]], *, counts: Sequence[int], orientation: Orientation = "out_in"
) -> list[Units]:
    """Describe the hidden neurons of a stack of linear layers.

    A neuron owns its in-weights, its bias and its out-weights.

    Args:
        linears: (weight, bias or None) of every linear layer by name, from the inputs to the outputs.
        counts: hidden neurons of each layer: one number less than there are linear layers.
        orientation: of all weights.

    Returns:
        one `Units` a hidden layer, named as the weight that computes it, less ".weight".

    Raises:
        ValueError: if there are not as many counts as hidden layers.

    Source: arXiv:2505.15811, section 3 and Fig 3.
    """
    law = "counts must have a number for each hidden layer"
    require(len(counts) == len(linears) - 1, law, f"{len(counts)} for {len(linears)} linear layers", "leave the outputs out")
    along_inputs: Axis = -2 if orientation == "in_out" else -1
    along_outputs: Axis = -1 if orientation == "in_out" else -2
    layers = []
    for ((weight_in, bias), (weight_out, _)), count in zip(pairwise(linears), counts, strict=True):
        members = [Member(parameter=weight_in, axis=along_outputs), *_biases([bias] if bias else [])]
        members.append(Member(parameter=weight_out, axis=along_inputs))
        name = weight_in.removesuffix(".weight")
        layers.append(Units(name=name, kind="neuron", count=count, members=tuple(members)))
    return layers


def sequential_neurons(model: nn.Sequential) -> list[Units]:
    """Find the hidden neurons of linear layers with activations between them.

    Modules without parameters count as activations; each must act on every neuron alone, as ReLU does and Softmax does not.

    Returns:
        one `Units` a hidden layer, named as its linear layer in `model`, its members as in `model.named_parameters()`.

    Raises:
        ValueError: if another module than Linear has parameters, or layers do not fit each other.
    """
    linears = {}
    for name, module in model.named_children():
        if type(module) is nn.Linear:
            linears[name] = module
        else:
            law = "modules with parameters must be Linear"
            got = f"{type(module).__name__} {name!r}"
            require(next(module.parameters(), None) is None, law, got, "describe such a model with mlp_neurons")
    names = [(f"{name}.weight", None if linear.bias is None else f"{name}.bias") for name, linear in linears.items()]
    layers = mlp_neurons(names, counts=[linear.out_features for linear in linears.values()][:-1])
    for units in layers:
        units.check(dict(model.named_parameters()))
    return layers


def gated_neurons(tensors: Tensors, *, name: str, gate: str, up: str, down: str) -> Units:
    """Describe the neurons of a gated MLP, down(act(gate(x)) * up(x)), of torch.nn.Linear modules.

    A neuron owns a row of gate and of up, its biases there if any, and a column of down.

    Args:
        name: of the layer, such as "layers.0.mlp".
        gate: the module's name, of which "<gate>.weight" and perhaps "<gate>.bias" are in `tensors`; so `up` and `down`.

    Raises:
        ValueError: if a name is missing or the modules do not fit each other.

    Source: arXiv:2505.15811, section 4: the groups of its language models' neurons.
    """
    members = [Member(parameter=f"{module}.weight", axis=-2) for module in (gate, up)]
    members.append(Member(parameter=f"{down}.weight", axis=-1))
    return _units(tensors, name, "gated_neuron", members + _biases(_present(tensors, (gate, up))))


def residual_dimensions(
    tensors: Tensors,
    *,
    embeddings: Sequence[str],
    readers: Sequence[str],
    writers: Sequence[str],
    norms: Sequence[str],
    name: str = "residual",
) -> Units:
    """Describe the dimensions of a residual stream between torch.nn modules, all given by name.

    A dimension owns a column of every embedding and reader, a row of every writer and its bias there, and its weight (and
    bias) in every norm.

    Args:
        embeddings: write to the stream; a weight that the head shares is named here and not again as a reader.
        readers: linear modules whose input is the stream.
        writers: linear modules whose output is added to the stream.
        norms: over the stream.

    Raises:
        ValueError: if a name is missing, sizes differ, or one tensor goes by two names and so would count twice.

    Source: arXiv:2505.15811, section 4: the groups of its residual dimensions.
    """
    members = [Member(parameter=f"{module}.weight", axis=-1) for module in (*embeddings, *readers)]
    members += [Member(parameter=f"{module}.weight", axis=-2) for module in writers]
    members += [Member(parameter=f"{module}.weight", axis=-1, role="norm") for module in norms]
    units = _units(tensors, name, "residual", members + _biases(_present(tensors, (*writers, *norms))))
    for one, other in combinations([member.parameter for member in units.members], 2):
        law = "each tensor must be named once"
        require(not tensors[one].is_set_to(tensors[other]), law, f"{one} and {other}, which are tied", "leave one out")
    return units


def _biases(names: Sequence[str]) -> list[Member]:
    return [Member(parameter=name, axis=-1, role="bias") for name in names]


def _present(tensors: Tensors, modules: Sequence[str]) -> list[str]:
    """Names of the biases that these modules have."""
    return [f"{module}.bias" for module in modules if f"{module}.bias" in tensors]


def _units(tensors: Tensors, name: str, kind: Kind, members: Sequence[Member]) -> Units:
    """Count the units along the first member, and check all members."""
    first = tensors.get(members[0].parameter)
    count = 0 if first is None or first.dim() < 2 else first.shape[members[0].axis]
    units = Units(name=name, kind=kind, count=count, members=tuple(members))
    units.check(tensors)
    return units
