"""Curriculum trials of one shape as one population: which can be packed, and when it pays."""

import dataclasses
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

from trainables.cmsp.curriculum_config import CurriculumConfig
from trainables.cmsp.curriculum_training import Training
from trainables.packing import Outcome, Pack

if TYPE_CHECKING:
    from trainables.cmsp.curriculum import Curriculum

_FEW_NUMBERS, _MANY_NUMBERS = 5_000, 80_000  # of a layer's activations in an update
_MAY_DIFFER = {
    "related_atoms", "unrelated_atoms", "intermediate_composites", "unrelated_composites", "composite_share",
    "learning_rate", "num_seeds", "seed", "target_loss_bits", "sample_budget",
}  # fmt: skip


class CurriculumPack(Pack["Curriculum"]):
    """Trains the networks of all members as one population."""

    def __init__(self, members: Sequence["Curriculum"]) -> None:
        super().__init__(members)
        self._training = Training([member.record for member in members])

    def _step(self) -> list[Outcome]:
        errors = self._training.advance()
        return [errors.get(member.record) or member.record.report() for member in self.members]

    def drop(self, member: "Curriculum") -> None:
        super().drop(member)
        self._training.drop(member.record)


def pack_key(config: CurriculumConfig) -> Hashable:
    """All but rates, mixtures, seeds and their number, and targets; of the budget, its number of updates."""
    names = (field.name for field in dataclasses.fields(config) if field.name not in _MAY_DIFFER)
    return (*(getattr(config, name) for name in names), config.num_updates)


def pack_size(config: CurriculumConfig) -> int:
    """How many trials to train as one on a CPU.

    Two packs of 8 networks on two cores train 5 times the trials a second of two workers without where a network is small
    (width 16, 48 samples an update), 2.7 times at width 64 and 150 samples, 1.2 times at 128 and 600, no more beyond: there
    matrix products fill a core alone. Below width 32 and 150 samples 16 are better than 8 (`tests/benchmarks/packing.py`).
    """
    numbers = config.width * config.samples_per_update
    num_networks = 16 if numbers <= _FEW_NUMBERS else 8 if numbers <= _MANY_NUMBERS else 1
    return max(1, num_networks // config.num_seeds)
