"""What a causal language model consists of, as plain names, and where its prunable units lie.

`trainables.llm.dissection.dissect` finds it. Names stay true when units are removed: sizes are those of the tensors.
"""

import dataclasses
from collections.abc import Iterator

from trainables.pruning.units import Axis, Kind, Member, Orientation, Tensors, Units


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """A linear module."""

    name: str
    orientation: Orientation
    has_bias: bool

    @property
    def weight(self) -> str:
        return f"{self.name}.weight"

    def inputs(self) -> Member:
        """Where its inputs lie in it."""
        axis: Axis = -1 if self.orientation == "out_in" else -2
        return Member(parameter=self.weight, axis=axis)

    def outputs(self) -> list[Member]:
        """Where its outputs lie in it."""
        axis: Axis = -2 if self.orientation == "out_in" else -1
        bias = [Member(parameter=f"{self.name}.bias", axis=-1, role="bias")] if self.has_bias else []
        return [Member(parameter=self.weight, axis=axis), *bias]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """A norm over the residual stream, or over what is written to it; `trainables.llm.probing.NormKind` tells of what kind."""

    name: str
    has_bias: bool
    is_centred: bool
    offset: int

    def members(self) -> list[Member]:
        """Where its dimensions lie in it."""
        bias = [Member(parameter=f"{self.name}.bias", axis=-1, role="bias")] if self.has_bias else []
        return [Member(parameter=f"{self.name}.weight", axis=-1, role="norm"), *bias]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InnerNorm:
    """A norm inside attention, such as that of the queries.

    Attributes:
        source: the projection of which it takes the whole output and nothing else; None if it is not that simple.
    """

    name: str
    source: Projection | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mlp:
    """A plain MLP, of one inward projection, or a gated one, of two."""

    name: str
    inward: tuple[Projection, ...]
    down: Projection


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One decoder block.

    Attributes:
        readers: projections of attention that read the residual stream.
        writers: projections of attention that write to it.
    """

    name: str
    mlp: Mlp
    readers: tuple[Projection, ...]
    writers: tuple[Projection, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """A causal language model: embeddings, blocks on a residual stream, a head.

    Attributes:
        embeddings: of tokens, and of positions if they are learned.
        norms: all that are over the residual stream's dimensions.
        inner_norms: all others.
        final_norm: the last of `norms` before the head; None if there is none.
        is_tied: the head's weight is the token embedding.
    """

    embeddings: tuple[str, ...]
    blocks: tuple[Block, ...]
    norms: tuple[Norm, ...]
    inner_norms: tuple[InnerNorm, ...]
    final_norm: Norm | None
    head: Projection
    is_tied: bool

    def readers(self) -> Iterator[Projection]:
        """All that read the residual stream, less a head that is counted as the embedding."""
        for block in self.blocks:
            yield from (*block.readers, *block.mlp.inward)
        if not self.is_tied:
            yield self.head

    def writers(self) -> Iterator[Projection]:
        """All that write to the residual stream, less the embeddings."""
        for block in self.blocks:
            yield from (*block.writers, block.mlp.down)


def neurons(anatomy: Anatomy, tensors: Tensors) -> list[Units]:
    """Describe the neurons of every block's MLP, named as the MLP.

    A neuron owns its row of each inward projection, its biases there and its column of the outward one.

    Args:
        tensors: the model's named parameters, of which the sizes are taken.

    Raises:
        ValueError: if the tensors are not those of this anatomy.

    Source: arXiv:2505.15811, section 4.
    """
    layers = []
    for block in anatomy.blocks:
        members = [member for projection in block.mlp.inward for member in projection.outputs()]
        members.append(block.mlp.down.inputs())
        kind: Kind = "gated_neuron" if len(block.mlp.inward) == 2 else "neuron"
        units = Units(name=block.mlp.name, kind=kind, count=_size(tensors, members[0]), members=tuple(members))
        units.check(tensors)
        layers.append(units)
    return layers


def residual(anatomy: Anatomy, tensors: Tensors) -> Units:
    """Describe the dimensions of the residual stream. A weight that head and embedding share is counted once.

    Args:
        tensors: the model's named parameters, of which the sizes are taken.

    Raises:
        ValueError: if the tensors are not those of this anatomy.

    Source: arXiv:2505.15811, section 4.
    """
    members = [Member(parameter=f"{name}.weight", axis=-1) for name in anatomy.embeddings]
    members += [projection.inputs() for projection in anatomy.readers()]
    members += [member for projection in anatomy.writers() for member in projection.outputs()]
    members += [member for norm in anatomy.norms for member in norm.members()]
    units = Units(name="residual", kind="residual", count=_size(tensors, members[0]), members=tuple(members))
    units.check(tensors)
    return units


def _size(tensors: Tensors, member: Member) -> int:
    """How many units lie there; 0, which the check then refuses, if there is no such tensor."""
    tensor = tensors.get(member.parameter)
    return 0 if tensor is None else tensor.shape[member.axis]
