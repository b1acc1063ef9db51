"""The one adapter that lets Ray Tune run any experiment. The only file of this package that imports Ray."""

import contextlib
from typing import Any

from ray import tune

from trainables.attempt import Attempt
from trainables.protocol import Assignment
from trainables.storage import StorageError


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
        report = self._attempt.advance()
        return {"report": report.to_json(), "done": report.finished or report.failure is not None}

    def cleanup(self) -> None:
        self._attempt.close()
