"""Penalties that drive whole units to zero, their gradient, and the proximal step that makes the zeros exact.

Tensors may carry axes in front; then each network has its own value. What changes tensors in place is plain elementwise
arithmetic and sums over one axis of a matrix, so that a network's numbers do not depend on its company, bit for bit on
one CPU thread, from two networks up.

Axes: ... any axes in front (networks), H units of one layer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainables.pruning.units import Tensors, Units


def group_norms(tensors: Tensors, units: Units, *, biases: bool = True) -> Tensor:
    """L2 norm of all that each unit owns: norm_...H.

    The gradient of a norm that is zero is taken as zero.

    Args:
        biases: whether biases belong to the groups.
    """
    squares = {member.parameter: tensors[member.parameter].square() for member in units.members}
    return _root(units.sum_by_unit(squares, biases=biases))


def _root(square: Tensor) -> Tensor:
    """Square root whose gradient at 0 is 0, where that of sqrt is infinite and makes NaN of all that it meets."""
    is_positive = square > 0
    return square.where(is_positive, 1).sqrt().where(is_positive, 0)


def group_lasso(tensors: Tensors, layers: Sequence[Units], *, biases: bool = True) -> Tensor:
    """Sum of the norms of all units of all layers: penalty_..., one value a network.

    A parameter between two layers counts in the groups of both.

    Source: arXiv:2505.15811, section 3; with biases as in its CMSP experiments, without as in MNIST. Yuan and Lin 2006.
    Differs: the gradient of an exactly zero group is 0, where the authors' is NaN.
    """
    return _all_norms(tensors, layers, biases=biases).sum(-1)


def hoyer(tensors: Tensors, layers: Sequence[Units]) -> Tensor:
    """Group Hoyer measure ||n||_1 / ||n||_2 of the norms n of all units of all layers, biases included: penalty_....

    From 1 (one unit is left) to the root of the number of units (all alike), whatever the scale of the parameters.
    A network of zeros has 0.

    Source: the authors' group_hoyer (tuneprune17); Hoyer 2004; of groups, squared, in Yang et al. arXiv:1908.09979.
    """
    norms = _all_norms(tensors, layers)
    length = _root(norms.square().sum(-1))
    return norms.sum(-1) / length.where(length > 0, 1)


def _all_norms(tensors: Tensors, layers: Sequence[Units], *, biases: bool = True) -> Tensor:
    return torch.cat([group_norms(tensors, units, biases=biases) for units in layers], dim=-1)


def l1(tensors: Tensors, names: Sequence[str], *, num_leading: int = 0) -> Tensor:
    """Sum of |theta| over the named parameters: penalty_..., one value a network.

    Args:
        num_leading: how many axes in front count networks.

    Source: the authors' l1 (tuneprune0 to 2); Tibshirani 1996.
    """
    first, *others = (tensors[name].abs().flatten(num_leading).sum(-1) for name in names)
    return sum(others, first)


@torch.no_grad()
def add_group_lasso_gradient(
    tensors: Tensors, gradients: Tensors, layers: Sequence[Units], strength: float | Tensor, *, biases: bool = True
) -> None:
    """Add strength * d group_lasso / d theta to the gradients in place, without autograd.

    The derivative is theta / norm in each group, and 0 in a group that is zero.

    Args:
        gradients: by the names of `tensors`, in their shapes.
        strength: weight of the penalty in the loss; strength_... for one a network.

    Source: the gradient of `group_lasso`.
    """
    for units in layers:
        norm_H = group_norms(tensors, units, biases=biases)
        scale_H = (_per_network(strength) / norm_H).where(norm_H > 0, 0)
        for member in units.members_with(biases=biases):
            gradients[member.parameter].add_(tensors[member.parameter] * member.spread(scale_H))


@torch.no_grad()
def proximal_step(tensors: Tensors, layers: Sequence[Units], threshold: float | Tensor, *, biases: bool = True) -> None:
    """Shrink each group by `threshold` in place: theta *= max(0, 1 - threshold / norm). Short groups become exactly zero.

    With threshold = learning rate * strength after each gradient step on the loss alone, this is proximal gradient descent
    on loss + strength * `group_lasso`.

    Args:
        threshold: at least 0, in the unit of the parameters; threshold_... for one a network.

    Source: Parikh and Boyd 2014, Proximal Algorithms, section 6.5 (block soft thresholding).
    Differs: the paper adds the penalty to the loss. Layers that share parameters are shrunk one after the other, which
    composes the layers' proximal maps and is not the proximal map of their sum; it is where the groups are disjoint.
    """
    for units in layers:
        norm_H = group_norms(tensors, units, biases=biases)
        threshold_H = _per_network(threshold)
        factor_H = (1 - threshold_H / norm_H).where(norm_H > threshold_H, 0)
        for member in units.members_with(biases=biases):
            tensors[member.parameter].mul_(member.spread(factor_H))


def _per_network(value: float | Tensor) -> float | Tensor:
    """Let one number a network broadcast over its units."""
    return value[..., None] if isinstance(value, Tensor) else value
