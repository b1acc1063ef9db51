"""What a narrow network is worth: what it costs, what it keeps, what is left of the rest (arXiv:2505.15811, Fig 4).

Axes: N images.
"""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from trainables.experiment import Metric
from trainables.mnist.data import Images
from trainables.pruning.units import Tensors
from trainables.relu_networks import for_modules, modules, num_layers

METRICS = (
    Metric(
        name="datapoints",
        goal="min",
        unit="samples",
        meaning="training images read until the target accuracy was reached at the size asked for, those of the scores included, "
        "the teacher's not; of a network that never did, all that it read; mean over seeds",
    ),
    Metric(name="neurons_kept", goal="min", unit="neurons", meaning="hidden neurons that are not zero, mean over seeds"),
    Metric(name="parameters_kept", goal="min", unit="parameters", meaning="parameters without dead neurons, mean over seeds"),
    Metric(name="forward_flops", goal="min", unit="FLOP", meaning="multiplications and additions of one image, mean over seeds"),
    Metric(
        name="accuracy", goal="max", unit="1", meaning="share of the kept classes' test images answered right, mean over seeds"
    ),
    Metric(
        name="other_accuracy",
        goal="min",
        unit="1",
        meaning="share of the other classes' test images still right, mean over seeds",
    ),
    Metric(name="validation_accuracy", goal="max", unit="1", meaning="what the target is compared with; mean over seeds"),
    Metric(name="fraction_reached", goal="max", unit="1", meaning="share of seeds that reached the target accuracy at that size"),
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One network at one moment.

    Attributes:
        datapoints: training images that it has cost.
        reached: whether it has the target accuracy.
        tensors: as `trainables.relu_networks` names them, without dead neurons.
        kept_neurons: which these are of those that the network began with: index_H of each hidden layer; empty if not known.
    """

    datapoints: int
    validation_accuracy: float
    accuracy: float
    other_accuracy: float
    reached: bool
    tensors: dict[str, Tensor]
    kept_neurons: list[Tensor] = dataclasses.field(default_factory=list)

    @property
    def neurons(self) -> int:
        return sum(self.tensors[f"layer{layer}.bias"].numel() for layer in range(num_layers(self.tensors) - 1))

    def state_dict(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@torch.no_grad()
def accuracy(model: Callable[[Tensor], Tensor], images: Images) -> float:
    """Share of images that a network, from pixels to logits, answers right, out of all classes that it knows."""
    right = 0
    for place_N in torch.split(torch.arange(len(images), device=images.label_N.device), 4096):
        right += int((model(images.batch(place_N)).argmax(-1) == images.label_N[place_N]).sum())
    return right / len(images)


def measure(tensors: dict[str, Tensor], kept: Images, other: Images | None, **known: Any) -> Result:
    """Test a network as it will be loaded, as torch modules, so that whoever loads it finds the same numbers.

    Args:
        kept, other: test images; None if all classes are kept, and then nothing is left to unlearn.
        known: the other fields of the result.
    """
    model = modules(for_modules(tensors))
    others = 0.0 if other is None else accuracy(model, other)
    return Result(accuracy=accuracy(model, kept), other_accuracy=others, tensors=tensors, **known)


def summarize(results: Sequence[Result]) -> dict[str, float]:
    """The metrics of one result a seed."""

    def mean(values: Sequence[float]) -> float:
        return float(statistics.fmean(values))

    return {
        "datapoints": mean([result.datapoints for result in results]),
        "neurons_kept": mean([result.neurons for result in results]),
        "parameters_kept": mean([sum(tensor.numel() for tensor in result.tensors.values()) for result in results]),
        "forward_flops": mean([_forward_flops(result.tensors) for result in results]),
        "accuracy": mean([result.accuracy for result in results]),
        "other_accuracy": mean([result.other_accuracy for result in results]),
        "validation_accuracy": mean([result.validation_accuracy for result in results]),
        "fraction_reached": mean([result.reached for result in results]),
    }


def _forward_flops(tensors: Tensors) -> int:
    """Two for each weight: the bias takes the place of the first addition, and ReLU is not counted."""
    return sum(2 * tensor.numel() for name, tensor in tensors.items() if name.endswith("weight"))
