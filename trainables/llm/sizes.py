"""Sizes of a language model with fewer units: of its config, and its number of parameters."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from trainables.laws import require
from trainables.llm.anatomy import Anatomy, neurons, residual
from trainables.llm.dissection import dissect
from trainables.llm.resizing import eps_of
from trainables.llm.stock import build_on_meta, changed, floats_equal_to, next_stock_width, resized_config, stock_config
from trainables.pruning.units import Tensors, Units


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """A config for a smaller model, and what its stock class makes of it.

    Attributes:
        old_width: of the residual stream as the old config has it; `width` as the new one has it.
        norm_eps: of every norm, by name; empty where no eps was asked for.
    """

    config: Any
    old_width: int
    width: int
    norm_eps: Mapping[str, float]


def shapes_with(tensors: Tensors, layers: Sequence[Units], counts: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors once each layer has so many units."""
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    for units, count in zip(layers, counts, strict=True):
        for member in units.members:
            shapes[member.parameter][member.axis] = count
    return {name: tuple(shape) for name, shape in shapes.items()}


class Counter:
    """Counts the parameters of a model with fewer units without building it.

    Args:
        config: of the model before.

    Raises:
        ValueError: if the structure is not understood.
    """

    def __init__(self, config: Any) -> None:
        model = build_on_meta(config)
        anatomy, self._tensors = dissect(model), dict(model.named_parameters())
        self._stream, self._layers = residual(anatomy, self._tensors), neurons(anatomy, self._tensors)

    def __call__(self, *, dimensions: int, neurons_kept: int) -> int:
        """Count the parameters, a shared one once.

        Args:
            dimensions: of the residual stream that stay.
            neurons_kept: in all MLPs together; which of them lose how many makes no difference.

        Raises:
            ValueError: if the model has fewer of either.

        Source: arXiv:2505.15811, section 4: for Llama-3.2-1B, D (210209 + 3 N).
        """
        available = sum(units.count for units in self._layers)
        got = f"{dimensions} of {self._stream.count} dimensions and {neurons_kept} of {available} neurons"
        is_possible = 0 <= dimensions <= self._stream.count and 0 <= neurons_kept <= available
        require(is_possible, "pruning must keep at most what there is", got, "keep fewer")
        counts: list[int] = []
        for units in self._layers:
            counts.append(min(units.count, neurons_kept - sum(counts)))
        shapes = shapes_with(self._tensors, [self._stream, *self._layers], [dimensions, *counts])
        return sum(map(math.prod, shapes.values()))


def fitting_config(model: nn.Module, anatomy: Anatomy, kept: Mapping[str, int], eps: float | None) -> Sizes:
    """Find the config whose stock class comes nearest to a model that keeps so many units.

    The MLPs' width stays as it is where they are to differ or to be empty. A width of the residual stream that the class
    refuses is rounded up.

    Args:
        kept: units that stay, by `Units.name`.
        eps: of the norms over the residual stream; None leaves it.

    Raises:
        ValueError: if the config's fields cannot be told.
    """
    config: Any = stock_config(model.config)
    built = build_on_meta(config)
    widths = {kept.get(units.name, units.count) for units in neurons(anatomy, dict(model.named_parameters()))}
    if len(widths) == 1 and min(widths) > 0:
        config = _with_mlp_width(config, anatomy, dict(built.named_parameters()), widths.pop())
        built = build_on_meta(config)
    old_width = residual(anatomy, dict(built.named_parameters())).count
    width = old_width
    if "residual" in kept:
        width = next_stock_width(config, kept["residual"])
        stream = residual(anatomy, dict(built.named_parameters()))
        wanted = shapes_with(dict(built.named_parameters()), [stream], [width])
        config = resized_config(config, "width of the residual stream", old_width, width, wanted)
    norm_eps: dict[str, float] = {}
    if eps is not None:
        config = _with_eps(config, anatomy, eps)
        norm_eps = _norm_eps(config, anatomy)
    return Sizes(config=config, old_width=old_width, width=width, norm_eps=norm_eps)


def _with_mlp_width(config: Any, anatomy: Anatomy, tensors: Tensors, width: int) -> Any:
    layers = neurons(anatomy, tensors)
    wanted = shapes_with(tensors, layers, [width] * len(layers))
    return resized_config(config, "width of the MLPs", layers[0].count, width, wanted)


def _norm_eps(config: Any, anatomy: Anatomy) -> dict[str, float]:
    """The eps of all norms of the stock class."""
    built = build_on_meta(config)
    names = [norm.name for norm in anatomy.norms] + [norm.name for norm in anatomy.inner_norms]
    return {name: eps_of(built.get_submodule(name)) for name in names}


def _with_eps(config: Any, anatomy: Anatomy, eps: float) -> Any:
    """Find the field of the norms' eps by its value, and set it."""
    old = _norm_eps(config, anatomy)[anatomy.norms[0].name]
    found = []
    for field in floats_equal_to(config, old):
        candidate = changed(config, {field: eps})
        made = _norm_eps(candidate, anatomy)
        if all(made[norm.name] == eps for norm in anatomy.norms):
            found.append((field, candidate))
    law = f"one field of the config must hold the norms' eps, {old}"
    require(len(found) == 1, law, [field for field, _ in found], "remove neurons only")
    return found[0][1]
