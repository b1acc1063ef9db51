"""Networks measured once more, from their files: on the same images, if these are here.

Axes: S networks, B images, I pixels, O classes.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trainables.experiment import MissingEvidenceError
from trainables.laws import require
from trainables.mnist.data import Dataset, Images, load_dataset
from trainables.mnist.narrowing_config import NarrowingConfig
from trainables.mnist.results import accuracy, measure, summarize
from trainables.randomness import draw_bytes
from trainables.relu_networks import from_modules

_PROBE_IMAGES = 16


def dataset_of(config: NarrowingConfig) -> Dataset:
    """The images of a config.

    Raises:
        ValueError: if they are missing or damaged, or too few for the config.
        ImportError: if they are scikit-learn's, and it is not installed.
    """
    data = load_dataset(config.data_dir, validation_fraction=config.validation_fraction)
    num_kept = len(data.train.of_classes(config.kept_classes))
    law = "a batch must not be larger than the kept classes' training images"
    require(config.batch_size <= num_kept, law, config.batch_size, f"use {num_kept} or less")
    law = "score_samples must not be more than the kept classes' training images"
    require(config.score_cost <= num_kept, law, config.score_cost, f"use {num_kept} or less")
    return data


def test_images(config: NarrowingConfig, data: Dataset) -> tuple[Images, Images | None]:
    """Test images of the kept classes, and of the others; None if there are no others."""
    others = set(range(data.num_classes)) - set(config.kept_classes)
    return data.test.of_classes(config.kept_classes), data.test.of_classes(others) if others else None


def evidence_of(data: Dataset, most_neurons: int) -> dict[str, Tensor]:
    """What an evaluation needs: the images' fingerprint, not the images, which are larger than any of these networks.

    Args:
        most_neurons: that a network may have to count as one that reached the target.
    """
    return {"data": torch.tensor(list(data.fingerprint.encode())), "most_neurons": torch.tensor([most_neurons])}


def evaluate_networks(
    config: NarrowingConfig, model: Sequence[torch.nn.Sequential], evidence: Mapping[str, Tensor], device: torch.device
) -> dict[str, float]:
    """Every metric but the datapoints.

    Raises:
        MissingEvidenceError: if the images that they were made with are not here.
    """
    data = _same_dataset(config, bytes(evidence["data"].tolist()).decode()).to(device)
    validation, (kept, other) = data.validation.of_classes(config.kept_classes), test_images(config, data)
    results = []
    for network in model:
        right = accuracy(network.to(device), validation)
        tensors = from_modules(network)
        result = measure(tensors, kept, other, datapoints=0, validation_accuracy=right, reached=False)
        reached = right >= config.target_accuracy and result.neurons <= int(evidence["most_neurons"])
        results.append(dataclasses.replace(result, reached=reached))
    return {name: value for name, value in summarize(results).items() if name != "datapoints"}


def _same_dataset(config: NarrowingConfig, fingerprint: str) -> Dataset:
    law = "the images that it was made with must be here"
    try:
        data = dataset_of(config)
    except (ValueError, OSError, ImportError) as error:
        raise MissingEvidenceError(f"{law}, but {error}") from error
    if data.fingerprint != fingerprint:
        raise MissingEvidenceError(f"{law}, but got {data.fingerprint} for {fingerprint}; put the files back")
    return data


def probe_logits(model: Sequence[torch.nn.Sequential]) -> dict[str, Tensor]:
    """What networks say of images of noise that are always the same: `logits`, S x B x O."""
    num_pixels = next(model[0].parameters()).shape[1]
    x_BI = draw_bytes(_PROBE_IMAGES * num_pixels, "probe").view(_PROBE_IMAGES, -1).float() / 255
    return {"logits": torch.stack([network(x_BI) for network in model])}
