"""How much each unit matters: one interface for every score. Units with low scores are pruned first.

Every function of `SCORES` takes (tensors, layers, losses, generator) of one network, so without axes in front, and
returns score_H for each layer: float32, at least 0, without gradient. What a score has no use for it does not touch.

Axes: H units of one layer, B samples, ... the positions of a batch, such as (B,) samples or (B, T) tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from trainables.laws import require
from trainables.pruning.penalties import group_norms
from trainables.pruning.units import Tensors, Units

_UNITS_PER_PASS = 32  # bounds memory: an ablation pass holds the activations of one batch this many times


class BatchLoss(Protocol):
    """The loss on one batch, as a function of the network's parameters and of gates on its units."""

    @property
    def activation_shape(self) -> tuple[int, ...]:
        """The positions of the batch: (B,) or (B, T)."""
        ...

    def __call__(self, tensors: Tensors, gates: Mapping[str, Tensor]) -> Tensor:
        """Compute the mean loss over the batch's positions: a scalar, in nats, of what autograd and torch.func.vmap know.

        Args:
            gates: for each scored layer, by `Units.name`, what to multiply the activations of its units with: gate_H, or
                gate_...H with a gate for each position. A gate of 0 must do what `surgery.mask` does: a neuron's
                activation is gated after its nonlinearity, a residual dimension at the embedding and at every write.
        """
        ...


ScoreFunction = Callable[[Tensors, Sequence[Units], Sequence[BatchLoss], torch.Generator], list[Tensor]]


@torch.no_grad()
def ablation(tensors: Tensors, layers: Sequence[Units], losses: Sequence[BatchLoss], generator: torch.Generator) -> list[Tensor]:
    """Score each unit by how far the loss moves when the unit is gone: |E[loss without it - loss]| in nats.

    Raises:
        ValueError: if there are no losses.

    Source: arXiv:2505.15811, section 3 and Fig 3. Differs: gates in batched passes in place of a model copied for every
    unit; averaged over any number of batches before the absolute value, where the authors use one.
    """
    _require_losses(losses)
    gates = {units.name: _open_gate(tensors, units) for units in layers}
    scores = []
    for units in layers:
        moved = [_losses_without(tensors, units, loss, gates) - loss(tensors, gates) for loss in losses]
        scores.append(_mean(moved).abs().float())
    return scores


def _losses_without(tensors: Tensors, units: Units, loss: BatchLoss, gates: Mapping[str, Tensor]) -> Tensor:
    """The loss without each unit alone: loss_H. What comes before the layer is computed once a pass."""
    open_H = gates[units.name]
    index_H = torch.arange(units.count, device=open_H.device)

    def loss_without(index: Tensor) -> Tensor:
        return loss(tensors, {**gates, units.name: open_H * (index_H != index)})

    losses_H: Tensor = torch.func.vmap(loss_without, chunk_size=_UNITS_PER_PASS)(index_H)
    return losses_H


def attribution(
    tensors: Tensors, layers: Sequence[Units], losses: Sequence[BatchLoss], generator: torch.Generator
) -> list[Tensor]:
    """Score each unit by the first-order estimate of its ablation: |sum over its group of dL/dtheta * (-theta)|.

    The gradient is averaged over the batches with its sign.

    Raises:
        ValueError: if there are no losses.

    Source: arXiv:2505.15811, section 3, the formula of the text.
    """
    return _attribution(tensors, layers, losses, lambda gradient: gradient)


def abs_gradient_attribution(
    tensors: Tensors, layers: Sequence[Units], losses: Sequence[BatchLoss], generator: torch.Generator
) -> list[Tensor]:
    """Score each unit by |sum over its group of G * (-theta)|, where G averages |dL/dtheta| over the batches.

    The gradient's signs are lost and the parameters' stay, so this estimates no ablation; it is here to be compared.

    Raises:
        ValueError: if there are no losses.

    Source: the authors' prune_and_train.py (arXiv:2505.15811, Figs 6, 12 and 13). Differs: divided by the number of
    batches and not of documents, which scales all scores alike.
    """
    return _attribution(tensors, layers, losses, torch.abs)


def _attribution(
    tensors: Tensors, layers: Sequence[Units], losses: Sequence[BatchLoss], of_gradient: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """Attribution with the mean of `of_gradient(gradient)` over the batches for a gradient."""
    _require_losses(losses)
    gates = {units.name: _open_gate(tensors, units) for units in layers}
    names = sorted({member.parameter for units in layers for member in units.members})
    leaves = {name: tensors[name].detach().requires_grad_() for name in names}
    totals = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    for loss in losses:
        gradients = torch.autograd.grad(loss({**tensors, **leaves}, gates), list(leaves.values()))
        for total, gradient in zip(totals.values(), gradients, strict=True):
            total += of_gradient(gradient)
    changes = {name: total * -tensors[name].detach() / len(losses) for name, total in totals.items()}
    return [units.sum_by_unit(changes).abs().float() for units in layers]


def activation_attribution(
    tensors: Tensors, layers: Sequence[Units], losses: Sequence[BatchLoss], generator: torch.Generator
) -> list[Tensor]:
    """Score each unit by |sum over the batch's positions of a * dL/da|, averaged over the batches.

    The sum is the gradient with respect to a gate on the activation a. The absolute value is taken for every batch, so
    scores depend on the batch size. For a gated MLP it is the same before and after the multiplication by up.

    Raises:
        ValueError: if there are no losses.

    Source: the authors' prune_and_train_neurons.py (arXiv:2505.15811, Fig 5 and Table 1). Differs: divided by the number
    of batches, with a mean loss, where theirs divides by positions, which scales all scores of equal batches alike.
    """
    _require_losses(losses)
    by_batch = [_gate_gradients(tensors, layers, loss, ()) for loss in losses]
    return [_mean([gradient_H.abs() for gradient_H in batches]).float() for batches in zip(*by_batch, strict=True)]


def sample_activation_attribution(
    tensors: Tensors, layers: Sequence[Units], losses: Sequence[BatchLoss], generator: torch.Generator
) -> list[Tensor]:
    """Score each unit by the mean over positions of |a * dl/da|, l the position's own share of the loss, unaveraged.

    Raises:
        ValueError: if there are no losses.

    Source: arXiv:2505.15811, Fig 4: the authors' MNIST pruning, as it was meant (there its hooks never fire and all
    scores are 0). Differs: a is the activation after the nonlinearity; for ReLU the product is the same before it.
    """
    _require_losses(losses)
    by_batch = [_gate_gradients(tensors, layers, loss, loss.activation_shape) for loss in losses]
    # The mean over N positions of |N * gradient|, as the gradient is that of a mean loss: N cancels.
    totals = [[gradient.abs().flatten(0, -2).sum(0) for gradient in gradients] for gradients in by_batch]
    return [_mean(batches).float() for batches in zip(*totals, strict=True)]


def _gate_gradients(tensors: Tensors, layers: Sequence[Units], loss: BatchLoss, positions: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Gradients of the loss with respect to open gates of shape (*positions, H) on each layer."""
    frozen = {name: tensor.detach() for name, tensor in tensors.items()}
    gates = {units.name: _open_gate(tensors, units, positions).requires_grad_() for units in layers}
    return torch.autograd.grad(loss(frozen, gates), list(gates.values()))


def weight_norm(
    tensors: Tensors, layers: Sequence[Units], losses: Sequence[BatchLoss], generator: torch.Generator
) -> list[Tensor]:
    """Score each unit by the L2 norm of its whole group, biases included; needs no losses.

    Source: arXiv:2505.15811, Table 1: how networks trained with the group lasso are pruned.
    """
    return [group_norms(tensors, units).detach().float() for units in layers]


def random(tensors: Tensors, layers: Sequence[Units], losses: Sequence[BatchLoss], generator: torch.Generator) -> list[Tensor]:
    """Score the units of all layers by the ranks of one random permutation: 0, 1, 2, ..., each once; needs no losses.

    Source: arXiv:2505.15811, Fig 13. Differs: without replacement. The authors draw units with replacement, which prunes
    less than the sparsity says: 55 % where it says 80 %.
    """
    counts = [units.count for units in layers]
    rank = torch.randperm(sum(counts), generator=generator, device=generator.device).float()
    device = tensors[layers[0].members[0].parameter].device
    return list(torch.split(rank.to(device), counts))


SCORES: dict[str, ScoreFunction] = {
    score.__name__: score
    for score in (
        ablation,
        attribution,
        abs_gradient_attribution,
        activation_attribution,
        sample_activation_attribution,
        weight_norm,
        random,
    )
}
"""Every score by its name."""


def _open_gate(tensors: Tensors, units: Units, positions: tuple[int, ...] = ()) -> Tensor:
    return tensors[units.members[0].parameter].new_ones(*positions, units.count)


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean(0)


def _require_losses(losses: Sequence[BatchLoss]) -> None:
    require(len(losses) > 0, "this score needs at least one batch", "no losses", "give some, or score by weight_norm or random")
