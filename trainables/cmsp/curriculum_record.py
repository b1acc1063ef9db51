"""What a curriculum trial knows of its networks: when each converged, what it lost last, and those that still train.

Axes: P networks that still train, S all seeds of the trial, F all parameters of a network, flat.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trainables.cmsp.curriculum_config import CurriculumConfig
from trainables.cmsp.networks import join
from trainables.cmsp.population import Population
from trainables.experiment import DivergedError
from trainables.randomness import generator
from trainables.relu_networks import initial_network


class Record:
    """The state of one trial, whoever trains its networks.

    Attributes:
        update: updates so far.
        training_seeds: 0..S-1, one a network of the population, in its order.
        population: the networks that still train, as they were at the last report or when one left.
        converged_at: of every seed, the update; None until then.
        history: of every report: samples used, composite's and atoms' bits.
    """

    def __init__(self, config: CurriculumConfig, device: torch.device) -> None:
        self.config = config
        self.update = 0
        self.training_seeds = list(range(config.num_seeds))
        self.converged_at: list[int | None] = [None] * config.num_seeds
        self.history: list[list[float]] = []
        self._device = device
        self._composite_bits = [1.0] * config.num_seeds
        self._atomic_bits = [1.0] * config.num_seeds
        self._final: list[Tensor | None] = [None] * config.num_seeds
        networks = [
            initial_network(config.shape.layers, generator(config.seed + seed, "weights")) for seed in self.training_seeds
        ]
        parameter_PF = join(config.shape, networks).to(device)
        self.population = Population(config.shape, parameter_PF, [config.learning_rate] * config.num_seeds)

    @property
    def is_done(self) -> bool:
        return self.update >= self.config.num_updates or not self.training_seeds

    def note(self, update: int, measured: Sequence[tuple[float, float]], parameter_PF: Tensor) -> list[int]:
        """Note what was measured of the networks that still train; who has converged is done.

        Args:
            measured: bits of the composite and of its atoms, of every network.
            parameter_PF: of the networks.

        Returns:
            places of those that train on.

        Raises:
            DivergedError: if a composite's loss is not finite.
        """
        config, places = self.config, []
        self.update = update
        for place, (seed, (composite_bits, atomic_bits)) in enumerate(zip(self.training_seeds, measured, strict=True)):
            if not math.isfinite(composite_bits):
                raise DivergedError(
                    f"the composite's loss must be finite, but is {composite_bits} for seed {config.seed + seed} at "
                    f"update {update}; lower learning_rate = {config.learning_rate}"
                )
            self._composite_bits[seed], self._atomic_bits[seed] = composite_bits, atomic_bits
            if composite_bits < config.target_loss_bits:
                self.converged_at[seed] = update
                self._final[seed] = parameter_PF[place].clone()
            else:
                places.append(place)
        self.training_seeds = [self.training_seeds[place] for place in places]
        return places

    def report(self) -> dict[str, float]:
        """Every metric, which goes into the history."""
        config = self.config
        budget = config.num_updates * config.samples_per_update
        samples = [budget if update is None else update * config.samples_per_update for update in self.converged_at]
        metrics = {
            "samples_to_convergence": statistics.median(samples),
            "composite_loss_bits": statistics.median(self._composite_bits),
            "atomic_loss_bits": statistics.median(self._atomic_bits),
            "fraction_converged": sum(update is not None for update in self.converged_at) / config.num_seeds,
            "samples_used": statistics.fmean(self.updates_made) * config.samples_per_update,
            "parameters": config.shape.num_parameters,
        }
        self.history.append([metrics[name] for name in ("samples_used", "composite_loss_bits", "atomic_loss_bits")])
        return metrics

    @property
    def updates_made(self) -> list[int]:
        """Of every seed's network."""
        return [self.update if update is None else update for update in self.converged_at]

    def parameters(self) -> Tensor:
        """Of every seed's network, as it converged or as it is: flat_SF, on the CPU."""
        current = dict(zip(self.training_seeds, self.population.parameter_PF, strict=False))
        return torch.stack([current[seed] if final is None else final for seed, final in enumerate(self._final)]).cpu()

    def state_dict(self) -> dict[str, Any]:
        return {
            "update": self.update,
            "training_seeds": list(self.training_seeds),
            "composite_bits": list(self._composite_bits),
            "atomic_bits": list(self._atomic_bits),
            "converged_at": list(self.converged_at),
            "final": list(self._final),
            "history": [list(row) for row in self.history],
            "population": self.population.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.update = state["update"]
        self.training_seeds = list(state["training_seeds"])
        self._composite_bits = list(state["composite_bits"])
        self._atomic_bits = list(state["atomic_bits"])
        self.converged_at = list(state["converged_at"])
        self._final = [None if flat_F is None else flat_F.to(self._device) for flat_F in state["final"]]
        self.history = [list(row) for row in state["history"]]
        self.population.load_state_dict(state["population"])
