"""The broad network of an image data set, trained once and shared by all trials of a study (arXiv:2505.15811, Fig 4).

Axes: N images, B samples, I pixels, H hidden units, O classes.
"""

import dataclasses
import logging
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from trainables.laws import require
from trainables.mnist.data import Dataset, Images
from trainables.mnist.results import accuracy
from trainables.randomness import generator
from trainables.relu_networks import initial_network, logits
from trainables.shared import Recipe

_VERSION = 1
"""Of the code below: another number makes other teachers."""
_PATIENCE, _FACTOR = 2, 0.5

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TeacherConfig:
    """Shape and training of a network that knows all classes. Defaults: the paper's."""

    widths: tuple[int, ...] = (1200, 1200)
    """Neurons of each hidden layer, at least one layer. Paper: (1200, 1200)."""
    dropout: float = 0.2
    """Share of the hidden activations dropped in training, [0, 1). Paper: 0.2."""
    learning_rate: float = 1e-3
    """Adam's, > 0; halved when validation accuracy has not risen for more than 2 epochs. Paper: 1e-3."""
    weight_decay: float = 1e-4
    """Adam's L2 penalty, >= 0. Paper: 1e-4."""
    batch_size: int = 128
    """Images an update, >= 1. Paper: 128."""
    epochs: int = 20
    """At most, >= 1. Paper: 20."""
    accuracy: float = 0.99
    """On the validation images of all classes: reached, training ends, (0, 1]. Paper: 0.99, on test images."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))  # JSON makes a list of a tuple
        law = "a teacher's widths must be at least one positive number"
        require(bool(self.widths) and min(self.widths) >= 1, law, self.widths, "use (1200, 1200) as the paper does")
        require(0 <= self.dropout < 1, "dropout must be in [0, 1)", self.dropout, "use 0.2")
        law = "learning_rate must be positive and finite"
        require(0 < self.learning_rate < float("inf"), law, self.learning_rate, "use 1e-3")
        require(0 <= self.weight_decay < float("inf"), "weight_decay must be at least 0", self.weight_decay, "use 1e-4")
        for name in ("batch_size", "epochs"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1", getattr(self, name), "use 1 or more")
        require(0 < self.accuracy <= 1, "accuracy must be in (0, 1]", self.accuracy, "use 0.99")


def teacher_recipe(config: TeacherConfig, data: Dataset, seed: int) -> Recipe:
    """How the teacher of a seed is made: one for each data set, config and seed.

    It makes tensors as `trainables.relu_networks` names them, without axes in front.
    """
    ingredients = {"version": _VERSION, "data": data.fingerprint, "seed": seed, **dataclasses.asdict(config)}

    def make(device: torch.device) -> dict[str, Tensor]:
        return train_teacher(config, data.to(device), seed)

    return Recipe(name="teacher", ingredients=ingredients, make=make)


def train_teacher(config: TeacherConfig, data: Dataset, seed: int) -> dict[str, Tensor]:
    """Train on all classes, and keep the parameters of the epoch that was best on the validation images.

    Source: arXiv:2505.15811, Fig 4 (mnist/). Differs: chosen and stopped on validation images, not on test images.
    """
    device = data.train.label_N.device
    sizes = [data.num_pixels, *config.widths, data.num_classes]
    network = initial_network(list(pairwise(sizes)), generator(seed, "teacher", "weights"))
    tensors = {name: tensor.to(device).requires_grad_() for name, tensor in network.items()}
    optimizer = torch.optim.Adam(tensors.values(), lr=config.learning_rate, weight_decay=config.weight_decay)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", patience=_PATIENCE, factor=_FACTOR)
    best, best_accuracy = dict[str, Tensor](), -1.0
    for epoch in range(config.epochs):
        _train_epoch(config, data.train, tensors, optimizer, seed, epoch)
        reached = accuracy(partial(logits, tensors), data.validation)
        if reached > best_accuracy:
            best, best_accuracy = {name: tensor.detach().clone() for name, tensor in tensors.items()}, reached
        if best_accuracy >= config.accuracy:
            break
        plateau.step(reached)
    logger.info("teacher of seed %d: validation accuracy %.4f after %d epochs", seed, best_accuracy, epoch + 1)
    return best


def _train_epoch(
    config: TeacherConfig, images: Images, tensors: dict[str, Tensor], optimizer: torch.optim.Adam, seed: int, epoch: int
) -> None:
    order = torch.randperm(len(images), generator=generator(seed, "teacher", "order", epoch)).to(images.label_N.device)
    noise = generator(seed, "teacher", "dropout", epoch, device=order.device)
    for place_B in torch.split(order, config.batch_size):
        gates = {f"layer{layer}": _dropout(config, len(place_B), width, noise) for layer, width in enumerate(config.widths)}
        loss = torch.nn.functional.cross_entropy(logits(tensors, images.batch(place_B), gates), images.label_N[place_B])
        for tensor, gradient in zip(tensors.values(), torch.autograd.grad(loss, list(tensors.values())), strict=True):
            tensor.grad = gradient
        optimizer.step()


def _dropout(config: TeacherConfig, num_samples: int, width: int, noise: torch.Generator) -> Tensor:
    """Gates that drop activations and scale up the others; torch's own dropout draws from the global generator."""
    draw_BH = torch.rand(num_samples, width, generator=noise, device=noise.device)
    return (draw_BH >= config.dropout) / (1 - config.dropout)
