"""Does a broad mixture teach a skill that its narrow data alone cannot? (arXiv:2505.15811, Figs 2 and 7)

A trial trains `num_seeds` networks at once on one mixture of a composite subtask, its atoms and other codes, and counts
the samples until the composite is learned.

Axes: P networks in the batch, S all seeds of the trial, B samples, I inputs, C codes.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from trainables.charts import Chart, Panel, Series
from trainables.cmsp.curriculum_config import CurriculumConfig
from trainables.cmsp.networks import join, probe_logits, split
from trainables.cmsp.population import Population
from trainables.cmsp.task import Batches
from trainables.cmsp.update_loop import UpdateLoop
from trainables.experiment import Account, DivergedError, Experiment, Metric
from trainables.randomness import generator, stream_keys
from trainables.relu_networks import for_modules, from_modules, initial_network, modules


class Curriculum(Experiment):
    """Trains `num_seeds` networks on one mixture until all have learned the composite or spent the sample budget.

    Every network draws its weights and its data from streams of its own seed. A network that has converged leaves the
    batch. One that never does counts at the sample budget, and `fraction_converged` says how many did.

    Source: arXiv:2505.15811, Figs 2 and 7. Converged there: the least composite loss within the last 100 updates is below
    0.1 bit; with an evaluation at least every 50 updates and a stop at the first such loss, ours is the same moment.
    Differs: evaluated every 50 updates and not every one; the composite's share of a batch is a parameter.
    """

    Config: ClassVar[Any] = CurriculumConfig
    METRICS = (
        Metric(
            name="samples_to_convergence",
            goal="min",
            unit="samples",
            meaning="Training samples until the composite is learned, median over seeds; the budget for a seed that never does.",
        ),
        Metric(
            name="composite_loss_bits",
            goal="min",
            unit="bits",
            meaning="Loss of the composite at its latest evaluation, median over seeds; chance is 1.",
        ),
        Metric(
            name="atomic_loss_bits",
            goal="min",
            unit="bits",
            meaning="Mean loss over the composite's atoms at the latest evaluation, median over seeds.",
        ),
        Metric(
            name="fraction_converged",
            goal="max",
            unit="1",
            meaning="Share of seeds whose composite loss fell below the target.",
        ),
        Metric(
            name="samples_used",
            goal="min",
            unit="samples",
            meaning="Training samples drawn so far, over all codes, mean over seeds.",
        ),
        Metric(name="parameters", goal="min", unit="parameters", meaning="Weights and biases of one network."),
    )

    def __init__(self, config: CurriculumConfig, *, device: torch.device) -> None:
        self.config = config
        self.device = device
        self._update = 0
        self._training_seeds = list(range(config.num_seeds))  # one a network of the population, in its order
        self._composite_bits = [1.0] * config.num_seeds
        self._atomic_bits = [1.0] * config.num_seeds
        self._converged_at: list[int | None] = [None] * config.num_seeds
        self._final: list[Tensor | None] = [None] * config.num_seeds
        self._history: list[list[float]] = []  # of every report: samples used, composite's and atoms' bits
        networks = [
            initial_network(config.shape.layers, generator(config.seed + seed, "weights")) for seed in self._training_seeds
        ]
        parameter_PF = join(config.shape, networks).to(device)
        self._population = Population(config.shape, parameter_PF, [config.learning_rate] * config.num_seeds)
        self._bind()

    def _bind(self) -> None:
        """Make the streams and the loop of the networks that still train."""
        config, seeds = self.config, self._training_seeds
        population, key_P = self._population, _keys(config, seeds, "training", self.device)
        training = Batches(config.task, config.counts, key_P)
        self._evaluation = _evaluation_batches(config, seeds, self.device)
        self._loop = UpdateLoop(lambda index: population.update(*training.draw(index)), device=self.device)

    def step(self) -> dict[str, float]:
        stop = min(self._update + self.config.updates_per_step, self.config.num_updates)
        while self._update < stop and self._training_seeds:
            start, self._update = self._update, self._next_evaluation()
            self._loop.run(start, self._update)
            self._evaluate()
        metrics = self._metrics()
        self._history.append([metrics[name] for name in ("samples_used", "composite_loss_bits", "atomic_loss_bits")])
        return metrics

    def _next_evaluation(self) -> int:
        every = self.config.updates_per_evaluation
        return min((self._update // every + 1) * every, self.config.num_updates)

    def _evaluate(self) -> None:
        """Measure fresh losses of every network that still trains, and let those that have converged go."""
        measured = _measure(self.config, self._population, self._evaluation, self._update)
        for place, (seed, (composite_bits, atomic_bits)) in enumerate(zip(self._training_seeds, measured, strict=True)):
            if not math.isfinite(composite_bits):
                raise DivergedError(
                    f"the composite's loss must be finite, but is {composite_bits} for seed {self.config.seed + seed} at "
                    f"update {self._update}; lower learning_rate = {self.config.learning_rate}"
                )
            self._composite_bits[seed] = composite_bits
            self._atomic_bits[seed] = atomic_bits
            if composite_bits < self.config.target_loss_bits:
                self._converged_at[seed] = self._update
                self._final[seed] = self._population.parameter_PF[place].clone()
        self._drop_converged()

    def _drop_converged(self) -> None:
        """Take converged networks out of the batch."""
        places = [place for place, seed in enumerate(self._training_seeds) if self._converged_at[seed] is None]
        if len(places) < len(self._training_seeds):
            self._training_seeds = [self._training_seeds[place] for place in places]
            if places:
                self._population.keep(torch.tensor(places, device=self.device))
                self._bind()

    def _metrics(self) -> dict[str, float]:
        config = self.config
        seeds = range(config.num_seeds)
        budget = config.num_updates * config.samples_per_update
        converged = [self._converged_at[seed] for seed in seeds]
        samples = [budget if update is None else update * config.samples_per_update for update in converged]
        updates = [self._update if update is None else update for update in converged]
        return {
            "samples_to_convergence": statistics.median(samples),
            "composite_loss_bits": statistics.median(self._composite_bits[seed] for seed in seeds),
            "atomic_loss_bits": statistics.median(self._atomic_bits[seed] for seed in seeds),
            "fraction_converged": sum(update is not None for update in converged) / config.num_seeds,
            "samples_used": statistics.fmean(updates) * config.samples_per_update,
            "parameters": config.shape.num_parameters,
        }

    @property
    def progress(self) -> float:
        if self._update >= self.config.num_updates or not self._training_seeds:
            return 1.0
        return self._update / self.config.num_updates

    def state_dict(self) -> dict[str, Any]:
        return {
            "update": self._update,
            "training_seeds": list(self._training_seeds),
            "composite_bits": list(self._composite_bits),
            "atomic_bits": list(self._atomic_bits),
            "converged_at": list(self._converged_at),
            "final": list(self._final),
            "history": [list(row) for row in self._history],
            "population": self._population.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._update = state["update"]
        self._training_seeds = list(state["training_seeds"])
        self._composite_bits = list(state["composite_bits"])
        self._atomic_bits = list(state["atomic_bits"])
        self._converged_at = list(state["converged_at"])
        self._final = [None if flat_F is None else flat_F.to(self.device) for flat_F in state["final"]]
        self._history = [list(row) for row in state["history"]]
        self._population.load_state_dict(state["population"])
        if self._training_seeds:
            self._bind()

    def model_tensors(self) -> dict[str, Tensor]:
        """Every seed's network, as it converged or as it is now.

        Returns:
            for layer 0, 1, ...: `layer0.weight` of shape (S, outputs, inputs) and `layer0.bias` of shape (S, outputs).
        """
        current = dict(zip(self._training_seeds, self._population.parameter_PF, strict=False))
        flat_SF = torch.stack([current[seed] if final is None else final for seed, final in enumerate(self._final)]).cpu()
        return for_modules(split(self.config.shape, flat_SF))

    @classmethod
    def rebuild(
        cls, config: CurriculumConfig, tensors: Mapping[str, Tensor], files: Mapping[str, bytes]
    ) -> list[torch.nn.Sequential]:
        """One torch.nn.Sequential a seed: control bits and task bits in, two logits out."""
        return [modules({name: tensor[seed] for name, tensor in tensors.items()}) for seed in range(config.num_seeds)]

    def account(self) -> Account:
        """When each network was measured last: with which samples."""
        last = [self._update if update is None else update for update in self._converged_at]
        return Account(evidence={"updates": torch.tensor(last)})

    @classmethod
    def probe(cls, config: CurriculumConfig, model: list[torch.nn.Sequential]) -> dict[str, Tensor]:
        """Logits of every network."""
        return probe_logits(model)

    @classmethod
    def evaluate(
        cls,
        config: CurriculumConfig,
        model: list[torch.nn.Sequential],
        evidence: Mapping[str, Tensor],
        *,
        device: torch.device,
    ) -> dict[str, float]:
        """The losses, of the samples that they were measured on last; who converged, converged there."""
        measured = []
        for seed, (network, update) in enumerate(zip(model, evidence["updates"].tolist(), strict=True)):
            parameter_PF = join(config.shape, [from_modules(network)]).to(device)
            population = Population(config.shape, parameter_PF, [config.learning_rate])
            measured += _measure(config, population, _evaluation_batches(config, [seed], device), update)
        composite_bits, atomic_bits = zip(*measured, strict=True)
        return {
            "composite_loss_bits": statistics.median(composite_bits),
            "atomic_loss_bits": statistics.median(atomic_bits),
            "fraction_converged": sum(bits < config.target_loss_bits for bits in composite_bits) / config.num_seeds,
            "parameters": statistics.median(sum(tensor.numel() for tensor in network.parameters()) for network in model),
        }

    def charts(self) -> list[Chart]:
        """The losses over the samples (Fig 2, top)."""
        samples, *losses = zip(*self._history, strict=True)
        series = tuple(
            Series(label=label, x=samples, y=bits, color=color)
            for label, bits, color in zip(("composite", "atoms"), losses, ("#2f5fa8", "#e08a1e"), strict=True)
        )
        x_label = "samples (all codes, mean over seeds)"
        panel = Panel(title="", x_label=x_label, y_label="loss (bits; chance 1)", series=series, y_log=True)
        return [Chart(name="losses", title="Losses of the composite and its atoms, median over seeds", panels=(panel,))]


def _keys(config: CurriculumConfig, seeds: Sequence[int], purpose: str, device: torch.device) -> Tensor:
    return stream_keys(((config.seed + seed, purpose) for seed in seeds), device)


def _evaluation_batches(config: CurriculumConfig, seeds: Sequence[int], device: torch.device) -> Batches:
    """What networks are measured on: the composite first, then its atoms."""
    codes = [config.composite, *[(atom,) for atom in config.composite]]
    counts = dict.fromkeys(codes, config.samples_per_evaluation)
    return Batches(config.task, counts, _keys(config, seeds, "evaluation", device))


@torch.no_grad()
def _measure(config: CurriculumConfig, population: Population, evaluation: Batches, update: int) -> list[tuple[float, float]]:
    """Losses of every network after an update, in bits: the composite's, and the mean of its atoms'."""
    loss_PB = population.losses(*evaluation.draw(update)) / math.log(2)
    loss_PC = loss_PB.view(len(evaluation.key_P), -1, config.samples_per_evaluation).mean(-1).tolist()
    return [(composite, statistics.fmean(atoms)) for composite, *atoms in loss_PC]
