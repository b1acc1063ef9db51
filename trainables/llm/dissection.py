"""Find a model's anatomy by structure: what is called when, of which shape, and what single modules compute.

No class and no attribute of any family is known here. That everything was understood is then checked with numbers, see
`trainables.llm.verification`.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from torch import nn

from trainables.laws import require
from trainables.llm.anatomy import Anatomy, Block, InnerNorm, Mlp, Norm, Projection
from trainables.llm.observation import Call, observe
from trainables.llm.probing import is_identity, norm_kind, orientation_of, own_shapes
from trainables.llm.verification import require_understood

_REMEDY = "this structure is not supported"


def dissect(model: nn.Module, *, verify: bool = True) -> Anatomy:
    """Find embeddings, blocks, projections, norms and head of a causal language model of transformers.

    Args:
        model: on any device; one on the meta device is known by shapes alone.
        verify: check with numbers that all of it was understood, which takes two short runs and a copy of the parameters.

    Raises:
        ValueError: naming the module that is not understood.
    """
    calls = observe(model)
    parts = _Parts(calls, _stack(model))
    anatomy = parts.anatomy(_is_tied(model, parts))
    if verify and not next(model.parameters()).is_meta:
        require_understood(model, anatomy)
    return anatomy


@dataclasses.dataclass(frozen=True, slots=True)
class _Group:
    """The projections that lie side by side in one module, in the order of their calls."""

    name: str
    projections: list[Projection]
    shapes: list[tuple[int, int]]  # (I, O) of each

    def __str__(self) -> str:
        members = ", ".join(
            f"{projection.name} {size_in}->{size_out}"
            for projection, (size_in, size_out) in zip(self.projections, self.shapes, strict=True)
        )
        return f"{self.name} ({members})"


class _Parts:
    """The calls of one run, sorted by what they are."""

    def __init__(self, calls: Mapping[str, Call], blocks: Sequence[str]) -> None:
        self.calls, self.blocks = calls, blocks
        self.embeddings = [name for name, call in calls.items() if isinstance(call.module, nn.Embedding)]
        require(len(self.embeddings) > 0, "a language model must have an Embedding", "none", _REMEDY)
        self.width = self._module(self.embeddings[0]).weight.shape[1]
        self.projections: dict[str, Projection] = {}
        self.norms: dict[str, Norm] = {}
        for name, call in calls.items():
            if name not in self.embeddings and own_shapes(call.module):
                self._sort(name, call.module)

    def _module(self, name: str) -> nn.Embedding:
        module = self.calls[name].module
        assert isinstance(module, nn.Embedding)
        got = f"{module.weight.shape[1]} in {name}"
        width = getattr(self, "width", module.weight.shape[1])
        require(module.weight.shape[1] == width, f"all embeddings must have the width {width}", got, _REMEDY)
        return module

    def _sort(self, name: str, module: nn.Module) -> None:
        orientation, kind, has_bias = orientation_of(module), norm_kind(module), "bias" in own_shapes(module)
        law = "every module with parameters must be an embedding, a linear map or a norm"
        require(orientation is not None or kind is not None, law, f"{name} ({type(module).__name__})", _REMEDY)
        if orientation is not None:
            self.projections[name] = Projection(name=name, orientation=orientation, has_bias=has_bias)
        elif kind is not None:
            self.norms[name] = Norm(name=name, has_bias=has_bias, is_centred=kind.is_centred, offset=kind.offset)

    def anatomy(self, is_tied: bool) -> Anatomy:
        """Put the parts together."""
        for name in self.embeddings:
            self._module(name)
        groups = {block: self._groups(block) for block in self.blocks}
        inside = tuple(f"{group.name}." for block, held in groups.items() for group in held if group.name != block)
        outer = {name: norm for name, norm in self.norms.items() if not name.startswith(inside)}
        self._require_widths(outer, inside)
        inner = [self._inner(name) for name in self.norms if name not in outer]
        last = [norm for name, norm in outer.items() if not self._is_in_block(name)][-1:]
        return Anatomy(
            embeddings=tuple(self.embeddings), blocks=tuple(self._block(name, held) for name, held in groups.items()),
            norms=tuple(outer.values()), inner_norms=tuple(inner), final_norm=last[0] if last else None,
            head=self.head(), is_tied=is_tied,
        )  # fmt: skip

    def head(self) -> Projection:
        """The only projection outside the blocks."""
        outside = [projection for name, projection in self.projections.items() if not self._is_in_block(name)]
        law = "there must be one linear map outside the blocks, the head"
        require(len(outside) == 1, law, [projection.name for projection in outside], _REMEDY)
        return outside[0]

    def _is_in_block(self, name: str) -> bool:
        return name.startswith(tuple(f"{block}." for block in self.blocks))

    def _groups(self, block: str) -> list[_Group]:
        by_parent: dict[str, list[Projection]] = {}
        for name, projection in self.projections.items():
            if name.startswith(f"{block}."):
                by_parent.setdefault(name.rpartition(".")[0], []).append(projection)
        return [_Group(parent, held, [self._shape(one) for one in held]) for parent, held in by_parent.items()]

    def _shape(self, projection: Projection) -> tuple[int, int]:
        first, second = own_shapes(self.calls[projection.name].module)["weight"]
        return (second, first) if projection.orientation == "out_in" else (first, second)

    def _block(self, name: str, groups: Sequence[_Group]) -> Block:
        mlps = [group for group in groups if self._is_mlp(group)]
        remedy = self._fused_remedy(groups)
        law = f"{name} must have one MLP: one or two linear maps in and one out"
        require(len(mlps) == 1, law, "; ".join(map(str, mlps or groups)), remedy)
        *inward, down = mlps[0].projections
        readers, writers = [], []
        for group in groups:
            if group is not mlps[0]:
                law = f"what is not the MLP in {name} must end with a linear map to the residual stream of width {self.width}"
                require(group.shapes[-1][1] == self.width, law, group, _REMEDY)
                *others, writer = zip(group.projections, group.shapes, strict=True)
                readers += [projection for projection, (size_in, _) in others if size_in == self.width]
                writers.append(writer[0])
        mlp = Mlp(name=mlps[0].name, inward=tuple(inward), down=down)
        return Block(name=name, mlp=mlp, readers=tuple(readers), writers=tuple(writers))

    def _is_mlp(self, group: _Group) -> bool:
        *inward, (size_in, size_out) = group.shapes
        return len(inward) in (1, 2) and size_out == self.width and set(inward) == {(self.width, size_in)}

    def _fused_remedy(self, groups: Sequence[_Group]) -> str:
        fused = [
            group.projections[0].name
            for group in groups
            if len(group.shapes) == 2 and group.shapes[0] == (self.width, 2 * group.shapes[1][0])
        ]
        return f"{fused[-1]} fuses gate and up; split it in two modules" if fused else _REMEDY

    def _require_widths(self, outer: Mapping[str, Norm], inside: tuple[str, ...]) -> None:
        """Refuse what meets the residual stream and is neither a norm over it nor the identity."""
        for name, norm in outer.items():
            size = own_shapes(self.calls[name].module)["weight"][0]
            law = f"norms outside attention must be over the residual stream of width {self.width}"
            require(size == self.width, law, f"{size} in {norm.name}", _REMEDY)
        for name, call in self.calls.items():
            if not own_shapes(call.module) and call.width == self.width and call.y is not None and not name.startswith(inside):
                law = "modules without parameters must hand the residual stream through"
                require(is_identity(call.module, self.width), law, f"{name} ({type(call.module).__name__})", _REMEDY)

    def _inner(self, name: str) -> InnerNorm:
        sources = [one for one in self.projections.values() if self.calls[name].takes_all_of(self.calls[one.name])]
        return InnerNorm(name=name, source=sources[0] if len(sources) == 1 else None)


def _stack(model: nn.Module) -> list[str]:
    """Names of the decoder blocks."""
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and _owns(module)]
    outermost = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    require(len(outermost) == 1, "there must be one stack of blocks, in one ModuleList", outermost, _REMEDY)
    stack = model.get_submodule(outermost[0])
    return [f"{outermost[0]}.{name}" for name, _ in stack.named_children()]


def _owns(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _is_tied(model: nn.Module, parts: _Parts) -> bool:
    """Whether head and token embedding share their weight; nothing else may be shared."""
    names = dict(model.named_parameters(remove_duplicate=False))
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    shared = {name: first[id(parameter)] for name, parameter in names.items() if first[id(parameter)] != name}
    head, embedding = f"{parts.head().name}.weight", f"{parts.embeddings[0]}.weight"
    law = "head and token embedding only may share a parameter"
    require(set(shared.items()) <= {(head, embedding)}, law, shared, _REMEDY)
    return head in shared
