"""Compositional multitask sparse parity: the task, drawn entirely on the device.

Axes: P networks, B samples, Y bytes of task bits, M control bits (one an atom), N task bits, I columns of a sample.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trainables.cmsp.networks import pad
from trainables.laws import require
from trainables.randomness import draw_words

Code = tuple[int, ...]
"""The atoms that are active in a sample: one for an atomic subtask, several for a composite."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """Which bits an atom owns: atom i owns task bits i*k .. i*k+k-1; those that no atom owns are distractors.

    Source: arXiv:2505.15811, section 2 (control bits, disjoint subsets, codes).
    """

    num_task_bits: int
    num_atoms: int
    bits_per_atom: int

    def __post_init__(self) -> None:
        require(self.num_atoms >= 1, "num_atoms must be at least 1", self.num_atoms, "use one control bit or more")
        require(self.bits_per_atom >= 1, "bits_per_atom must be at least 1", self.bits_per_atom, "use 3 or 4 as the paper does")
        owned = self.num_atoms * self.bits_per_atom
        require(
            self.num_task_bits >= owned,
            f"num_task_bits must be at least num_atoms * bits_per_atom = {owned}",
            self.num_task_bits,
            "atoms own disjoint bits: use more task bits or fewer atoms",
        )

    @property
    def num_inputs(self) -> int:
        return self.num_atoms + self.num_task_bits

    def positions(self, code: Code) -> list[int]:
        """Indices, among the task bits, of those whose parity is the label of this code."""
        k = self.bits_per_atom
        return [atom * k + offset for atom in code for offset in range(k)]


class Batches:
    """Draws batches with a fixed number of samples for each code, for P networks at once.

    Samples stand grouped by code, in the order of `counts`; for training and for losses the order does not matter. What
    every batch has in common (control bits, the 1, zeros) is written once.

    Args:
        counts: samples a network for each code; codes with none are left out. Of all networks, or of each its own, with as
            many samples in all.
        key_P: one stream a network (`trainables.randomness.stream_key`), on the device that shall draw.
    """

    def __init__(self, task: Task, counts: Mapping[Code, int] | Sequence[Mapping[Code, int]], key_P: Tensor) -> None:
        mixtures, place_P = _distinct([counts] if isinstance(counts, Mapping) else counts)
        totals = {sum(mixture.values()) for mixture in mixtures}
        self.num_samples = min(totals)
        require(self.num_samples > 0, "a batch must hold at least one sample", counts, "give some code a sample")
        require(len(totals) == 1, "batches of all networks must be of one size", sorted(totals), "train them apart")
        self.counts, self.key_P = counts, key_P
        device = key_P.device
        self._num_bytes = -(-task.num_task_bits // 8)
        self._num_task_bits = task.num_task_bits
        self.words_per_draw = -(-self.num_samples * self._num_bytes // 8)
        byte = torch.arange(256, device=device)
        self._bits_of_byte = ((byte[:, None] >> torch.arange(8, device=device)) & 1).float()
        self._parity_of_byte = self._bits_of_byte.sum(1).remainder(2)
        tables = [self._tables(task, mixture) for mixture in mixtures]
        control_PBM, self._mask_PBY = (torch.stack(parts)[place_P].to(device) for parts in zip(*tables, strict=True))
        self._x_PBI = torch.zeros(len(key_P), self.num_samples, pad(task.num_inputs + 1), device=device)
        self._x_PBI[..., : task.num_atoms] = control_PBM
        self._x_PBI[..., task.num_inputs] = 1.0
        self._task_PBN = self._x_PBI[..., task.num_atoms : task.num_inputs]

    def _tables(self, task: Task, counts: Mapping[Code, int]) -> tuple[Tensor, Tensor]:
        """Control bits of every sample, and which bits of its bytes its label sums."""
        controls, masks = [], []
        for code, count in counts.items():
            control_M = torch.zeros(task.num_atoms)
            control_M[list(code)] = 1.0
            mask_Y = torch.zeros(self._num_bytes, dtype=torch.uint8)
            for position in task.positions(code):
                mask_Y[position // 8] |= 1 << (position % 8)
            controls.append(control_M.expand(count, -1))
            masks.append(mask_Y.expand(count, -1))
        return torch.cat(controls), torch.cat(masks)

    def draw(self, index: Tensor | int) -> tuple[Tensor, Tensor]:
        """Draw batch number `index` of every stream: the same index gives the same batch.

        Returns:
            x_PBI: control bits, task bits, a 1, zeros up to `networks.Shape.num_columns`; float32. The next draw overwrites it.
            y_PB: parity labels, 0.0 or 1.0; float32.
        """
        word_PW = draw_words(self.key_P, index * self.words_per_draw, self.words_per_draw)
        byte_PBY = word_PW.view(torch.uint8)[:, : self.num_samples * self._num_bytes].view(len(self.key_P), self.num_samples, -1)
        bits_QN = self._bits_of_byte.index_select(0, byte_PBY.reshape(-1).int())
        self._task_PBN.copy_(bits_QN.view(*byte_PBY.shape[:2], -1)[..., : self._num_task_bits])
        return self._x_PBI, self._labels(byte_PBY)

    def _labels(self, byte_PBY: Tensor) -> Tensor:
        folded_PB, *others = (byte_PBY & self._mask_PBY).unbind(-1)
        for other_PB in others:
            folded_PB = folded_PB ^ other_PB
        return self._parity_of_byte.index_select(0, folded_PB.reshape(-1).int()).view(folded_PB.shape)


def _distinct(mixtures: Sequence[Mapping[Code, int]]) -> tuple[list[dict[Code, int]], list[int]]:
    """Mixtures that differ, without codes that get nothing; and of every mixture, its place among them."""
    found = [{code: count for code, count in mixture.items() if count > 0} for mixture in mixtures]
    keys = [tuple(mixture.items()) for mixture in found]
    distinct = list(dict.fromkeys(keys))
    places = [distinct.index(key) for key in keys]
    if len(distinct) == 1:
        places = [0]  # one for all, whatever their number
    return [dict(key) for key in distinct], places
