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

from trainables.cmsp.curriculum_config import CurriculumConfig
from trainables.cmsp.population import Population, unpadded_layers
from trainables.cmsp.task import Batches
from trainables.experiment import DivergedError, Experiment, Metric
from trainables.randomness import generator, stream_key


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
        # A population is never smaller than two lanes (population.py): one seed gets a twin that nobody reports.
        self._lanes = list(range(max(2, config.num_seeds)))
        self._composite_bits = [1.0] * len(self._lanes)
        self._atomic_bits = [1.0] * len(self._lanes)
        self._converged_at: list[int | None] = [None] * len(self._lanes)
        self._final: list[Tensor | None] = [None] * len(self._lanes)
        seeds = [config.seed + lane for lane in self._lanes]
        self._population = Population(
            config.shape,
            [generator(seed, "weights") for seed in seeds],
            [config.learning_rate] * len(seeds),
            device=device,
        )
        self._make_batches()

    def _make_batches(self) -> None:
        """Bind the streams of the networks that still train."""
        config = self.config
        evaluated = [config.composite, *[(atom,) for atom in config.composite]]
        self._training = Batches(config.task, config.counts, self._keys("training"))
        self._evaluation = Batches(config.task, dict.fromkeys(evaluated, config.samples_per_evaluation), self._keys("evaluation"))

    def _keys(self, purpose: str) -> Tensor:
        return torch.tensor([stream_key(self.config.seed + lane, purpose) for lane in self._lanes], device=self.device)

    def step(self) -> dict[str, float]:
        stop = min(self._update + self.config.updates_per_step, self.config.num_updates)
        while self._update < stop and self._training_seeds:
            self._population.update(*self._training.draw(self._update))
            self._update += 1
            if self._update % self.config.updates_per_evaluation == 0 or self._update == self.config.num_updates:
                self._evaluate()
        return self._metrics()

    @property
    def _training_seeds(self) -> list[int]:
        return [lane for lane in self._lanes if lane < self.config.num_seeds and self._converged_at[lane] is None]

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Measure fresh losses of every network that still trains, and let those that have converged go."""
        loss_PB = self._population.losses(*self._evaluation.draw(self._update)) / math.log(2)
        loss_CP = loss_PB.view(len(self._lanes), -1, self.config.samples_per_evaluation).mean(-1).T.tolist()
        for place, lane in enumerate(self._lanes):
            if lane >= self.config.num_seeds or self._converged_at[lane] is not None:
                continue  # it only keeps another network company: what it does now is nobody's result
            composite_bits = loss_CP[0][place]
            if not math.isfinite(composite_bits):
                raise DivergedError(
                    f"the composite's loss must be finite, but is {composite_bits} for seed {self.config.seed + lane} at "
                    f"update {self._update}; lower learning_rate = {self.config.learning_rate}"
                )
            self._composite_bits[lane] = composite_bits
            self._atomic_bits[lane] = statistics.fmean(row[place] for row in loss_CP[1:])
            if composite_bits < self.config.target_loss_bits:
                self._converged_at[lane] = self._update
                self._final[lane] = self._population.parameter_PF[place].clone()
        self._drop_converged()

    def _drop_converged(self) -> None:
        """Take converged networks out of the batch, keeping two lanes as long as any seed trains."""
        training = self._training_seeds
        if not training:
            return
        spare = [lane for lane in self._lanes if lane not in training]
        kept = sorted(training + spare[: max(0, 2 - len(training))])
        if kept != self._lanes:
            places = torch.tensor([self._lanes.index(lane) for lane in kept], device=self.device)
            self._population.keep(places)
            self._lanes = kept
            self._make_batches()

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
            "lanes": list(self._lanes),
            "composite_bits": list(self._composite_bits),
            "atomic_bits": list(self._atomic_bits),
            "converged_at": list(self._converged_at),
            "final": list(self._final),
            "population": self._population.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._update = state["update"]
        self._lanes = list(state["lanes"])
        self._composite_bits = list(state["composite_bits"])
        self._atomic_bits = list(state["atomic_bits"])
        self._converged_at = list(state["converged_at"])
        self._final = [None if flat_F is None else flat_F.to(self.device) for flat_F in state["final"]]
        self._population.load_state_dict(state["population"])
        self._make_batches()

    def model_tensors(self) -> dict[str, Tensor]:
        """Every seed's network, as it converged or as it is now.

        Returns:
            for layer 0, 1, ...: `layer0.weight` of shape (S, outputs, inputs) and `layer0.bias` of shape (S, outputs).
        """
        current = dict(zip(self._lanes, self._population.parameter_PF, strict=True))
        flat_SF = torch.stack(
            [current[seed] if (final := self._final[seed]) is None else final for seed in range(self.config.num_seeds)]
        ).cpu()
        tensors = {}
        for layer, (weight_SIO, bias_SO) in enumerate(unpadded_layers(self.config.shape, flat_SF)):
            tensors[f"layer{layer}.weight"] = weight_SIO.mT.contiguous()
            tensors[f"layer{layer}.bias"] = bias_SO.contiguous()
        return tensors

    @classmethod
    def rebuild(cls, config: CurriculumConfig, tensors: Mapping[str, Tensor]) -> list[torch.nn.Sequential]:
        """One torch.nn.Sequential a seed: control bits and task bits in, two logits out."""
        networks = []
        for seed in range(config.num_seeds):
            modules: list[torch.nn.Module] = []
            for layer, (fan_in, fan_out) in enumerate(config.shape.layers):
                linear = torch.nn.Linear(fan_in, fan_out)
                names = ("weight", "bias")
                linear.load_state_dict({name: tensors[f"layer{layer}.{name}"][seed] for name in names})
                modules += [linear, torch.nn.ReLU()]
            networks.append(torch.nn.Sequential(*modules[:-1]))
        return networks
