"""Several trials in one process, each an attempt of its own; those that can make their steps together do.

Plain Python, as `trainables.attempt`: what runs here under Ray runs the same without it.
"""

import contextlib
import logging
from collections.abc import Collection, Hashable, Iterator, Sequence
from typing import Any

from trainables.attempt import Attempt
from trainables.clock import Moment, evaluation_so_far
from trainables.experiment import Experiment
from trainables.failures import FATAL_TO_THE_WORKER
from trainables.laws import require
from trainables.packing import Made, Outcome, Pack
from trainables.protocol import Assignment, Report
from trainables.storage import StorageError

logger = logging.getLogger(__name__)


class Parcel:
    """Runs several assignments side by side, one step of each at a time.

    Each member is an `Attempt`: its folder, checkpoints, log, model and failure are its own, and what it reports is what it
    would report alone. Members whose experiments have one `pack_key`, and have made as many steps, make them as one program,
    as many together as `pack_size` says; the others take turns. What a pack logs goes to the log of each of its members; what
    it prints, to that of its first.

    Args:
        assignments: of different trials, with the same CPUs and GPUs, which they share.
    """

    def __init__(self, assignments: Sequence[Assignment]) -> None:
        resources = {(each.num_cpus, each.num_gpus) for each in assignments}
        trials = [each.trial for each in assignments]
        remedy = "put each into a parcel of its like"
        require(len(resources) == 1, "trials of a parcel must share their CPUs and GPUs", sorted(resources), remedy)
        require(len(set(trials)) == len(trials), "trials of a parcel must differ", trials, "name each once")
        self._attempts = {each.trial: Attempt(each, num_together=len(assignments)) for each in assignments}
        self._packs: list[_Packed] | None = None  # once all have begun

    @property
    def trials(self) -> list[int]:
        """Numbers of the trials that are not over."""
        return list(self._attempts)

    def advance(self, stopped: Collection[int] = ()) -> list[Report]:
        """Make one step of every trial that is not over, and report of each.

        Args:
            stopped: trials that end here without a result: nothing more of them is reported, or saved but the log. Those that
                are over already may be named, too.

        Raises:
            StorageError, Exception: what ends the process for every trial (`FATAL_TO_THE_WORKER`), and what is no fault of
                any: all shall be tried again. Nothing but `close` may follow.
        """
        for trial in stopped:
            if trial in self._attempts:
                self._attempts[trial].stop()
                self._leave(trial)
        if self._packs is None:
            self._packs = self._form_packs()
        made = {trial: step for pack in self._packs for trial, step in pack.step().items()}
        reports: list[Report] = []
        errors: list[Exception] = []
        for trial, attempt in list(self._attempts.items()):
            try:
                report = attempt.advance(made.get(trial))
            except (*FATAL_TO_THE_WORKER, StorageError) as error:
                errors.append(error)
                continue  # the others' steps are made, and theirs to keep
            reports.append(report)
            if report.finished or report.failure is not None:
                self._leave(trial)
        if errors:
            raise errors[0]
        return reports

    def close(self) -> None:
        """Keep the work of every trial since its last checkpoint: the parcel ends here, its trials may go on elsewhere.

        Raises:
            StorageError: if the storage did not take all of it.
        """
        with contextlib.ExitStack() as closing:  # closes the others even if one raises
            for attempt in self._attempts.values():
                closing.callback(attempt.close)
        self._attempts = {}

    def _leave(self, trial: int) -> None:
        del self._attempts[trial]
        for pack in self._packs or []:
            pack.drop(trial)

    def _form_packs(self) -> list["_Packed"]:
        alike: dict[Hashable, list[tuple[Attempt, Experiment]]] = {}
        for attempt in self._attempts.values():
            experiment = attempt.begin()
            key = None if experiment is None else type(experiment).pack_key(attempt.config)
            if experiment is not None and key is not None and attempt.assignment.num_gpus <= 1:
                alike.setdefault((type(experiment), key, attempt.num_steps), []).append((attempt, experiment))
        return [_Packed(part) for members in alike.values() for part in _parts(members) if len(part) > 1]


class _Packed:
    """Attempts whose experiments are one pack."""

    def __init__(self, members: Sequence[tuple[Attempt, Experiment]]) -> None:
        self._attempts = {attempt.assignment.trial: attempt for attempt, _ in members}
        self._experiments = {attempt.assignment.trial: experiment for attempt, experiment in members}
        self._pack: Pack[Any] | None = None

    def step(self) -> dict[int, Made]:
        """Make a step of every member: of each trial what came of it, and its part of the time."""
        if not self._experiments:
            return {}
        start, measured_before = Moment.now(), evaluation_so_far()
        with contextlib.ExitStack() as logging_to_all:
            for attempt in reversed(self._attempts.values()):  # the first comes last, and gets what is printed
                logging_to_all.enter_context(attempt.capture())
            outcomes = self._outcomes()
        took, measuring = (_divide(span, len(outcomes)) for span in (Moment.now() - start, evaluation_so_far() - measured_before))
        return {
            trial: Made(outcome=outcomes[experiment], took=took, measuring=measuring)
            for trial, experiment in self._experiments.items()
        }

    def _outcomes(self) -> dict[Experiment, Outcome]:
        members = list(self._experiments.values())
        try:
            if self._pack is None:
                logger.info("makes its steps together with: trials %s", ", ".join(map(str, self._attempts)))
                self._pack = type(members[0]).pack(members)
            return self._pack.step()
        except Exception as error:  # of none alone: each of them ends by it
            return dict.fromkeys(members, error)

    def drop(self, trial: int) -> None:
        """Go on without a trial, if it is a member."""
        experiment = self._experiments.pop(trial, None)
        self._attempts.pop(trial, None)
        if self._pack is not None and experiment in self._pack.members:
            self._pack.drop(experiment)


def _parts(members: list[tuple[Attempt, Experiment]]) -> Iterator[list[tuple[Attempt, Experiment]]]:
    """Divide what can be packed into packs of a size that pays."""
    attempt, experiment = members[0]
    assigned = attempt.assignment
    size = type(experiment).pack_size(attempt.config, num_cpus=assigned.num_cpus, num_gpus=assigned.num_gpus)
    for start in range(0, len(members), max(1, size)):
        yield members[start : start + max(1, size)]


def _divide(span: Moment, num_parts: int) -> Moment:
    return Moment(span.seconds / num_parts, span.cpu_seconds / num_parts)
