"""What one trial of the MNIST narrowing experiment trains or prunes, and when it has succeeded (arXiv:2505.15811, Fig 4)."""

import dataclasses
import math
from typing import Literal, Self

from trainables.laws import require
from trainables.mnist.teacher import TeacherConfig

Method = Literal["group_lasso", "attribution", "weight_norm", "random", "distillation", "from_scratch"]
METHODS: tuple[Method, ...] = ("group_lasso", "attribution", "weight_norm", "random", "distillation", "from_scratch")
SCORE_OF: dict[str, str] = {"attribution": "sample_activation_attribution", "weight_norm": "weight_norm", "random": "random"}
"""Methods that prune once and recover, and the name in `trainables.pruning.scores.SCORES` that they rank by."""
LASSO_WAYS = ("mask", "proximal")
RANKINGS = ("per_layer", "global")

_POSITIVE = ("learning_rate", "lasso_strength", "mask_threshold", "clip_norm", "temperature")
_AT_LEAST_ONE = ("batch_size", "score_samples", "samples_per_check", "samples_budget", "num_seeds", "checks_per_step")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class NarrowingConfig:
    """One way to a small network that knows some classes, one size, several seeds.

    Defaults are the paper's where it has one value for all of Fig 4; otherwise they are in the middle of its sweeps.
    """

    data_dir: str | None = None
    """Folder with MNIST's IDX files, gzipped or not; None for scikit-learn's digits. Paper: MNIST."""
    kept_classes: tuple[int, ...] = (0, 2, 4, 6, 8)
    """Labels of the narrow task, each once. Paper: the even digits."""
    validation_fraction: float = 0.2
    """Of the training images, for choosing when to stop, (0, 0.5]. Paper: none, it stops on the test images."""
    teacher: TeacherConfig = dataclasses.field(default_factory=TeacherConfig)
    """The broad network that is pruned or distilled; the hidden layers of a network from scratch keep its proportions."""
    method: Method = "group_lasso"
    """How the network becomes narrow: a name of METHODS. Paper: group lasso, attribution, distillation, from scratch."""
    neurons: int = 240
    """Hidden neurons, all layers together, of the narrow network; where the group lasso ends. Paper: 24..2400."""
    learning_rate: float = 1e-3
    """Adam's. Paper: 4e-4..8e-3 for pruning, 5e-3 from scratch."""
    batch_size: int = 16
    """Images an update, a divisor of samples_per_check. Paper: 16 for pruning, 64 otherwise."""
    clip_norm: float = 1.0
    """Of each network's gradient, > 0; inf for no clipping. Paper: 1 for pruning, none otherwise."""
    lasso_strength: float = 5e-3
    """Weight of the group lasso in the loss, > 0. Paper: 1e-3..8e-3 by gradient; a proximal step takes more."""
    lasso_way: Literal["mask", "proximal"] = "mask"
    """Its gradient, and short groups are masked; or a proximal step, which makes zeros itself. Paper: mask."""
    mask_threshold: float = 0.05
    """Norm up to which a group is masked, > 0. Paper: 0.05, of weights without biases."""
    ranking: Literal["per_layer", "global"] = "per_layer"
    """Whether scores compare within a layer or between them. Paper: per layer."""
    score_samples: int = 480
    """Kept-class images that attribution reads; they count as datapoints. Paper: 480, not counted."""
    temperature: float = 20.0
    """Of the softmax in distillation, > 0. Paper: 20."""
    alpha: float = 0.1
    """Share of the labels' loss in distillation, [0, 1]. Paper: 0.1."""
    target_accuracy: float = 0.97
    """On the kept classes' validation images: reached, a network is done, (0, 1]. Paper: 0.97, on test images."""
    samples_per_check: int = 1792
    """Datapoints between two measurements, the same for every method. Paper: 1792, 1840 or 3686."""
    samples_budget: int = 50_000
    """Datapoints after which a network has failed, at least one check. Paper: 50000 for pruning."""
    candidate_ratio: float = 0.7
    """Sizes that a lasso run offers as candidates: each this share of the one before, (0, 0.99]."""
    num_seeds: int = 5
    """Networks of the trial, each with a teacher of its own. Paper: 10, and 50 from scratch, of one teacher."""
    seed: int = 0
    """Network i draws from streams of seed + i."""
    checks_per_step: int = 1
    """Checks between two reports, >= 1."""

    def __post_init__(self) -> None:
        # JSON makes lists of tuples and a dict of the teacher
        object.__setattr__(self, "kept_classes", tuple(self.kept_classes))
        if not isinstance(self.teacher, TeacherConfig):
            object.__setattr__(self, "teacher", TeacherConfig(**self.teacher))
        for name in _POSITIVE:
            require(0 < getattr(self, name), f"{name} must be positive", getattr(self, name), "see the paper's value")
        for name in _AT_LEAST_ONE:
            require(getattr(self, name) >= 1, f"{name} must be at least 1", getattr(self, name), "use 1 or more")
        law = "learning_rate, lasso_strength and temperature must be finite"
        rates = (self.learning_rate, self.lasso_strength, self.temperature)
        require(all(map(math.isfinite, rates)), law, rates, "see the paper's values")
        self._check_choices()
        law = "kept_classes must be labels, each once"
        labels = all(isinstance(label, int) and label >= 0 for label in self.kept_classes)
        is_set = labels and 0 < len(set(self.kept_classes)) == len(self.kept_classes)
        require(is_set, law, self.kept_classes, "use (0, 2, 4, 6, 8) for the even digits")
        low, high = len(self.teacher.widths), sum(self.teacher.widths)
        require(low <= self.neurons <= high, f"neurons must be in [{low}, {high}]", self.neurons, "the teacher has no more")
        law = "samples_per_check must be a multiple of batch_size"
        require(self.samples_per_check % self.batch_size == 0, law, self.samples_per_check, f"batch_size is {self.batch_size}")
        law = "samples_budget must have room for the scores' samples and one check"
        needed = self.score_cost + self.samples_per_check
        require(self.samples_budget >= needed, law, self.samples_budget, f"use {needed} or more")

    def _check_choices(self) -> None:
        for name, choices in (("method", METHODS), ("lasso_way", LASSO_WAYS), ("ranking", RANKINGS)):
            value = getattr(self, name)
            require(value in choices, f"{name} must be one of {', '.join(choices)}", repr(value), f"use {choices[0]}")
        for name in ("alpha", "target_accuracy"):
            require(0 <= getattr(self, name) <= 1, f"{name} must be in [0, 1]", getattr(self, name), "see the paper's value")
        require(self.target_accuracy > 0, "target_accuracy must be positive", self.target_accuracy, "use 0.97")
        for name, high, remedy in (("validation_fraction", 0.5, "use 0.2"), ("candidate_ratio", 0.99, "use 0.7")):
            require(0 < getattr(self, name) <= high, f"{name} must be in (0, {high}]", getattr(self, name), remedy)

    @property
    def seeds(self) -> list[int]:
        """Of every network."""
        return [self.seed + place for place in range(self.num_seeds)]

    @property
    def needs_teacher(self) -> bool:
        return self.method != "from_scratch"

    @property
    def score_cost(self) -> int:
        """Datapoints that the scores read before any training."""
        return self.score_samples if self.method == "attribution" else 0

    @property
    def num_checks(self) -> int:
        """Checks that fit into the budget."""
        return (self.samples_budget - self.score_cost) // self.samples_per_check

    @property
    def narrow_widths(self) -> tuple[int, ...]:
        """Hidden layers of a network that is born narrow, in the teacher's proportions; together `neurons`, none empty."""
        total, left, widths = sum(self.teacher.widths), self.neurons, list[int]()
        for width in self.teacher.widths:
            later = len(self.teacher.widths) - len(widths) - 1
            share = min(max(1, round(left * width / total)), left - later)
            widths.append(share)
            left, total = left - share, total - width
        return tuple(widths)

    @property
    def levels(self) -> list[int]:
        """Numbers of neurons at which a network is a result, falling; the last is `neurons`.

        A lasso run passes many sizes, every other method makes one.
        """
        if self.method != "group_lasso":
            return [self.neurons]
        size, levels = float(sum(self.teacher.widths)), list[int]()
        while size > self.neurons:
            levels.append(int(size))
            size *= self.candidate_ratio
        return [level for level in dict.fromkeys(levels) if level > self.neurons] + [self.neurons]

    @classmethod
    def tiny(cls) -> Self:
        """A few seconds on a laptop: a small teacher of the digits, and two sizes on the way."""
        teacher = TeacherConfig(widths=(24, 24), epochs=15, batch_size=64, dropout=0.0, learning_rate=5e-3)
        return cls(
            teacher=teacher, neurons=24, learning_rate=5e-3, lasso_strength=2e-2, target_accuracy=0.85, samples_per_check=320,
            samples_budget=9600, num_seeds=2, checks_per_step=4,
        )  # fmt: skip
