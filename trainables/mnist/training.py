"""The training of one trial's networks: batches, the method's loss, and the group lasso's deaths.

Axes: P networks, N images, B samples, I pixels, H hidden units, O classes.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trainables.mnist.data import Images
from trainables.mnist.narrowing_config import NarrowingConfig
from trainables.mnist.population import Population
from trainables.pruning.penalties import add_group_lasso_gradient, group_norms, proximal_step
from trainables.pruning.units import Tensors
from trainables.randomness import generator
from trainables.relu_networks import fold_constants, hidden_neurons, logits


class Training:
    """Trains the networks of some seeds until each is told to leave.

    Args:
        images: kept-class training images, at least one batch.
        networks: of every seed of the config, to begin with.
        teachers: of every seed, for distillation.

    Attributes:
        places: which of the config's seeds are still in training, ascending.
        in_lasso: for each network in training, whether the group lasso still acts on it.

    Source: arXiv:2505.15811, Fig 4 (mnist/). Differs: a group is a neuron's in-weights, bias and out-weights, where the
    authors leave the bias out; a masked neuron is gone altogether, its constant part folded into the next layer; epochs
    are permutations, where theirs overlap; one optimizer (Adam) and one check interval for every method.
    """

    def __init__(self, config: NarrowingConfig, images: Images, networks: Sequence[Tensors], teachers: Sequence[Tensors]) -> None:
        self._config, self._images = config, images
        self.population = Population(networks, learning_rate=config.learning_rate, clip_norm=config.clip_norm)
        self.places = list(range(config.num_seeds))
        narrows = config.method == "group_lasso" and config.neurons < sum(config.teacher.widths)
        self.in_lasso = [narrows] * config.num_seeds
        self._device = images.label_N.device
        self._epoch, self._order_PN = -1, torch.empty(0)
        self._update = 0
        self._teacher_SNO = self._ask(teachers) if config.method == "distillation" else None

    @torch.no_grad()
    def _ask(self, teachers: Sequence[Tensors]) -> Tensor:
        """The teachers' logits on every training image: they are asked for each many times."""
        x_NI = self._images.batch(torch.arange(len(self._images), device=self._device))
        return torch.stack([logits(teacher, x_NI) for teacher in teachers])

    def run(self, num_updates: int) -> None:
        """Make some updates of every network in training."""
        for _ in range(num_updates):
            place_PB = self._draw(self._update)
            gradients = self.population.gradients(partial(self._loss, place_PB))
            if any(self.in_lasso) and self._config.lasso_way == "mask":
                tensors = self.population.tensors
                add_group_lasso_gradient(tensors, gradients, hidden_neurons(tensors), self._strength_P())
            self.population.adam(gradients)
            if any(self.in_lasso):
                self._shrink()
            self._update += 1

    def _draw(self, update: int) -> Tensor:
        """Places of the images of one update: place_PB. An epoch is a permutation less what makes no whole batch."""
        size = self._config.batch_size
        epoch, start = divmod(update * size, len(self._images) // size * size)
        if epoch != self._epoch:
            generators = [generator(self._config.seeds[place], "order", epoch) for place in self.places]
            order = [torch.randperm(len(self._images), generator=each) for each in generators]
            self._epoch, self._order_PN = epoch, torch.stack(order).to(self._device)
        return self._order_PN[:, start : start + size]

    def _loss(self, place_PB: Tensor, tensors: Tensors) -> Tensor:
        """What the method minimises, but for the group lasso: loss_P in nats."""
        config, label_PB = self._config, self._images.label_N[place_PB]
        logit_PBO = logits(tensors, self._images.batch(place_PB))
        loss_P = _mean_by_network(
            functional.cross_entropy(logit_PBO.flatten(0, 1), label_PB.flatten(), reduction="none"), label_PB
        )
        if self._teacher_SNO is not None:
            teacher_PBO = self._teacher_SNO[torch.tensor(self.places, device=self._device)[:, None], place_PB]
            soft_P = _mean_by_network(_divergence(logit_PBO, teacher_PBO, config.temperature).flatten(), label_PB)
            return config.alpha * loss_P + (1 - config.alpha) * config.temperature**2 * soft_P
        return loss_P

    def _strength_P(self) -> Tensor:
        return torch.tensor(self.in_lasso, device=self._device) * self._config.lasso_strength

    @torch.no_grad()
    def _shrink(self) -> None:
        """Take out the neurons that the lasso has made short, and end it for networks that are small enough."""
        config, population = self._config, self.population
        neurons = hidden_neurons(population.tensors)
        if config.lasso_way == "proximal":
            proximal_step(population.tensors, neurons, config.learning_rate * self._strength_P())
            population.mask(population.alive())  # what Adam remembers of them would bring them back
        else:
            self._mask_short()
        counts = population.num_alive()
        self.in_lasso = [acts and count > config.neurons for acts, count in zip(self.in_lasso, counts, strict=True)]

    def _mask_short(self) -> None:
        tensors = self.population.tensors
        acts_P1 = torch.tensor(self.in_lasso, device=self._device)[:, None]
        norms = [group_norms(tensors, units) for units in hidden_neurons(tensors)]
        gone = [acts_P1 & (norm_PH > 0) & (norm_PH <= self._config.mask_threshold) for norm_PH in norms]
        if not any(bool(gone_PH.any()) for gone_PH in gone):
            return
        for layer, gone_PH in enumerate(gone):
            fold_constants(tensors, layer, gone_PH)
        self.population.mask([~gone_PH for gone_PH in gone])

    def keep(self, places: Sequence[int]) -> None:
        """Go on with the networks of these seeds alone, in tensors as small as their living neurons allow."""
        rows = [self.places.index(place) for place in places]
        self.population.keep(rows)
        self.in_lasso = [self.in_lasso[row] for row in rows]
        if self._epoch >= 0:
            self._order_PN = self._order_PN[rows]
        self.places = list(places)

    def network(self, place: int) -> dict[str, Tensor]:
        """A copy of the network of a seed that is in training, without dead neurons."""
        return self.population.network(self.places.index(place))

    def kept(self, place: int) -> list[Tensor]:
        """Which of the units that it began with this network has: index_H of each hidden layer, ascending."""
        return self.population.kept_by(self.places.index(place))

    def state_dict(self) -> dict[str, Any]:
        return {
            "population": self.population.state_dict(),
            "places": list(self.places),
            "in_lasso": list(self.in_lasso),
            "update": self._update,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.population.load_state_dict(state["population"])
        self.places, self.in_lasso = list(state["places"]), list(state["in_lasso"])
        self._update, self._epoch = state["update"], -1


def _mean_by_network(value: Tensor, label_PB: Tensor) -> Tensor:
    return value.view(label_PB.shape).mean(1)


def _divergence(logit_PBO: Tensor, teacher_PBO: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of softened outputs, for each sample: divergence_PB, nats.

    Source: Hinton, Vinyals and Dean 2015; arXiv:2505.15811, Fig 4.
    """
    student, teacher = ((logit / temperature).log_softmax(-1) for logit in (logit_PBO, teacher_PBO))
    return (teacher.exp() * (teacher - student)).sum(-1)
