"""What one trial of the CMSP nonlocality experiment trains, prunes and recovers (arXiv:2505.15811, Figs 3, 8, 9 and 10)."""

import dataclasses
import math
from typing import Literal, Self

from trainables.cmsp.networks import Shape
from trainables.cmsp.task import Code, Task
from trainables.laws import require
from trainables.pruning.scores import SCORES

Method = Literal["none", "subgradient", "proximal"]
METHODS: tuple[Method, ...] = ("none", "subgradient", "proximal")
_SAMPLES = ("pretraining_samples", "lasso_samples", "score_samples", "recovery_samples")
_UPDATES = ("pretraining_updates", "lasso_updates", "updates_per_evaluation", "updates_per_step")
_LEAST = dict.fromkeys((*_SAMPLES, *_UPDATES, "num_seeds"), 1) | {"recovery_updates": 0}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class NonlocalityConfig:
    """One pretraining mixture, one shape, one way to make the target task's neurons stand out, several seeds.

    The target task A sums atoms 0..composite_size-1, the other task B the next `composite_size`. Defaults: Fig 3, with the
    group lasso, on all seeds.
    """

    num_task_bits: int = 18
    """n, >= 2 * composite_size * bits_per_atom; the rest are distractors. Paper: 18."""
    bits_per_atom: int = 3
    """k, the order of an atom's parity. Paper: 3."""
    composite_size: int = 3
    """Atoms in A, and in B; there are twice as many in all. Paper: 3."""
    related_atoms: int = 3
    """How many of A's atoms are in the pretraining mixture, 0..composite_size. Paper: 3."""
    other_atoms: int = 3
    """How many of B's atoms are in it, 0..composite_size. Paper: 3."""
    other_composite: bool = True
    """Whether B is in it. Paper: yes."""
    depth: int = 3
    """Linear layers, >= 2. Paper: 3."""
    width: int = 256
    """Hidden units a layer. Paper: 32 to 2048; Fig 3: 256."""
    learning_rate: float = 1e-3
    """Adam's in all phases, > 0. Paper: 1e-3."""
    pretraining_samples: int = 2000
    """Samples a code and update in pretraining. Paper: 2000."""
    pretraining_updates: int = 20_000
    """Paper: 20 000."""
    method: Method = "subgradient"
    """How the group lasso is trained on A: its gradient in the loss (the paper's), a proximal step after each update, or none."""
    lasso_strength: float = 1e-3
    """Weight of the group lasso, >= 0. Paper: 1e-3. The proximal step shrinks by learning_rate * lasso_strength an update."""
    lasso_updates: int = 10_000
    """Updates on A with the group lasso. Paper: 10 000."""
    lasso_samples: int = 2000
    """Samples of A an update. Paper: 2000."""
    score: str = "ablation"
    """How neurons are ranked for A: a name of `trainables.pruning.scores.SCORES`. Paper: ablation."""
    score_samples: int = 2000
    """Samples that scores and accuracies are measured on. Paper: 2000."""
    sparsity: float = 0.9
    """Share of hidden neurons that the trial's pruned model lacks, [0, 1); a point of the sparsity curve."""
    sparsities: tuple[float, ...] = tuple(percent / 100 for percent in range(1, 99))
    """Further points of the sparsity curve, each in [0, 1); 0 is always one. Paper: 0.01, 0.02, ..., 0.98."""
    recovery_updates: int = 1000
    """Updates of each pruned copy on A or on B alone. Paper: 1000."""
    recovery_samples: int = 5000
    """Samples an update in recovery. Paper: 5000."""
    kept_accuracy: float = 0.98
    """A counts as kept at this accuracy, in (0.5, 1]. Paper: 0.98."""
    num_seeds: int = 5
    """Networks of the trial. Paper: 5."""
    seed: int = 0
    """Network i draws from streams of seed + i."""
    updates_per_evaluation: int = 50
    """Between two measurements of a pruned copy's accuracy, >= 1."""
    updates_per_step: int = 500
    """Updates between two reports, >= 1."""

    def __post_init__(self) -> None:
        for name, low in _LEAST.items():
            require(getattr(self, name) >= low, f"{name} must be at least {low}", getattr(self, name), f"use {low} or more")
        require(self.composite_size >= 2, "composite_size must be at least 2", self.composite_size, "use 3 as the paper does")
        for name in ("related_atoms", "other_atoms"):
            value, most = getattr(self, name), self.composite_size
            require(0 <= value <= most, f"{name} must be in [0, {most}]", value, f"use 0 to {most}")
        require(0 < self.learning_rate < math.inf, "learning_rate must be positive and finite", self.learning_rate, "use 1e-3")
        law = "lasso_strength must be at least 0 and finite"
        require(0 <= self.lasso_strength < math.inf, law, self.lasso_strength, "use 1e-3")
        require(self.method in METHODS, f"method must be one of {', '.join(METHODS)}", repr(self.method), "use subgradient")
        require(self.score in SCORES, f"score must be one of {', '.join(SCORES)}", repr(self.score), "use ablation")
        require(0.5 < self.kept_accuracy <= 1, "kept_accuracy must be in (0.5, 1]", self.kept_accuracy, "use 0.98")
        # JSON makes a list of a tuple, and steps of a search make 0.9000000000000001 of 0.9; 0.0 is added to be rid of -0.0
        object.__setattr__(self, "sparsities", tuple(round(float(sparsity), 9) + 0.0 for sparsity in self.sparsities))
        object.__setattr__(self, "sparsity", round(float(self.sparsity), 9) + 0.0)
        for sparsity in (self.sparsity, *self.sparsities):
            require(0 <= sparsity < 1, "sparsity must be in [0, 1)", sparsity, "use 0.95 to keep one unit in twenty")
        _ = self.task, self.shape  # they hold laws of their own

    @property
    def task(self) -> Task:
        return Task(num_task_bits=self.num_task_bits, num_atoms=2 * self.composite_size, bits_per_atom=self.bits_per_atom)

    @property
    def shape(self) -> Shape:
        return Shape.of_depth(num_inputs=self.task.num_inputs, depth=self.depth, width=self.width)

    @property
    def target(self) -> Code:
        """A, the task to keep."""
        return tuple(range(self.composite_size))

    @property
    def other(self) -> Code:
        """B, the task to lose."""
        return tuple(range(self.composite_size, 2 * self.composite_size))

    @property
    def atoms(self) -> list[Code]:
        """All atoms, A's first."""
        return [(atom,) for atom in (*self.target, *self.other)]

    @property
    def mixture(self) -> list[Code]:
        """Codes of the pretraining mixture."""
        atoms = [(atom,) for atom in (*self.target[: self.related_atoms], *self.other[: self.other_atoms])]
        return [self.target, *([self.other] if self.other_composite else []), *atoms]

    @property
    def grid(self) -> list[float]:
        """Points of the sparsity curve, ascending: 0, the trial's own, and the others."""
        return sorted({0.0, self.sparsity, *self.sparsities})

    @property
    def seeds(self) -> range:
        """Of the trial's networks."""
        return range(self.seed, self.seed + self.num_seeds)

    @property
    def num_neurons(self) -> int:
        """Hidden neurons of an unpruned network."""
        return sum(self.shape.widths)

    @classmethod
    def tiny(cls) -> Self:
        """Two atoms of one bit a task: learned in a second."""
        return cls(
            num_task_bits=4,
            bits_per_atom=1,
            composite_size=2,
            related_atoms=2,
            other_atoms=2,
            width=16,
            learning_rate=5e-3,
            pretraining_samples=32,
            pretraining_updates=300,
            method="proximal",
            lasso_strength=1.0,
            lasso_updates=200,
            lasso_samples=64,
            score_samples=200,
            sparsity=0.5,
            sparsities=(0.0, 0.5, 0.75),
            recovery_updates=60,
            recovery_samples=64,
            num_seeds=2,
            updates_per_evaluation=20,
            updates_per_step=100,
        )
