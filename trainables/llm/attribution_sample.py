"""Scores and ablations of a sample of a language model's units.

Axes: S units of the sample, L layers (the MLP of each block, then the residual stream), H units of one layer, K of them that
are ablated at once, W windows, T tokens of a window.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trainables.pruning.scores import SCORES, BatchLoss
from trainables.pruning.units import Tensors, Units


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Units of several layers, in the order in which they are ablated: a random one, so that any first part is a sample too.

    Attributes:
        layer_S: place of the unit's layer among the layers, int64.
        index_S: of the unit within its layer, int64.
    """

    layer_S: Tensor
    index_S: Tensor

    def __len__(self) -> int:
        return len(self.index_S)

    def part(self, start: int, stop: int) -> "Sample":
        """The units from one place to another."""
        return Sample(self.layer_S[start:stop], self.index_S[start:stop])

    def of(self, score_LH: Sequence[Tensor]) -> Tensor:
        """Take the units' numbers from those of all units of all layers: value_S, on the CPU."""
        found = [score_LH[layer][index] for layer, index in zip(self.layer_S.tolist(), self.index_S.tolist(), strict=True)]
        return torch.stack(found).cpu()


def draw_sample(layers: Sequence[Units], *, num_neurons: int, num_dimensions: int, generator: torch.Generator) -> Sample:
    """Draw neurons from all layers together, and residual dimensions: of each kind all, if there are fewer."""
    every = torch.cat([torch.tensor([[layer, index] for index in range(units.count)]) for layer, units in enumerate(layers)])
    is_residual = torch.tensor([units.kind == "residual" for units in layers])[every[:, 0]]
    drawn = [
        kind[torch.randperm(len(kind), generator=generator)[:num]]
        for kind, num in ((every[~is_residual], num_neurons), (every[is_residual], num_dimensions))
    ]
    mixed = torch.cat(drawn)
    mixed = mixed[torch.randperm(len(mixed), generator=generator)]
    return Sample(mixed[:, 0], mixed[:, 1])


def whole_batches(window_WT: Tensor, batch_size: int) -> Tensor:
    """The windows less those that would make a smaller batch, so that each weighs the same; all, if there is not one batch."""
    num = len(window_WT)
    return window_WT[: num - num % min(num, batch_size)]


def ablate(
    tensors: Tensors, layers: Sequence[Units], losses: Sequence[BatchLoss], sample: Sample, *, units_at_once: int
) -> Tensor:
    """Score the units of a sample, and no others, by ablation: score_S, in nats, on the CPU.

    Args:
        units_at_once: of one layer, at most: a pass holds the activations and logits of a batch this many times.

    Source: arXiv:2505.15811, Fig 11. Differs: as `SCORES["ablation"]`, in batched passes through gates.
    """
    score_S = torch.empty(len(sample))
    for layer in sorted(set(sample.layer_S.tolist())):
        units = layers[layer]
        for place_K in torch.split((sample.layer_S == layer).nonzero().squeeze(-1), units_at_once):
            index_K = sample.index_S[place_K]
            some = [_LossOfSome(loss, index_K, units.count) for loss in losses]
            chosen = dataclasses.replace(units, count=len(index_K))
            (score_K,) = SCORES["ablation"](tensors, [chosen], some, torch.Generator())
            score_S[place_K] = score_K.cpu()
    return score_S


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _LossOfSome:
    """A loss whose gates are on some units of a layer; the layer's other units stay as they are.

    Attributes:
        index_K: which units have a gate.
        count: H, of the layer.
    """

    loss: BatchLoss
    index_K: Tensor
    count: int

    @property
    def activation_shape(self) -> tuple[int, ...]:
        return self.loss.activation_shape

    def __call__(self, tensors: Tensors, gates: Mapping[str, Tensor]) -> Tensor:
        return self.loss(tensors, {name: self._spread(gate_K) for name, gate_K in gates.items()})

    def _spread(self, gate_K: Tensor) -> Tensor:
        open_H = torch.ones(self.count, dtype=gate_K.dtype, device=gate_K.device)
        return open_H.scatter(0, self.index_K.to(gate_K.device), gate_K)
