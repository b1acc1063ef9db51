"""What one trial of the CMSP curriculum trains on, and how (arXiv:2505.15811, Figs 2 and 7)."""

import dataclasses
import math
from typing import Self

from trainables.cmsp.networks import Shape
from trainables.cmsp.task import Code, Task
from trainables.laws import require

MAX_UPDATES_PER_EVALUATION = 50


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CurriculumConfig:
    """One mixture, one shape of network, several seeds. Defaults: the broad arm of Fig 2."""

    num_task_bits: int = 64
    """n, >= num_atoms * bits_per_atom; the rest are distractors. Paper: 64."""
    num_atoms: int = 4
    """m, one control bit each; atoms from `composite_size` on are unrelated to the composite. Paper: 4."""
    bits_per_atom: int = 4
    """k, the order of an atom's parity. Paper: 4."""
    composite_size: int = 4
    """The composite sums atoms 0..composite_size-1; 2..num_atoms. Paper: 4."""
    related_atoms: int = 4
    """How many of the composite's atoms are in the mixture, 0..composite_size. Paper: 4 (broad), 0 (narrow)."""
    unrelated_atoms: int = 0
    """How many atoms outside the composite are in the mixture, 0..num_atoms-composite_size: breadth without relevance."""
    intermediate_composites: int = 0
    """How many disjoint pairs {0,1}, {2,3}, ... are in the mixture; pairs are smaller than the composite."""
    unrelated_composites: int = 0
    """How many disjoint pairs of unrelated atoms are in the mixture: with as many of these as of intermediate ones, and as many
    unrelated atoms as related ones, the control arm of a two-level hierarchy."""
    composite_share: float = 0.2
    """Share of each batch that the composite gets, in (0, 1]; the other codes divide the rest. 1 if there are none."""
    depth: int = 3
    """Linear layers, >= 2. Paper: 3, and 2 for comparison."""
    width: int = 128
    """Hidden units a layer. Paper: 128."""
    learning_rate: float = 1e-3
    """Adam's, > 0. Paper: 1e-3."""
    samples_per_update: int = 10_000
    """Batch size over all codes. Paper: 2000 a code."""
    sample_budget: int = 2_000_000_000
    """Samples after which a seed that has not converged gives up. Paper: 2e9."""
    num_seeds: int = 40
    """Networks of the trial, trained as one batch. Paper: 40."""
    seed: int = 0
    """Network i draws from streams of seed + i."""
    target_loss_bits: float = 0.1
    """Converged: composite loss below this, within 100 updates. Paper: 0.1."""
    updates_per_evaluation: int = 50
    """1..50. Paper: 1."""
    samples_per_evaluation: int = 2000
    """Fresh samples a code and evaluation. Paper: 2000."""
    updates_per_step: int = 1000
    """Updates between two reports, >= updates_per_evaluation."""

    def __post_init__(self) -> None:
        unrelated = self.num_atoms - self.composite_size
        pairs = self.composite_size // 2 if self.composite_size > 2 else 0
        for name, low, high in (
            ("composite_size", 2, self.num_atoms),
            ("related_atoms", 0, self.composite_size),
            ("unrelated_atoms", 0, unrelated),
            ("intermediate_composites", 0, pairs),
            ("unrelated_composites", 0, unrelated // 2),
            ("updates_per_evaluation", 1, MAX_UPDATES_PER_EVALUATION),
        ):
            value = getattr(self, name)
            require(low <= value <= high, f"{name} must be in [{low}, {high}]", value, f"use {low} to {high}")
        for name in ("num_seeds", "samples_per_update", "samples_per_evaluation"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1", getattr(self, name), "use 1 or more")
        for name in ("learning_rate", "target_loss_bits"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"{name} must be positive and finite", value, "use the paper's value or near it")
        require(
            self.updates_per_step % self.updates_per_evaluation == 0,
            f"updates_per_step must be a multiple of updates_per_evaluation = {self.updates_per_evaluation}",
            self.updates_per_step,
            "a report needs a fresh evaluation",
        )
        require(
            self.sample_budget >= self.samples_per_update,
            f"sample_budget must be at least samples_per_update = {self.samples_per_update}",
            self.sample_budget,
            "raise it, or take smaller batches",
        )
        require(0 < self.composite_share <= 1, "composite_share must be in (0, 1]", self.composite_share, "use 0.1 to 1")
        require(
            bool(self.other_codes) or self.composite_share == 1,
            "composite_share must be 1 when nothing else is in the mixture",
            self.composite_share,
            "set it to 1, or add atoms",
        )
        _ = self.task, self.shape  # they hold laws of their own
        require(
            min(self.counts.values()) >= 1,
            "every code of the mixture must get at least one sample an update",
            f"composite_share = {self.composite_share} of {self.samples_per_update} samples for {len(self.counts)} codes",
            "take larger batches, or a share less near 0 or 1",
        )

    @property
    def task(self) -> Task:
        return Task(num_task_bits=self.num_task_bits, num_atoms=self.num_atoms, bits_per_atom=self.bits_per_atom)

    @property
    def shape(self) -> Shape:
        return Shape.of_depth(num_inputs=self.num_atoms + self.num_task_bits, depth=self.depth, width=self.width)

    @property
    def composite(self) -> Code:
        return tuple(range(self.composite_size))

    @property
    def other_codes(self) -> list[Code]:
        """Everything in the mixture but the composite."""
        atoms: list[Code] = [(atom,) for atom in range(self.related_atoms)]
        atoms += [(self.composite_size + atom,) for atom in range(self.unrelated_atoms)]
        firsts = [2 * pair for pair in range(self.intermediate_composites)]
        firsts += [self.composite_size + 2 * pair for pair in range(self.unrelated_composites)]
        return atoms + [(first, first + 1) for first in firsts]

    @property
    def counts(self) -> dict[Code, int]:
        """Samples an update for each code: the composite's share, the rest divided evenly."""
        composite = round(self.composite_share * self.samples_per_update)
        rest = self.samples_per_update - composite
        shares = len(self.other_codes)
        return {self.composite: composite} | {
            code: rest * (i + 1) // shares - rest * i // shares for i, code in enumerate(self.other_codes)
        }

    @property
    def num_updates(self) -> int:
        """Updates that the budget pays for."""
        return self.sample_budget // self.samples_per_update

    @classmethod
    def tiny(cls) -> Self:
        """Two atoms of two bits: learned in a second."""
        return cls(
            num_task_bits=6,
            num_atoms=2,
            bits_per_atom=2,
            composite_size=2,
            related_atoms=2,
            composite_share=0.4,
            width=32,
            learning_rate=5e-3,
            samples_per_update=64,
            sample_budget=64_000,
            num_seeds=2,
            samples_per_evaluation=256,
            updates_per_step=100,
        )
