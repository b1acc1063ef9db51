"""An attempt broke down: by what cause, and does its trial get another?"""

from collections import Counter

from ray import exceptions as ray_errors

from study.errors import UserError
from trainables.protocol import Failure, FailureCause
from trainables.storage import StorageError

MAX_LOSSES_WITHOUT_PROGRESS = 3
MAX_BLAMELESS_LOSSES = 20
MAX_EQUAL_BUGS = 5
"""So many trials that end by the same bug, before any has finished, end the session: the others would, too."""

_LIMITS: dict[FailureCause, int] = {"bug": 1, "node_lost": MAX_BLAMELESS_LOSSES, "preempted": MAX_BLAMELESS_LOSSES}
"""Losses of a trial in a row, without a step between them, of which the last one ends it; `MAX_LOSSES_WITHOUT_PROGRESS` else."""


class LostActorError(ray_errors.RayActorError):
    """A worker is gone for a reason that Ray Tune does not take for one.

    Attributes:
        why: Ray's own error.
    """

    def __init__(self, why: Exception) -> None:
        super().__init__(error_msg=str(why))
        self.why = why


class Losses:
    """Counts how often each trial was lost since it last got on."""

    def __init__(self) -> None:
        self._counts: dict[int, tuple[int, int]] = {}

    def is_last(self, number: int, cause: FailureCause, last_step: int) -> bool:
        """Count one more loss of a trial; return whether it was one too many.

        Args:
            last_step: of the attempt that was lost, 0 if it made none.
        """
        step, losses = self._counts.get(number, (-1, 0))
        losses = 1 if last_step > step else losses + 1
        self._counts[number] = (max(step, last_step), losses)
        return losses >= _LIMITS.get(cause, MAX_LOSSES_WITHOUT_PROGRESS)


class EqualBugs:
    """Counts trials that ended by one bug."""

    def __init__(self, study: str) -> None:
        self._study = study
        self._counts = Counter[str]()

    def add(self, failure: Failure) -> None:
        """Count one more.

        Raises:
            UserError: with the traceback, if that was one too many.
        """
        self._counts[failure.error] += 1
        if self._counts[failure.error] == MAX_EQUAL_BUGS:
            raise UserError(
                f"a study's first trials must not all end by one bug, but {MAX_EQUAL_BUGS} did ({failure.error}); mend it, "
                f"then: study resume {self._study}\n{failure.traceback}"
            )


def loss_of(error: Exception) -> Failure:
    """What ended an attempt, as far as Ray can tell."""
    error = error.why if isinstance(error, LostActorError) else error
    return Failure(cause=_cause(error), error=_summary(error), traceback=str(error))


def _summary(error: Exception) -> str:
    """The line of Ray's that says most: of an actor's death the one after who it was, which is indented."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if isinstance(error, ray_errors.ActorDiedError):
        return next((line for line in lines[1:] if not line.startswith("\t")), lines[0])
    return lines[-1] if isinstance(error, ray_errors.RayTaskError) else lines[0]


def _cause(error: Exception) -> FailureCause:
    if isinstance(error, StorageError):
        return "storage"
    if isinstance(error, ray_errors.OutOfMemoryError):
        return "out_of_memory"
    if any(getattr(told, "preempted", False) for told in (error, getattr(error, "cause", None))):
        return "preempted"
    if isinstance(error, ray_errors.NodeDiedError | ray_errors.ObjectLostError) or "its node has died" in str(error):
        return "node_lost"
    if isinstance(error, ray_errors.ActorUnavailableError):  # a node that lives would have told by now that its worker died
        return "node_lost"
    if isinstance(error, ray_errors.WorkerCrashedError) or not isinstance(error, ray_errors.RayTaskError):
        return "worker_lost"
    return "bug"
