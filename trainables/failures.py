"""How an error ends: with its trial, by a cause, or with the worker alone, so that the trial is tried again."""

import traceback

import torch

from trainables.experiment import DivergedError
from trainables.laws import LawError
from trainables.protocol import Failure, FailureCause
from trainables.storage import StorageError


class InvalidConfigError(ValueError):
    """The experiment's Config refused its arguments."""


class LostRankError(RuntimeError):
    """A process that trains with this one died or fell silent: no fault of the trial's, but this worker must go."""


class SupersededError(RuntimeError):
    """Another attempt has the trial: this one may write nothing more, and its worker must go."""


class RankError(Exception):
    """Another process that trains with this one failed: its trial is over.

    Attributes:
        failure: what failed there.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error)
        self.failure = failure


FATAL_TO_THE_WORKER = (torch.AcceleratorError, LostRankError, SupersededError)
"""After one of these a worker is in no state to go on."""


def failure_of(error: Exception) -> Failure:
    """Name the cause of an error, for people and for a study."""
    if isinstance(error, RankError):
        return error.failure
    text = "".join(traceback.format_exception(error))
    return Failure(cause=_cause(error), error=f"{type(error).__name__}: {error}", traceback=text)


def _cause(error: Exception) -> FailureCause:
    if isinstance(error, DivergedError):
        return "diverged"
    if isinstance(error, InvalidConfigError | LawError):
        return "invalid_config"
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "out_of_memory"
    if isinstance(error, StorageError):
        return "storage"
    if isinstance(error, FATAL_TO_THE_WORKER):
        return "worker_lost"
    return "bug"


def may_be_an_echo(error: Exception) -> bool:
    """Whether this is what a process may see that waits for another when the other one fails."""
    return isinstance(error, RuntimeError) and _cause(error) == "bug"
