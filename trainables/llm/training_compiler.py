"""Compiling a model's passes, and saying in a sentence why that failed."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

_BACKEND = "inductor"


def compiled(module: nn.Module) -> Callable[..., Any]:
    """Compile a module when it is first called, for each shape of its own; its parameters and their names stay."""
    run: Callable[..., Any] = torch.compile(module, dynamic=False, backend=_BACKEND)  # sizes that are known make faster code
    return run


@contextlib.contextmanager
def errors_told() -> Iterator[None]:
    """Inside, a compiler that fails ends in a sentence.

    Raises:
        ValueError: if there is no C++ compiler, or it cannot compile the model.
    """
    try:
        yield
    except RuntimeError as error:
        from torch._dynamo.exc import TorchDynamoException  # takes seconds to import, and only what is compiled raises it

        if not isinstance(error, TorchDynamoException):
            raise
        cause = str(error).strip().partition("\n")[0]
        law = "a model that is to be compiled must find a compiler that can"
        raise ValueError(f"{law}, but got {cause}; install a C++ compiler, or set compile to false") from error
