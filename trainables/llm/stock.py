"""Which config of a model's own class builds modules of given sizes. Nothing is known of the names of its fields.

A field is found by trying: those that hold the old size are changed, the class is built on the meta device, where it costs
no memory, and its shapes are compared with those that are wanted.
"""

import contextlib
import copy
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

from trainables.laws import require

Shapes = Mapping[str, tuple[int, ...]]
"""Of parameters, by name."""

Change = dict[str, Any]
"""Values for fields of a config."""

RECORD = "narrowed"
"""The config field that tells modules' sizes where they are not those of the stock class; see `trainables.llm.files`."""

_SEARCHED_WIDTHS = 512  # beyond it, a stock width is not looked for


def stock_config(config: Any) -> Any:
    """Copy a config, without what makes it build more than its stock class."""
    plain = copy.deepcopy(config)
    for field in (RECORD, "auto_map"):
        if hasattr(plain, field):
            delattr(plain, field)
    return plain


def build_on_meta(config: Any) -> nn.Module:
    """Build the stock class of a config without weights.

    Raises:
        ValueError: if the config is not one of a causal language model that transformers has.
    """
    law = "a config must be of a causal language model that transformers has"
    is_known = type(config) in AutoModelForCausalLM._model_mapping
    require(is_known, law, type(config).__name__, "load the model with AutoModelForCausalLM")
    with _quiet(), torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(stock_config(config))  # type: ignore[no-untyped-call]
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Inside, transformers does not warn of configs that are only tried."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters, one that is shared once."""
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def resized_config(config: Any, what: str, old: int, new: int, wanted: Shapes) -> Any:
    """Find the field that holds a size, and set it in a copy of the config.

    Args:
        what: is of that size, for messages.
        wanted: shapes of the stock class with the new size.

    Raises:
        ValueError: if no field makes these shapes, or several do; these are named.
    """
    if old == new:
        return config
    for changes in _changes(config, old, new):
        found = [change for change in changes if _builds(config, change, wanted)]
        if found:
            break
    law = f"one field of the config must hold the {what}, {old}"
    got = [" and ".join(change) for change in found]
    require(len(found) == 1, law, got, f"set the field for {new} yourself, or keep {old}")
    return changed(config, found[0])


def changed(config: Any, change: Change) -> Any:
    """Copy a config with other values.

    Raises:
        ValueError: if its class does not accept them.
    """
    copied = copy.deepcopy(config)
    try:
        for field, value in change.items():
            setattr(copied, field, value)
        with _quiet():
            type(copied).from_dict(stock_config(copied).to_dict())
    except Exception as error:  # the library's own validation errors are no ValueErrors
        raise ValueError(f"{type(config).__name__} must accept {change}, but got: {error}; keep another number") from error
    return copied


def adopt(config: Any, other: Any) -> None:
    """Take over, in place, what the fields of another config of the same class hold; a model's parts share one config."""
    held = config.to_dict()
    for field, value in other.to_dict().items():
        if field not in held or held[field] != value:
            setattr(config, field, value)


def floats_equal_to(config: Any, value: float) -> list[str]:
    """Fields that hold a number."""
    return [field for field, held in stock_config(config).to_dict().items() if type(held) is float and held == value]


def next_stock_width(config: Any, width: int) -> int:
    """The smallest width of the residual stream, at least `width`, that the stock class accepts.

    Many families ask for a multiple of the number of heads, though nothing they compute needs it.

    Raises:
        ValueError: if there is none below the model's own.
    """
    old = int(config.hidden_size)
    for candidate in range(width, min(old, width + _SEARCHED_WIDTHS) + 1):
        if _is_accepted(config, {"hidden_size": candidate}):
            return candidate
    raise ValueError(f"a stock width must lie between {width} and {old}, but got none; keep more dimensions")


def _changes(config: Any, old: int, new: int) -> Iterator[list[Change]]:
    """What may set a new size, the likeliest first.

    Fields that hold the old size; these with the size of a head, which otherwise would follow the width; fields that are
    None, which stands for a multiple of another, such as 4 times the width.
    """
    held = stock_config(config).to_dict()
    fields = [field for field, value in held.items() if type(value) is int and value == old]
    yield [{field: new} for field in fields]
    if getattr(config, "head_dim", None) is None and hasattr(config, "num_attention_heads"):
        yield [{field: new, "head_dim": old // config.num_attention_heads} for field in fields]
    yield [{field: new} for field, value in held.items() if value is None]


def _builds(config: Any, change: Change, wanted: Shapes) -> bool:
    try:
        return shapes_of(build_on_meta(changed(config, change))) == wanted
    except Exception:  # a class may fail in any way on a value that it was not made for
        return False


def _is_accepted(config: Any, change: Change) -> bool:
    try:
        changed(config, change)
    except ValueError:
        return False
    return True
