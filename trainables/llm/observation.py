"""One run of a model, watched: which modules were called, in which order, with what.

A model on the meta device runs too: of it only shapes are seen.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from trainables.laws import require

NUM_TOKENS = 4
"""How long the two sequences of the watched run are."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One module's part in a run.

    Attributes:
        x: the first tensor it got, if any.
        y: what it returned, if that is a tensor.
    """

    name: str
    module: nn.Module
    x: Tensor | None
    y: Tensor | None

    @property
    def width(self) -> int:
        """Size of the last axis of the input; 0 without one."""
        return 0 if self.x is None or self.x.dim() < 2 else self.x.shape[-1]

    def takes_all_of(self, other: "Call") -> bool:
        """Whether the input is a view of everything that the other call returned."""
        if self.x is None or other.y is None or self.x.numel() != other.y.numel():
            return False
        return bool(self.x.untyped_storage()._cdata == other.y.untyped_storage()._cdata)


def observe(model: nn.Module) -> dict[str, Call]:
    """Run the model once on two short sequences: all calls of modules that are leaves or own parameters, in their order.

    Raises:
        ValueError: naming a module that owns parameters and is called never or twice.
    """
    calls: list[Call] = []
    watched = {name: module for name, module in model.named_modules() if _is_watched(module)}
    hooks = [
        module.register_forward_hook(_recorder(calls, name), with_kwargs=True, always_call=False)
        for name, module in watched.items()
    ]
    try:
        _run(model)
    finally:
        for hook in hooks:
            hook.remove()
    _require_one_call_each(watched, [call.name for call in calls])
    return {call.name: call for call in calls}


def tokens(model: nn.Module, length: int = NUM_TOKENS) -> Tensor:
    """Two different sequences of tokens that every vocabulary has: token_BT."""
    rows = next(module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding))
    device = next(model.parameters()).device
    return (torch.arange(2 * length, device=device) * 7 + 1).reshape(2, length) % rows


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes without dropout and gradients, and in full precision; then all is as it was."""
    modes = {module: module.training for module in model.modules()}
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        for module, was_training in modes.items():
            module.training = was_training


def _run(model: nn.Module) -> None:
    with evaluating(model):
        if not next(model.parameters()).is_meta:
            model(tokens(model), use_cache=False)
            return
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:  # on plain meta tensors transformers asks for values
            held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
            fake: dict[str, Tensor] = {name: mode.from_tensor(tensor) for name, tensor in held.items()}
            token_BT = mode.from_tensor(tokens(model))
            torch.func.functional_call(model, fake, (token_BT,), {"use_cache": False})


def _is_watched(module: nn.Module) -> bool:
    owns = next(module.parameters(recurse=False), None) is not None
    return owns or next(module.children(), None) is None


def _recorder(calls: list[Call], name: str) -> Callable[..., None]:
    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        x = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        calls.append(Call(name=name, module=module, x=x, y=output if isinstance(output, Tensor) else None))

    return record


def _require_one_call_each(watched: dict[str, nn.Module], called: list[str]) -> None:
    for name, module in watched.items():
        if next(module.parameters(recurse=False), None) is not None:
            law = "every module with parameters must be used once a run"
            got = f"{name} ({type(module).__name__}) used {called.count(name)} times"
            require(called.count(name) == 1, law, got, "this structure is not supported")
