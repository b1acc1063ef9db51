"""The unpruned networks of a nonlocality trial: pretrained on a mixture, then on A alone with the group lasso.

Axes: P networks, one a seed; B samples; C codes.
"""

import math
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from trainables.cmsp.networks import split
from trainables.cmsp.nonlocality_config import NonlocalityConfig
from trainables.cmsp.population import ADAM_EPS, TORCH_ADAM_EPS, Population
from trainables.cmsp.task import Batches
from trainables.cmsp.update_loop import UpdateLoop
from trainables.experiment import DivergedError
from trainables.pruning.penalties import add_group_lasso_gradient, proximal_step
from trainables.randomness import stream_keys

Phase = Literal["pretraining", "lasso"]


class Training:
    """One phase of training: fresh optimizers, the phase's own samples.

    Args:
        parameter_PF: of the networks that it begins with; taken over.

    Source: arXiv:2505.15811, Figs 3 and 10; as there, biases belong to the groups of the lasso. Differs: the proximal step is
    another way to the same penalty.
    """

    def __init__(self, config: NonlocalityConfig, phase: Phase, parameter_PF: Tensor) -> None:
        self._config = config
        device = parameter_PF.device
        rates, eps = [config.learning_rate] * config.num_seeds, TORCH_ADAM_EPS if phase == "lasso" else ADAM_EPS
        self.population = Population(config.shape, parameter_PF, rates, adam_eps=eps)
        mixture = dict.fromkeys(config.mixture, config.pretraining_samples)
        counts = {config.target: config.lasso_samples} if phase == "lasso" else mixture
        samples = Batches(config.task, counts, self._keys(phase))
        update = partial(_update_with_lasso, config) if phase == "lasso" else Population.update
        population = self.population
        self._loop = UpdateLoop(lambda index: update(population, *samples.draw(index)), device=device)
        codes = [config.target, config.other, *config.atoms]
        self._evaluation = Batches(config.task, dict.fromkeys(codes, config.score_samples), self._keys("evaluation"))

    def _keys(self, purpose: str) -> Tensor:
        device = self.population.parameter_PF.device
        return stream_keys(((seed, purpose) for seed in self._config.seeds), device)

    def run(self, start: int, stop: int) -> None:
        """Make updates number `start` to `stop - 1` of the phase."""
        self._loop.run(start, stop)

    @torch.no_grad()
    def measure(self, index: int) -> tuple[list[float], list[float]]:
        """Measure fresh samples of every code, the evaluation's batch number `index`; means over networks.

        Returns:
            bits_C: losses of A, B and the atoms, in bits.
            accuracy_C: shares of right answers.

        Raises:
            DivergedError: if a loss is not finite.
        """
        config = self._config
        x_PBI, y_PB = self._evaluation.draw(index)
        by_code = (config.num_seeds, -1, config.score_samples)
        bits_C = (self.population.losses(x_PBI, y_PB) / math.log(2)).view(by_code).mean((0, 2)).tolist()
        if not all(map(math.isfinite, bits_C)):
            raise DivergedError(f"losses must be finite, but are {bits_C} bits; lower learning_rate = {config.learning_rate}")
        wrong_PB = (self.population.margins(x_PBI) > 0) != (y_PB > 0)
        return bits_C, (1 - wrong_PB.view(by_code).double().mean((0, 2))).tolist()

    def networks(self) -> list[dict[str, Tensor]]:
        """Views of every network's parameters, as `networks.split` names them."""
        tensors = split(self._config.shape, self.population.parameter_PF)
        return [{name: tensor[place] for name, tensor in tensors.items()} for place in range(self._config.num_seeds)]


def _update_with_lasso(config: NonlocalityConfig, population: Population, x_PBI: Tensor, y_PB: Tensor) -> None:
    """Make one Adam update on the loss of A and the group lasso, by its gradient or by a proximal step."""
    neurons = config.shape.padded.neurons
    population.backward(x_PBI, y_PB)
    if config.method == "subgradient":
        add_group_lasso_gradient(population.tensors, population.gradients, neurons, config.lasso_strength)
    population.adam()
    if config.method == "proximal":
        proximal_step(population.tensors, neurons, config.learning_rate * config.lasso_strength)
