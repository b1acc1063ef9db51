"""One attempt at a trial: build the experiment or go on from its checkpoint, advance it, keep it safe.

Plain Python: what runs here under Ray runs the same without it.
"""

import contextlib
import dataclasses
import logging
import os
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trainables.charts import chart_files
from trainables.checkpoints import Checkpoints
from trainables.clock import PROCESS_CPU, Moment, evaluation_so_far
from trainables.experiment import Account, Experiment, check_declared, check_finite, gather_needs, make_experiment
from trainables.failpoints import failpoint
from trainables.failures import FATAL_TO_THE_WORKER, InvalidConfigError, SupersededError, failure_of
from trainables.laws import require
from trainables.model_files import save_model
from trainables.packing import Made
from trainables.parallel import World
from trainables.parallel_seat import Seat
from trainables.passport import Making, inputs_of
from trainables.protocol import STOPPED_FILE, Assignment, Failure, Measurement, Offer, Report, plain
from trainables.registry import load_experiment
from trainables.shared import Shared
from trainables.storage import Folder, StorageError, storage_errors
from trainables.trial_log import LOG_FILE, TrialLog

CHECKPOINT_INTERVAL = "NARROW_STUDY_CHECKPOINT_S"
"""Environment variable: seconds that must pass between two checkpoints, if not these."""
MIN_SECONDS_BETWEEN_CHECKPOINTS = 5.0
MAX_CHECKPOINT_SHARE = 0.05

logger = logging.getLogger(__name__)


class Attempt:
    """Runs an assignment, one step at a time, in this process and, of several GPUs, in one more for each GPU but the first.

    Nothing is built before the first `advance()`, so that a broken config or module is that trial's failure, with its
    cause and traceback, and never the worker's.

    Args:
        world: the processes that train together; None for one for each GPU.
        num_together: attempts that share this process, each with its part of the time for checkpoints.
    """

    def __init__(self, assignment: Assignment, *, world: World | None = None, num_together: int = 1) -> None:
        self.assignment = assignment
        self._num_together = num_together
        self._world = world or World.of(assignment.num_gpus)
        self._folder = Folder(assignment.folder)
        self._checkpoints = checkpoints_of(assignment)
        self._experiment: Experiment | None = None
        self._config: Any = None
        self._inputs: Mapping[str, Any] = {}
        self._measurements: list[Measurement] = []
        self._num_told = 0
        self._broken: Exception | None = None  # by what it could not begin
        self._resumed_step = self._saved_step = 0
        self._saved_at = self._advanced_at = time.monotonic()
        self._save_seconds = 0.0
        self._log = TrialLog()

    @property
    def config(self) -> Any:
        """The experiment's Config, once it has begun."""
        return self._config

    @property
    def num_steps(self) -> int:
        """Steps made so far, by earlier attempts, too."""
        return len(self._measurements)

    def capture(self) -> contextlib.AbstractContextManager[None]:
        """Send to the trial's log what is logged and printed inside."""
        return self._log.capture()

    def begin(self) -> Experiment | None:
        """Build the experiment, or go back to its checkpoint, ahead of `advance`; None if it has no step to make.

        What goes wrong here is told by the next `advance`.
        """
        try:
            with self._log.capture():
                experiment = self._experiment or self._begin()
                return experiment if self._checked_progress(experiment) < 1.0 else None
        except Exception as error:
            self._broken = error
            return None

    def advance(self, made: Made | None = None) -> Report:
        """Make one step, or only report where nothing is left to do; never raises for what the experiment did.

        Args:
            made: the step, if a pack has made it.
        """
        self._advanced_at = time.monotonic() - (made.took.seconds if made else 0.0)
        try:
            with self._log.capture():
                finished = self._advance(made)
        except FATAL_TO_THE_WORKER:
            self.abandon()
            raise
        except StorageError:
            self._world.close()
            raise  # no fault of the trial's: it shall be tried again
        except Exception as error:
            failure = failure_of(error)
            self.abandon()
            self._log.write(failure.traceback)
            self._write_log()
            return self._report(failure=failure)
        if finished:
            self._world.close()
        return self._report(finished=finished)

    def close(self) -> None:
        """Keep the work since the last checkpoint: the attempt ends here, the trial may go on elsewhere."""
        try:
            if self._experiment is not None and self._measurements and self._measurements[-1].step > self._saved_step:
                if self._is_stopped():
                    self._write_log()
                    return
                with contextlib.suppress(SupersededError):
                    self._save()
        finally:
            self._world.close()

    def _is_stopped(self) -> bool:
        with storage_errors("the files of a trial"):
            return STOPPED_FILE in self._folder.names()

    def stop(self) -> None:
        """End here without a result: nothing more is kept but the log."""
        if self._experiment is not None:
            self._write_log()
        self.abandon()

    def abandon(self) -> None:
        """Give up what is in memory: nothing of it is worth keeping, after a failure or for a trial that is stopped."""
        self._experiment = None
        self._world.close()

    def _advance(self, made: Made | None) -> bool:
        if self._broken is not None:
            raise self._broken
        experiment = self._experiment or self._begin()
        progress = self._checked_progress(experiment)
        if made is not None or progress < 1.0:
            step = len(self._measurements) + 1
            try:
                metrics, took = self._timed_step(experiment, step, made)
                offers = self._keep_candidates(experiment)
            except StorageError:
                self._experiment = None  # it is ahead of what is told: the next attempt makes that step again
                raise
            progress = self._checked_progress(experiment)
            reported = Measurement(
                step=step, metrics=metrics, progress=progress, candidates=offers, flops=experiment.flops(), **took
            )
            self._measurements.append(reported)
        finished = progress == 1.0
        if finished:
            self._checkpoints.refuse_if_superseded()
            self._save_results(experiment)
        if finished or self._checkpoint_is_due():
            self._save()
        if finished:
            failpoint("work saved")
        return finished

    def _timed_step(self, experiment: Experiment, step: int, made: Made | None) -> tuple[dict[str, float], dict[str, float]]:
        """Make a step, unless it is made; return its metrics, and what it took, as `Measurement` has it."""
        if made is None:
            start, measured_before = Moment.now(), evaluation_so_far()
            outcome = self._world.step(experiment)
            made = Made(outcome=outcome, took=Moment.now() - start, measuring=evaluation_so_far() - measured_before)
        if isinstance(made.outcome, Exception):
            raise made.outcome
        return _checked_metrics(made.outcome, experiment, where=f"step {step}"), {
            "seconds": made.took.seconds,
            "cpu_seconds": made.took.cpu_seconds,
            "evaluation_seconds": made.measuring.seconds,
            "evaluation_cpu_seconds": made.measuring.cpu_seconds,
        }

    def _keep_candidates(self, experiment: Experiment) -> list[Offer]:
        """Write the models that a step found before anybody hears of them."""
        candidates = experiment.candidates()
        num_known = sum(len(measurement.candidates) for measurement in self._measurements)
        numbers, expected = [c.number for c in candidates], list(range(num_known, num_known + len(candidates)))
        if numbers != expected:
            raise ValueError(
                f"candidates must be numbered from 0, one by one, but got {numbers} where {expected} should come; "
                "count them in state_dict()"
            )
        offers: list[Offer] = [
            {
                "number": c.number,
                "metrics": _checked_metrics(c.metrics, experiment, where=f"candidate {c.number}"),
                "folder": f"candidates/{c.number:05d}-{self.assignment.attempt}",
            }
            for c in candidates
        ]
        for c, offer in zip(candidates, offers, strict=True):
            making = self._making(offer["metrics"], c.account, candidate=c.number)
            name, folder = self.assignment.experiment, self._folder.child(offer["folder"])
            save_model(folder, name, self._config, c.tensors, making=making)
        return offers

    def _save_results(self, experiment: Experiment) -> None:
        tensors, files = experiment.model_tensors(), experiment.model_files()
        making = self._making(self._measurements[-1].metrics if self._measurements else {}, experiment.account())
        save_model(self._folder.child("model"), self.assignment.experiment, self._config, tensors, files, making)
        self._save_charts(experiment)

    def _making(self, metrics: Mapping[str, float], account: Account, candidate: int | None = None) -> Making:
        device = self._world.seat.device
        return Making(metrics=metrics, account=account, inputs=self._inputs, device=device, candidate=candidate)

    def _save_charts(self, experiment: Experiment) -> None:
        """Write what is worth a look; the trial stands without it."""
        try:
            files = chart_files(experiment.charts())
        except Exception:
            logger.exception("could not make charts; the trial stands without them")
            return
        with storage_errors("charts"):
            self._folder.child("charts").write_all(files)

    def _begin(self) -> Experiment:
        assignment = self.assignment
        with storage_errors("the files of a study, seen by every node"):
            Folder(assignment.study_folder).read("study.json")
            self._log.restore(self._folder)
        self._checkpoints.claim()
        if assignment.attempt > 1:
            self._folder.sweep()
            self._folder.child("model").sweep()
        self._world.start()
        blueprint = plan(assignment, self._world.seat)
        self._config, self._inputs = blueprint.config, blueprint.inputs
        experiment = self._world.build(assignment, blueprint.make)
        device = blueprint.device
        logger.info("trial %d, attempt %d, on %s (pid %d), %s", assignment.trial, assignment.attempt, _HOST, os.getpid(), device)
        state = self._checkpoints.load()
        if state is not None and state["config"] != assignment.config:  # the record went back to before this trial was drawn
            logger.warning("the checkpoint is of another config; begins anew")
            state = None
        if state is not None:
            self._measurements = [Measurement(**fields) for fields in state["measurements"]]
            self._resumed_step = self._saved_step = len(self._measurements)
            self._world.load(experiment, state["experiment"], step=self._saved_step)
            logger.info("goes on from its checkpoint after step %d", self._saved_step)
        self._experiment = experiment
        return experiment

    def _checked_progress(self, experiment: Experiment) -> float:
        progress = float(experiment.progress)
        before = self._measurements[-1].progress if self._measurements else 0.0
        if not before <= progress <= 1.0:
            raise ValueError(
                f"progress must not fall and must be in [0, 1], but got {progress} after {before}; "
                "return the share of the work done"
            )
        return progress

    def _checkpoint_is_due(self) -> bool:
        least = float(os.environ.get(CHECKPOINT_INTERVAL, MIN_SECONDS_BETWEEN_CHECKPOINTS))
        wait = max(least, self._num_together * self._save_seconds / MAX_CHECKPOINT_SHARE)
        return time.monotonic() - self._saved_at >= wait

    def _save(self) -> None:
        start = time.monotonic()
        assert self._experiment is not None
        state = {
            "experiment": self._experiment.state_dict(),
            "config": self.assignment.config,
            "measurements": [plain(measurement) for measurement in self._measurements],
        }
        self._checkpoints.refuse_if_superseded()
        self._write_log()
        self._checkpoints.save(len(self._measurements), state)
        self._saved_step = len(self._measurements)
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - start

    def _write_log(self) -> None:
        with storage_errors("logs"):
            self._folder.write(LOG_FILE, self._log.text().encode(errors="backslashreplace"))

    def _report(self, *, finished: bool = False, failure: Failure | None = None) -> Report:
        measurements, self._num_told = self._measurements[self._num_told :], len(self._measurements)
        return Report(
            trial=self.assignment.trial,
            attempt=self.assignment.attempt,
            measurements=measurements,
            finished=finished,
            failure=failure,
            host=_HOST,
            pid=os.getpid(),
            resumed_step=self._resumed_step,
            seconds=time.monotonic() - self._advanced_at,
            cpu_seconds=PROCESS_CPU.take(),
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Blueprint:
    """An experiment with all that it needs, about to be made."""

    experiment_class: type[Experiment]
    config: Any
    device: torch.device
    given: Mapping[str, Mapping[str, Tensor]]
    inputs: Mapping[str, Any]  # what was given, as a passport tells it

    def make(self) -> Experiment:
        return make_experiment(self.experiment_class, self.config, device=self.device, given=self.given)


def plan(assignment: Assignment, seat: Seat) -> Blueprint:
    """Find an assignment's experiment and what it needs; every process that trains it does.

    Raises:
        InvalidConfigError: if its Config refuses its arguments.
        ValueError: if there is no such experiment, or it is for one process and there are several.
    """
    sys.path.extend(path for path in assignment.import_paths if path not in sys.path)
    torch.set_num_threads(seat.num_threads(assignment.num_cpus))
    experiment_class = load_experiment(assignment.experiment)
    law = "an experiment must say `parallel` to be trained by several processes"
    require(seat.size == 1 or experiment_class.parallel, law, assignment.experiment, "give its trials one GPU or less")
    try:
        config = experiment_class.Config(**assignment.config)
    except (TypeError, ValueError) as error:
        raise InvalidConfigError(str(error)) from error
    shared = Shared(Folder(assignment.study_folder).child("shared"))
    given = gather_needs(experiment_class, config, device=seat.device, shared=shared)
    inputs = inputs_of(experiment_class.needs(config), shared.digests)
    return Blueprint(experiment_class=experiment_class, config=config, device=seat.device, given=given, inputs=inputs)


def checkpoints_of(assignment: Assignment) -> Checkpoints:
    """The checkpoints of its trial: states of the experiment, each with the measurements until then."""
    return Checkpoints(Folder(assignment.folder).child("checkpoints"), assignment.attempt)


_HOST = socket.gethostname()


def _checked_metrics(reported: Mapping[str, float], experiment: Experiment, *, where: str) -> dict[str, float]:
    """Metrics of a step or a candidate as plain numbers: all that are declared, and no other."""
    metrics = {name: float(value) for name, value in reported.items()}
    check_finite(metrics, where=where)
    check_declared(metrics, experiment.METRICS, where=where)
    return metrics
