"""What a narrow language model has cost, keeps and has lost: the books of one trial."""

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from trainables.experiment import Metric
from trainables.llm.narrowing_config import NarrowingConfig

METRICS = (
    Metric(name="kept_loss_nats", goal="min", unit="nats", meaning="held-out loss a token on the kept domain"),
    Metric(
        name="other_loss_nats", goal="max", unit="nats", meaning="held-out loss a token on the other domains, their mean"
    ),
    Metric(
        name="pruned_loss_nats", goal="min", unit="nats", 
        meaning="kept_loss_nats right after pruning, or of an untrained model; as it is before that",
    ),
    Metric(
        name="relearned_loss_nats", goal="max", unit="nats",
        meaning="other_loss_nats after a few updates on the other domains, at the best of the learning rates",
    ),
    Metric(name="loss_nats/*", goal=None, unit="nats", meaning="held-out loss a token on each domain"),
    Metric(
        name="pruned_loss_nats/*", goal=None, unit="nats",
        meaning="loss_nats of each domain right after pruning, or of an untrained model; as it is before that",
    ),
    Metric(name="tokens_spent", goal="min", unit="tokens", meaning="read by scores, lasso and recovery; not the base model's"),
    Metric(
        name="tokens_to_target", goal="min", unit="tokens",
        meaning="tokens_spent when kept_loss_nats first was at the target in recovery; all that were spent if it never was",
    ),
    Metric(name="reached_target", goal="max", unit="1", meaning="1 if the target was reached, else 0"),
    Metric(
        name="flops_spent", goal="min", unit="FLOP",
        meaning="6 a parameter and token that was learned from or scored on, 2 where the base model only answered",
    ),
    Metric(name="parameters_kept", goal="min", unit="parameters", meaning="of the narrow model, tied ones counted once"),
    Metric(name="neurons_kept", goal="min", unit="neurons", meaning="of all MLPs together"),
    Metric(name="least_neurons", goal=None, unit="neurons", meaning="of the block that has fewest"),
    Metric(name="neurons_of_block/*", goal=None, unit="neurons", meaning="neurons_kept of each block, from the first"),
    Metric(name="dimensions_kept", goal="min", unit="dimensions", meaning="of the residual stream"),
)  # fmt: skip


class Ledger:
    """Adds up what a trial spends, and remembers what it measured.

    Args:
        num_base_parameters: of the base model, which a teacher's answers cost.

    Attributes:
        history: rows of tokens spent, then the loss of each domain by name, ascending.
    """

    def __init__(self, config: NarrowingConfig, *, num_base_parameters: int) -> None:
        self._config = config
        self._num_base_parameters = num_base_parameters
        self._score_tokens, self._score_flops = 0, 0.0
        self._trained: dict[str, int] = {"lasso": 0, "recovery": 0}
        self._flops = {"lasso": 0.0, "recovery": 0.0}
        self._losses: dict[str, float] = {}
        self._pruned: dict[str, float] | None = None
        self._tokens_to_target: int | None = None
        self._sizes = {"parameters": 0, "dimensions": 0}
        self.neurons: list[int] = []
        self.history: list[list[float]] = []

    @property
    def tokens_spent(self) -> int:
        trainings = {"lasso": self._config.lasso, "recovery": self._config.recovery}
        each = {stage: training.batch_size * training.length for stage, training in trainings.items()}
        return self._score_tokens + sum(updates * each[stage] for stage, updates in self._trained.items())

    @property
    def num_parameters(self) -> int:
        """Of the model as it was noted last."""
        return self._sizes["parameters"]

    @property
    def flops_spent(self) -> float:
        return self._score_flops + sum(self._flops.values())

    def note_scores(self, num_tokens: int, num_parameters: int) -> None:
        """Scores read so many tokens, forward and backward."""
        self._score_tokens, self._score_flops = num_tokens, 6.0 * num_tokens * num_parameters

    def note_training(self, stage: str, num_updates: int, num_parameters: int) -> None:
        """A stage has made so many updates in all, of a model of this size."""
        before = self.tokens_spent
        self._trained[stage] = num_updates
        asked = 2.0 * self._num_base_parameters if stage == "recovery" and self._config.teacher_weight else 0.0
        self._flops[stage] += (self.tokens_spent - before) * (6.0 * num_parameters + asked)

    def note_sizes(self, num_parameters: int, neurons: Sequence[int], dimensions: int) -> None:
        """Of the model as it is now, of which `neurons` counts those of each block."""
        self._sizes = {"parameters": num_parameters, "dimensions": dimensions}
        self.neurons = list(neurons)

    def note_losses(self, losses: Mapping[str, float]) -> None:
        """Held-out losses of all domains, now."""
        self._losses = dict(sorted(losses.items()))
        self.history.append([self.tokens_spent, *self._losses.values()])
        is_recovering = self._pruned is not None
        if is_recovering and self._tokens_to_target is None and self._kept_loss_nats <= self._config.target_loss_nats:
            self._tokens_to_target = self.tokens_spent

    def note_pruned(self) -> None:
        """The losses that were measured last are those before any recovery."""
        self._pruned = self._losses
        if self._kept_loss_nats <= self._config.target_loss_nats:
            self._tokens_to_target = self.tokens_spent

    @property
    def _kept_loss_nats(self) -> float:
        return self._losses[self._config.kept_domain]

    def metrics(self, relearned: Sequence[float]) -> dict[str, float]:
        """All metrics.

        Args:
            relearned: losses on the other domains after relearning, of the learning rates tried so far.
        """
        kept, to_target = self._config.kept_domain, self._tokens_to_target
        losses = loss_metrics(self._losses, kept)
        pruned = self._losses if self._pruned is None else self._pruned
        return losses | {
            "pruned_loss_nats": pruned[kept],
            "relearned_loss_nats": min(relearned, default=losses["other_loss_nats"]),
            **{f"pruned_loss_nats/{_plain(domain)}": loss for domain, loss in pruned.items()},
            "tokens_spent": self.tokens_spent,
            "tokens_to_target": self.tokens_spent if to_target is None else to_target,
            "reached_target": float(to_target is not None),
            "flops_spent": self.flops_spent,
            **size_metrics(self._sizes["parameters"], self.neurons, self._sizes["dimensions"]),
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "score_tokens": self._score_tokens,
            "score_flops": self._score_flops,
            "trained": dict(self._trained),
            "flops": dict(self._flops),
            "losses": dict(self._losses),
            "pruned": None if self._pruned is None else dict(self._pruned),
            "tokens_to_target": self._tokens_to_target,
            "sizes": dict(self._sizes),
            "neurons": list(self.neurons),
            "history": [list(row) for row in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._score_tokens, self._score_flops = state["score_tokens"], state["score_flops"]
        self._trained, self._flops, self._losses = dict(state["trained"]), dict(state["flops"]), dict(state["losses"])
        self._pruned, self._tokens_to_target = state["pruned"], state["tokens_to_target"]
        self._sizes, self.neurons = dict(state["sizes"]), list(state["neurons"])
        self.history = [list(row) for row in state["history"]]


def loss_metrics(losses: Mapping[str, float], kept_domain: str) -> dict[str, float]:
    """The metrics that follow from the held-out losses of all domains."""
    losses = dict(sorted(losses.items()))  # a sum is rounded by its order
    return {
        "kept_loss_nats": losses[kept_domain],
        "other_loss_nats": statistics.fmean(loss for domain, loss in losses.items() if domain != kept_domain),
        **{f"loss_nats/{_plain(domain)}": loss for domain, loss in losses.items()},
    }


def size_metrics(num_parameters: int, neurons: Sequence[int], dimensions: int) -> dict[str, float]:
    """The metrics that follow from a model's sizes, of which `neurons` counts those of each block."""
    return {
        "parameters_kept": num_parameters,
        "neurons_kept": sum(neurons),
        "least_neurons": min(neurons),
        **{f"neurons_of_block/{block:03d}": count for block, count in enumerate(neurons)},
        "dimensions_kept": dimensions,
    }


def _plain(domain: str) -> str:
    """A domain's name as a part of a metric's, where MLflow takes few characters: C++ is Cpp."""
    return re.sub(r"[^\w.-]", "_", domain.replace("+", "p").replace("#", "sharp"), flags=re.ASCII)
