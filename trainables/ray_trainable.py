"""The one adapter that lets Ray Tune run any experiment. The only file of this package that imports Ray."""

import contextlib
import logging
from collections.abc import Collection
from typing import Any

import ray
from ray import tune
from ray.exceptions import WorkerCrashedError

from trainables.errand import Errand
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


class StopBoard:
    """Where workers with several trials see which of them are stopped early: an actor, made by the study.

    Args:
        name: of the actor.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._actor: Any = ray.remote(num_cpus=0)(_Numbers).options(name=name).remote()

    def add(self, number: int) -> None:
        """Note a trial; whoever looks from now on sees it."""
        ray.get(self._actor.add.remote(number))


class _Numbers:
    def __init__(self) -> None:
        self._numbers: set[int] = set()

    def add(self, number: int) -> None:
        self._numbers.add(number)

    def all(self) -> set[int]:
        return self._numbers


class ExperimentTrainable(tune.Trainable):
    """A warm worker: it runs one errand after another (`trainables.errand`), without a new process.

    Its config holds `parcels`, lists of assignments as JSON (`trainables.protocol`), `slice_s`, and `stops`, the name of a
    `StopBoard` or None; its result holds `reports`, as JSON, and `done`. Checkpoints are the attempts' own, in the trials'
    folders: they outlive Ray, its snapshots and its retries.
    """

    def setup(self, config: dict[str, Any]) -> None:
        logging.getLogger("trainables").setLevel(logging.INFO)  # once: a change has every logger forget what it knows
        parcels = [[Assignment.from_json(text) for text in parcel] for parcel in config["parcels"]]
        self._errand = Errand(parcels, slice_s=config["slice_s"])
        self._stops = ray.get_actor(config["stops"]) if config["stops"] and len(self._errand.trials) > 1 else None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        with contextlib.suppress(StorageError):  # the attempts before are over: their trouble is not the next ones'
            self._errand.close()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        stopped: Collection[int] = ray.get(self._stops.all.remote()) if self._stops is not None else ()
        try:
            reports = self._errand.advance(stopped)
        except FATAL_TO_THE_WORKER as error:
            lost = LostWorkerError(str(error))
            lost.preempted = isinstance(error, SupersededError)
            raise lost from error
        return {"reports": [report.to_json() for report in reports], "done": self._errand.is_over}

    def cleanup(self) -> None:
        self._errand.close()
