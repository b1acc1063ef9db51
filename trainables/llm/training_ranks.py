"""Training of one model by several processes: each takes its rows of every batch, and gradients are averaged.

Who started them is not known here: `torch.distributed` has a process group, or there is one process, rank 0 of 1.

Axes: B sequences, T tokens.
"""

import contextlib

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from trainables.laws import require


def num_ranks() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return distributed.get_rank() if num_ranks() > 1 else 0


def require_rows(batch_size: int) -> None:
    """Refuse a batch of which ranks would have unequal shares.

    Raises:
        ValueError: if the batch is no multiple of the ranks.
    """
    law = f"batch_size must be a multiple of the {num_ranks()} processes that train together"
    require(batch_size % num_ranks() == 0, law, batch_size, f"use {-(-batch_size // num_ranks()) * num_ranks()}")


def own_rows(token_BT: Tensor) -> Tensor:
    """The rows of a batch that are this rank's: every n-th."""
    return token_BT[rank() :: num_ranks()]


def averaged(loss: nn.Module, device: torch.device) -> nn.Module:
    """Wrap what computes a loss, so that its backward pass leaves the mean of all ranks' gradients; parameters are rank 0's."""
    if num_ranks() == 1:
        return loss
    ids = [device] if device.type == "cuda" else None
    return DistributedDataParallel(loss, device_ids=ids, gradient_as_bucket_view=True)


def pausing(loss: nn.Module, *, is_paused: bool) -> contextlib.AbstractContextManager[None]:
    """Inside, a backward pass leaves the rank's own gradients; the first one outside averages their sum."""
    if is_paused and isinstance(loss, DistributedDataParallel):
        return loss.no_sync()
    return contextlib.nullcontext()


def mean_of_ranks(value: Tensor) -> float:
    """The mean of a number that every rank has; the same in all of them."""
    if num_ranks() > 1:
        value = value.clone()
        distributed.all_reduce(value)
    return float(value) / num_ranks()
