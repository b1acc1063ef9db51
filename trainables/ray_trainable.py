"""The one adapter that lets Ray Tune run any experiment. The only file of this package that imports Ray."""

import contextlib
from typing import Any

from ray import tune
from ray.exceptions import WorkerCrashedError

from trainables.attempt import Attempt
from trainables.failures import FATAL_TO_THE_WORKER, SupersededError
from trainables.protocol import Assignment
from trainables.storage import StorageError


class LostWorkerError(WorkerCrashedError):
    """This worker's device, another process that it trains with, or its trial is lost, and the worker with it.

    It is one of Ray's own, so that a study takes it for what it is and tries the trial again in another worker.
    """

    preempted = False
    """Whether another attempt has the trial: no fault of this one's."""

    def __str__(self) -> str:
        return str(self.args[0])


class ExperimentTrainable(tune.Trainable):
    """A warm worker: it runs one attempt after another without a new process.

    Its config holds one key, `assignment`; its result holds `report`, both as JSON (`trainables.protocol`), and `done`.
    Checkpoints are the attempt's own, in the trial's folder: they outlive Ray, its snapshots and its retries.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._attempt = Attempt(Assignment.from_json(config["assignment"]))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        with contextlib.suppress(StorageError):  # the attempt before is over: its trouble is not the next one's
            self._attempt.close()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        try:
            report = self._attempt.advance()
        except FATAL_TO_THE_WORKER as error:
            lost = LostWorkerError(str(error))
            lost.preempted = isinstance(error, SupersededError)
            raise lost from error
        return {"report": report.to_json(), "done": report.finished or report.failure is not None}

    def cleanup(self) -> None:
        self._attempt.close()
