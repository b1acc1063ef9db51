"""Take units out of a network: mask them (zero, shapes kept) or remove them (cut out, the network is smaller).

Axes: ... any axes in front (networks), H units of one layer, D residual dimensions kept, Z removed.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainables.laws import require
from trainables.pruning.units import Tensors, Units

Place = tuple[nn.Module, str]
"""A module and the name it has for one of its parameters."""

_RESIZABLE = (nn.Linear, nn.Embedding, nn.RMSNorm)


@torch.no_grad()
def mask(tensors: Tensors, units: Units, keep_H: Tensor) -> None:
    """Zero in place all that the units not kept own: in-weights, biases and out-weights.

    Args:
        keep_H: bool; keep_...H for a choice of its own for each network.

    Raises:
        ValueError: if keep_H is not one bool a unit, or the tensors do not hold these units.

    Source: arXiv:2505.15811, section 3. Differs: everywhere the whole group; the authors' MNIST masks leave biases and
    out-weights, so that a pruned neuron goes on emitting ReLU(bias).
    """
    _require_choice(units, keep_H)
    units.check(tensors)
    for member in units.members:
        tensors[member.parameter].masked_fill_(~member.spread(keep_H), 0)


@torch.no_grad()
def remove(tensors: Tensors, layers: Sequence[Units], keep: Sequence[Tensor]) -> dict[str, Tensor]:
    """Cut units out: copies of all tensors, without gradient, smaller where the layers lie.

    Norms are sliced and no more: over fewer dimensions an RMSNorm needs the correction that `remove_units` makes.

    Args:
        keep: keep_H of each layer, bool, the same for all networks.

    Raises:
        ValueError: if a keep_H is not one bool a unit, or the tensors do not hold these units.
    """
    smaller = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    for units, keep_H in zip(layers, keep, strict=True):
        _require_one_choice(units, keep_H)
        units.check(smaller)
        for member in units.members:
            smaller[member.parameter] = smaller[member.parameter].index_select(member.axis, _index(keep_H))
    return smaller


@torch.no_grad()
def remove_units(model: nn.Module, layers: Sequence[Units], keep: Sequence[Tensor]) -> None:
    """Cut units out of a model in place; it then computes what the masked model computes.

    Parameters are replaced, so make the optimizer afterwards. Tied parameters stay tied.

    Removing Z of D + Z residual dimensions changes what RMSNorm averages over: masked, the squares' sum S is divided by
    D + Z; removed, by D. As S/D + eps (D+Z)/D = (S/(D+Z) + eps) (D+Z)/D, an eps multiplied by (D+Z)/D and a weight
    multiplied by its root give the same output.

    Args:
        model: the units lie in its Linear, Embedding and RMSNorm modules, by the names of `model.named_parameters()`.
        keep: keep_H of each layer, bool.

    Raises:
        ValueError: if the units lie in a module of another type (LayerNorm cannot be corrected: its mean and variance
            are over zeros too), if a norm would lose all dimensions, or as `remove` does. The model is then unchanged.

    Source: arXiv:2505.15811, the authors' model surgery. Differs: their correction is a norm class of its own; here the
    result is of stock modules.
    """
    places = _places(model)
    for units, keep_H in zip(layers, keep, strict=True):
        _require_one_choice(units, keep_H)
        units.check(dict(model.named_parameters(remove_duplicate=False)))
        for member in units.members:
            _require_resizable(member.parameter, places[member.parameter], keep_H)
    for units, keep_H in zip(layers, keep, strict=True):
        for member in units.members:
            _replace(places[member.parameter], member.axis, _index(keep_H))


def _places(model: nn.Module) -> dict[str, list[Place]]:
    """Where each parameter is, by each of its names; a tied one has several places."""
    by_identity: dict[int, list[Place]] = {}
    for module in model.modules():
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            by_identity.setdefault(id(parameter), []).append((module, attribute))
    return {name: by_identity[id(parameter)] for name, parameter in model.named_parameters(remove_duplicate=False)}


def _replace(places: Sequence[Place], axis: int, index: Tensor) -> None:
    """Put a slice of a parameter in all its places."""
    first_module, first_attribute = places[0]
    old = first_module.get_parameter(first_attribute)
    new = old.index_select(axis, index)
    if isinstance(first_module, nn.RMSNorm):
        new *= math.sqrt(len(old) / len(new))
    parameter = nn.Parameter(new, requires_grad=old.requires_grad)
    for module, attribute in places:
        setattr(module, attribute, parameter)
        _update_sizes(module)


def _update_sizes(module: nn.Module) -> None:
    """Make a module's own account of its sizes, and an RMSNorm's eps, follow its weight."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.RMSNorm):
        # Without an eps torch uses that of the type it computes in, which is float32 for all shorter types.
        own_eps = torch.finfo(torch.promote_types(module.weight.dtype, torch.float32)).eps
        eps = own_eps if module.eps is None else module.eps
        module.eps = eps * module.normalized_shape[0] / len(module.weight)
        module.normalized_shape = tuple(module.weight.shape)


def _require_resizable(parameter: str, places: Sequence[Place], keep_H: Tensor) -> None:
    for module, _ in places:
        law = "units can be removed from Linear, Embedding and RMSNorm modules only"
        got = f"{type(module).__name__} as the owner of {parameter}"
        require(type(module) in _RESIZABLE, law, got, "mask these units instead")
        law = f"{parameter} must keep at least one dimension"
        require(type(module) is not nn.RMSNorm or bool(keep_H.any()), law, "none", "use a lower sparsity")


def _require_choice(units: Units, keep_H: Tensor) -> None:
    law = f"keep must hold one bool for each of the {units.count} units of {units.name}"
    got = f"{keep_H.dtype} of shape {tuple(keep_H.shape)}"
    require(keep_H.dtype == torch.bool and keep_H.shape[-1:] == (units.count,), law, got, "use selection.choose_kept")


def _require_one_choice(units: Units, keep_H: Tensor) -> None:
    _require_choice(units, keep_H)
    law = f"networks that stay in one tensor must keep the same units of {units.name}"
    require(keep_H.dim() == 1, law, f"keep of shape {tuple(keep_H.shape)}", "remove from one network at a time")


def _index(keep_H: Tensor) -> Tensor:
    return keep_H.nonzero().squeeze(-1)
