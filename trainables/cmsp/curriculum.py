"""Does a broad mixture teach a skill that its narrow data alone cannot? (arXiv:2505.15811, Figs 2 and 7)

A trial trains `num_seeds` networks at once on one mixture of a composite subtask, its atoms and other codes, and counts
the samples until the composite is learned.

Axes: P networks in the batch, S all seeds of the trial, B samples, I inputs, C codes.
"""

import math
import statistics
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from trainables.charts import Chart, Panel, Series
from trainables.cmsp.curriculum_config import CurriculumConfig
from trainables.cmsp.networks import join, split
from trainables.cmsp.population import Population
from trainables.cmsp.task import Batches
from trainables.cmsp.update_loop import UpdateLoop
from trainables.experiment import DivergedError, Experiment, Metric
from trainables.randomness import generator, stream_keys
from trainables.relu_networks import for_modules, initial_network, modules


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
        config = self.config
        evaluated = [config.composite, *[(atom,) for atom in config.composite]]
        population, training = self._population, Batches(config.task, config.counts, self._keys("training"))
        self._evaluation = Batches(config.task, dict.fromkeys(evaluated, config.samples_per_evaluation), self._keys("evaluation"))
        self._loop = UpdateLoop(lambda index: population.update(*training.draw(index)), device=self.device)

    def _keys(self, purpose: str) -> Tensor:
        return stream_keys(((self.config.seed + seed, purpose) for seed in self._training_seeds), self.device)

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

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Measure fresh losses of every network that still trains, and let those that have converged go."""
        loss_PB = self._population.losses(*self._evaluation.draw(self._update)) / math.log(2)
        loss_CP = loss_PB.view(len(self._training_seeds), -1, self.config.samples_per_evaluation).mean(-1).T.tolist()
        for place, seed in enumerate(self._training_seeds):
            composite_bits = loss_CP[0][place]
            if not math.isfinite(composite_bits):
                raise DivergedError(
                    f"the composite's loss must be finite, but is {composite_bits} for seed {self.config.seed + seed} at "
                    f"update {self._update}; lower learning_rate = {self.config.learning_rate}"
                )
            self._composite_bits[seed] = composite_bits
            self._atomic_bits[seed] = statistics.fmean(row[place] for row in loss_CP[1:])
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
