"""That an anatomy is true, shown with numbers: a model whose units are put in another order computes what it did."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from trainables.laws import require
from trainables.llm.anatomy import Anatomy, neurons, residual
from trainables.llm.observation import evaluating, tokens
from trainables.pruning.units import Units

_REMEDY = "this structure is not supported"


@torch.no_grad()
def require_understood(model: nn.Module, anatomy: Anatomy) -> None:
    """Put units in another order, wherever the anatomy says that they lie: the logits must stay.

    Vectors are drawn anew, as the ones and zeros of fresh norms and biases are alike in every order.

    Raises:
        ValueError: naming the units that lie elsewhere, too.
    """
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: tensor.float() if tensor.dim() > 1 else (0.5 + torch.rand(tensor.shape, generator=generator)).to(tensor.device)
        for name, tensor in model.named_parameters()
    }
    layers = [*neurons(anatomy, tensors), residual(anatomy, tensors)]
    expected = _logits(model, tensors)
    if not _agree(expected, _logits(model, _reordered(tensors, layers, generator))):
        for units in layers:
            law = f"units of {units.name} must lie where the structure says, so that their order does not matter"
            got = "logits that change with it"
            require(_agree(expected, _logits(model, _reordered(tensors, [units], generator))), law, got, _REMEDY)
        require(False, "the order of units must not matter", "logits that change with it", _REMEDY)


def _reordered(tensors: Mapping[str, Tensor], layers: Sequence[Units], generator: torch.Generator) -> dict[str, Tensor]:
    moved = dict(tensors)
    for units in layers:
        order_H = torch.randperm(units.count, generator=generator)
        for member in units.members:
            tensor = moved[member.parameter]
            moved[member.parameter] = tensor.index_select(member.axis, order_H.to(tensor.device))
    return moved


def _logits(model: nn.Module, tensors: Mapping[str, Tensor]) -> Tensor:
    with evaluating(model):
        output = torch.func.functional_call(model, dict(tensors), (tokens(model, 8),), {"use_cache": False})
    logits: Tensor = output.logits.float()
    return logits


def _agree(expected: Tensor, found: Tensor) -> bool:
    """Whether two runs in float32 differ by rounding alone."""
    return float((expected - found).abs().max()) <= 2e-3 * float(expected.std())
