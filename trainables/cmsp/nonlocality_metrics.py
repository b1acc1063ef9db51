"""What the nonlocality experiment reports, and how it follows from a sparsity curve."""

import dataclasses
import statistics
from typing import Any

import torch

from trainables.cmsp.nonlocality_config import NonlocalityConfig
from trainables.experiment import Metric
from trainables.pruning.selection import num_removed, overlap

OVERLAP_FRACTION = 0.25

METRICS = (
    Metric(
        name="target_accuracy",
        goal="max",
        unit="1",
        meaning="Accuracy on A at the trial's sparsity, after recovery on A; mean over seeds and of the latest sparsity "
        "curve, as all that follow; until there is one, of the unpruned networks.",
    ),
    Metric(name="target_accuracy_unrecovered", goal="max", unit="1", meaning="Accuracy on A there, right after pruning."),
    Metric(
        name="other_accuracy",
        goal="min",
        unit="1",
        meaning="Accuracy on B there, the best in recovery on B: low if B is unlearned for good. The best of several "
        "measurements at chance, 0.5, is 0.51 to 0.53.",
    ),
    Metric(name="other_accuracy_unrecovered", goal="min", unit="1", meaning="Accuracy on B there, right after pruning for A."),
    Metric(name="neurons_kept", goal="min", unit="neurons", meaning="Hidden neurons at the trial's sparsity."),
    Metric(
        name="updates_spent",
        goal="min",
        unit="updates",
        meaning="Updates of pretraining, lasso, and recovery of A at the trial's sparsity until it is kept, or all of them; "
        "as of the latest curve.",
    ),
    Metric(
        name="highest_sparsity",
        goal="max",
        unit="1",
        meaning="Highest sparsity of the curve up to which A stays kept with recovery; 0 if it is not even kept unpruned.",
    ),
    Metric(
        name="highest_sparsity_unrecovered",
        goal="max",
        unit="1",
        meaning="The same without recovery.",
    ),
    Metric(name="fewest_neurons", goal="min", unit="neurons", meaning="Hidden neurons at highest_sparsity."),
    Metric(
        name="other_accuracy_at_highest",
        goal="min",
        unit="1",
        meaning="Accuracy on B at highest_sparsity, the best in recovery on B.",
    ),
    Metric(
        name="overlap",
        goal=None,
        unit="1",
        meaning="Jaccard index of the quarter of neurons that matter most to A and that to B, before any lasso; chance is 0.14. "
        "It is 0 until they are scored.",
    ),
    Metric(name="target_loss_bits", goal=None, unit="bits", meaning="Loss of A, unpruned, at its latest measurement."),
    Metric(name="other_loss_bits", goal=None, unit="bits", meaning="Loss of B, unpruned, at its latest measurement."),
    Metric(name="target_atoms_loss_bits", goal=None, unit="bits", meaning="Mean loss of A's atoms, unpruned."),
    Metric(name="other_atoms_loss_bits", goal=None, unit="bits", meaning="Mean loss of B's atoms, unpruned."),
)


@dataclasses.dataclass(frozen=True, slots=True)
class SparsityCurve:
    """Accuracies of pruned copies at every sparsity of the grid.

    Attributes:
        accuracies: of "target" (A) and "other" (B), for every seed and every sparsity: before the first update of recovery and
            after each interval; a copy without a mistake has no more.
        overlap: of the neurons that matter to A and to B, before any lasso.
        updates_before: made by the unpruned networks.
    """

    config: NonlocalityConfig
    accuracies: dict[str, list[list[list[float]]]]
    overlap: float
    updates_before: int

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("accuracies", "overlap", "updates_before")}

    def mean(self, task: str, *, recovered: bool) -> list[float]:
        """Accuracy at every sparsity, mean over seeds, before recovery or after it: of A the last, of B the best.

        Each is the one that does not flatter: what is to be kept counts as it is in the end, what is to be gone gets every
        chance.
        """
        choose = (lambda found: found[0]) if not recovered else max if task == "other" else (lambda found: found[-1])
        return [statistics.fmean(map(choose, seeds)) for seeds in zip(*self.accuracies[task], strict=True)]

    def metrics(self) -> dict[str, float]:
        here, target, other = self.config.grid.index(self.config.sparsity), self.accuracies["target"], self.accuracies["other"]
        kept = [self._last_kept(seed, recovered=True) for seed in target]
        kept_unrecovered = [self._last_kept(seed, recovered=False) for seed in target]
        return {
            "target_accuracy": self.mean("target", recovered=True)[here],
            "target_accuracy_unrecovered": self.mean("target", recovered=False)[here],
            "other_accuracy": self.mean("other", recovered=True)[here],
            "other_accuracy_unrecovered": self.mean("other", recovered=False)[here],
            "neurons_kept": self._neurons(here),
            "updates_spent": self.updates_before + statistics.fmean(self._updates(seed[here]) for seed in target),
            "highest_sparsity": statistics.fmean(map(self._sparsity, kept)),
            "highest_sparsity_unrecovered": statistics.fmean(map(self._sparsity, kept_unrecovered)),
            "fewest_neurons": statistics.fmean(map(self._neurons, kept)),
            "other_accuracy_at_highest": statistics.fmean(max(seed[place or 0]) for seed, place in zip(other, kept, strict=True)),
            "overlap": self.overlap,
        }

    def last_updates(self) -> list[int]:
        """Updates of recovery on A before the last measurement at the trial's sparsity, of every seed."""
        here, every = self.config.grid.index(self.config.sparsity), self.config.updates_per_evaluation
        return [min((len(seed[here]) - 1) * every, self.config.recovery_updates) for seed in self.accuracies["target"]]

    def _last_kept(self, by_sparsity: list[list[float]], *, recovered: bool) -> int | None:
        """Place in the grid up to which A is kept; None if nowhere."""
        place = None
        for index, found in enumerate(by_sparsity):
            if found[-1 if recovered else 0] < self.config.kept_accuracy:
                break
            place = index
        return place

    def _sparsity(self, place: int | None) -> float:
        return 0.0 if place is None else self.config.grid[place]

    def _neurons(self, place: int | None) -> int:
        count = self.config.num_neurons
        return count - num_removed(count, self._sparsity(place))

    def _updates(self, accuracies: list[float]) -> int:
        """Updates of recovery until A was kept; all there are if it never was."""
        every, most = self.config.updates_per_evaluation, self.config.recovery_updates
        return next((min(i * every, most) for i, found in enumerate(accuracies) if found >= self.config.kept_accuracy), most)


def unpruned_metrics(config: NonlocalityConfig, *, target: float, other: float, updates_spent: int) -> dict[str, float]:
    """What is true before anything has been pruned, of networks with these accuracies on A and on B."""
    return {
        "target_accuracy": target,
        "target_accuracy_unrecovered": target,
        "other_accuracy": other,
        "other_accuracy_unrecovered": other,
        "neurons_kept": config.num_neurons,
        "updates_spent": updates_spent,
        "highest_sparsity": 0.0,
        "highest_sparsity_unrecovered": 0.0,
        "fewest_neurons": config.num_neurons,
        "other_accuracy_at_highest": other,
        "overlap": 0.0,
    }


def mean_overlap(scores: list[list[list[float]]]) -> float:
    """Overlap of the neurons that matter most to A and to B, mean over networks, from both scores of each."""
    return statistics.fmean(overlap([torch.tensor(a)], [torch.tensor(b)], OVERLAP_FRACTION) for a, b in scores)
