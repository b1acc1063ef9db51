"""Change what modules hold: parameters, and the numbers that they keep about them."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from trainables.laws import require


def replace_parameter(model: nn.Module, name: str, axis: int, index_H: Tensor) -> None:
    """Put a slice of a parameter in all places that hold it; sizes that their modules know follow.

    Args:
        axis: counted from the end.
        index_H: what to keep along it.
    """
    old = model.get_parameter(name)
    new = nn.Parameter(old.index_select(axis, index_H.to(old.device)), requires_grad=old.requires_grad)
    for module in model.modules():
        for attribute, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter is old:
                if attribute == "weight":
                    _follow(module, tuple(old.shape), tuple(new.shape))
                setattr(module, attribute, new)


def _follow(module: nn.Module, old: tuple[int, ...], new: tuple[int, ...]) -> None:
    """Correct the sizes that a module keeps beside its weight."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = new
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = new
    else:
        sizes = {before: after for before, after in zip(old, new, strict=True) if before != after}
        held = {name: value for name, value in vars(module).items() if not name.startswith("_")}
        for name, value in held.items():
            if type(value) is int and value in sizes:
                law = f"{type(module).__name__} must be resized along one of two unlike sizes"
                require(len(set(old)) == len(old), law, old, f"which of its sizes {name} is cannot be told")
                setattr(module, name, sizes[value])
            elif value == old and len(old) == 1:
                setattr(module, name, new)


def sizes_of(module: nn.Module) -> dict[str, Any]:
    """The sizes that a module keeps beside its weight, and those of its own parameters, as JSON has them."""
    numbers: dict[str, Any] = {
        name: value for name, value in vars(module).items() if type(value) is int and not name.startswith("_")
    }
    shape = getattr(module, "normalized_shape", None)
    numbers |= {} if shape is None else {"normalized_shape": list(shape)}
    return {"numbers": numbers, "shapes": {name: list(p.shape) for name, p in module.named_parameters(recurse=False)}}


def set_sizes(model: nn.Module, record: dict[str, Any]) -> None:
    """Give modules the sizes of a record by `sizes_of`, with parameters that hold nothing yet.

    Args:
        record: by the module's name.

    Raises:
        ValueError: if there is no such module, or it has no such parameter.
    """
    for name, sizes in record.items():
        module = dict(model.named_modules()).get(name)
        law = "the record of sizes must be of modules that the model has"
        require(module is not None, law, name, "the folder was tampered with")
        assert module is not None
        for attribute, value in sizes["numbers"].items():
            require(attribute in vars(module), law, f"{name}.{attribute}", "the folder was tampered with")
            setattr(module, attribute, tuple(value) if isinstance(value, list) else value)
        for attribute, shape in sizes["shapes"].items():
            old = dict(module.named_parameters(recurse=False)).get(attribute)
            require(old is not None, law, f"{name}.{attribute}", "the folder was tampered with")
            assert old is not None
            setattr(module, attribute, nn.Parameter(torch.empty(shape, dtype=old.dtype, device=old.device)))


def eps_of(module: nn.Module) -> float:
    """The eps of a norm, the only number with a point that it holds.

    Raises:
        ValueError: if it holds several or none.
    """
    return float(getattr(module, _eps_name(module)))


def set_eps(module: nn.Module, eps: float) -> None:
    """Give a norm another eps."""
    setattr(module, _eps_name(module), eps)


def _eps_name(module: nn.Module) -> str:
    names = [name for name, value in vars(module).items() if type(value) is float]
    law = f"a norm must hold one number with a point, its eps, so that {type(module).__name__} can be corrected"
    require(len(names) == 1, law, names, "remove neurons only")
    return names[0]


def set_multiplier(module: nn.Module, now: float, later: float) -> None:
    """Change the number that a module multiplies with, in all attributes and buffers that hold it."""
    for name, value in list(vars(module).items()):
        if type(value) is float and math.isclose(value, now, rel_tol=0.01):
            setattr(module, name, later)
    for buffer in module.buffers(recurse=False):
        if buffer.numel() == 1 and math.isclose(float(buffer), now, rel_tol=0.01):
            buffer.fill_(later)
