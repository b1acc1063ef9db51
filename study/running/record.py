"""The one record that is true: which trials exist, with what parameters, and how each ended.

It is an Optuna study (`study.running.record_place`) with one writer: the process that holds the study's lease.
A trial and its whole config are committed here before any worker sees them.
"""

import json
import logging
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from search_spaces.space import Constraint, StudySpace
from study.errors import causes
from study.home import StudyFolder
from study.running import warm_start
from study.running.drawing import REPEATS, Drawer
from study.running.record_place import RecordPlace
from study.running.replicates import of_replicate
from study.running.samplers_by_name import STOPPED
from study.spec import StudySpec
from trainables.failpoints import failpoint
from trainables.protocol import Failure

_CONFIG = "config"
_ATTEMPTS = "attempts"
_FAILURE = "failure"
_CANDIDATE = "candidate"
_DIRECTIONS = {"min": optuna.study.StudyDirection.MINIMIZE, "max": optuna.study.StudyDirection.MAXIMIZE}


@dataclass(frozen=True, slots=True)
class Draw:
    """A trial as it is handed out.

    Attributes:
        params: what the sampler drew.
        config: what the space made of it.
        attempt: 1 when it is handed out for the first time.
        failure: why the space could not make a config; there is nothing to run then.
        repeats: the earlier trial that has the same parameters, where no others were found.
    """

    number: int
    params: dict[str, Any]
    config: dict[str, Any]
    attempt: int
    failure: Failure | None = None
    repeats: int | None = None


@dataclass(frozen=True, slots=True)
class PastTrial:
    """A trial that finished: its objectives in the space's order, and whether it meets the constraints.

    Attributes:
        candidate: number of the candidate that these are of; None where the trial has none.
    """

    number: int
    candidate: int | None
    params: dict[str, Any]
    values: list[float]
    feasible: bool


class TrialRecord:
    """Draws trials and remembers their ends.

    Args:
        folder: of the study; the caller holds its lease.

    Attributes:
        unfinished, ended: trials, by number, as they were when the record was opened.
    """

    def __init__(self, folder: StudyFolder, spec: StudySpec, space: StudySpace) -> None:
        self._spec = spec
        self._space = space
        self._constraints = [Constraint.parse(text) for text in space.constraints]
        logging.getLogger("optuna").setLevel(logging.WARNING)
        directions = [_DIRECTIONS[goal] for goal in spec.description.objectives.values()]
        self._study, self._storage = RecordPlace.of(spec, folder).open(directions)
        trials = self._study.get_trials(deepcopy=False)
        self._trial_ids = [trial._trial_id for trial in trials]
        self.unfinished = [trial.number for trial in trials if not trial.state.is_finished()]
        self.ended = [trial.number for trial in trials if trial.state.is_finished()]
        self.num_failed = sum(trial.state == TrialState.FAIL for trial in trials)
        self.num_stopped = sum(trial.state == TrialState.PRUNED for trial in trials)
        self.num_finished = sum(trial.state == TrialState.COMPLETE for trial in trials)
        self.past = [
            PastTrial(
                t.number,
                t.user_attrs.get(_CANDIDATE),
                dict(t.params),
                list(t.values),
                all(v <= 0 for v in t.constraints.values()),
            )
            for t in trials
            if t.state == TrialState.COMPLETE
        ]

        told = warm_start.load(folder.warm_start_file, spec.warm_start_digest) if spec.warm_start else []
        known = warm_start.as_trials(told, space, whole_only=spec.sampler != "tpe")
        self._drawer = Drawer(self._study, spec, space, trials, known)
        cut_short = [number for number in self.unfinished if _CONFIG not in trials[number].user_attrs]
        self._redrawn = {number: self._draw_to_the_end(number) for number in cut_short}

    def _draw_to_the_end(self, number: int) -> Draw:
        """Draw what is missing of a trial whose drawing was cut short, before any other trial's end is told.

        The same seed over the same past draws the same parameters.
        """
        self._study.sampler = self._drawer.sampler(number)
        return self._hand_out(self._trial(number))

    def __len__(self) -> int:
        """Trials drawn so far, whatever became of them."""
        return len(self._trial_ids)

    @property
    def is_spent(self) -> bool:
        """Whether nothing was left to do when the record was opened: every trial of the budget is drawn and ended."""
        return not self.unfinished and len(self) >= self._spec.num_trials

    def draw(self) -> Draw:
        """Draw a new trial and commit it whole."""
        rehearsal, draw = self._drawer.draw(len(self), self._hand_out)
        failpoint("trial drawn")
        self._trial_ids.append(rehearsal.commit())
        return replace(draw, repeats=rehearsal.frozen.user_attrs.get(REPEATS))

    def draw_again(self, number: int) -> Draw:
        """Hand out a trial that did not end: same number, same config, one attempt more."""
        if number in self._redrawn:
            return self._redrawn.pop(number)
        trial = self._trial(number)
        attempt = trial.user_attrs[_ATTEMPTS] + 1
        trial.set_user_attr(_ATTEMPTS, attempt)
        return Draw(number, trial.params, json.loads(trial.user_attrs[_CONFIG]), attempt)

    def _trial(self, number: int) -> optuna.Trial:
        return optuna.Trial(self._study, self._trial_ids[number])

    def _hand_out(self, trial: optuna.Trial) -> Draw:
        try:
            replicate = trial.number % self._spec.replicates
            config = of_replicate(self._space.suggest(trial), replicate, self._space.experiment)
        except Exception as error:  # somebody else's code, which the probes did not catch: this draw fails, others may not
            if any(isinstance(cause, StorageInternalError | SQLAlchemyError) for cause in causes(error)):
                raise  # the record's own trouble, and no fault of the trial's
            failure = Failure(cause="invalid_config", error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
            return Draw(trial.number, trial.params, {}, 1, failure)
        trial.set_user_attr(_ATTEMPTS, 1)
        trial.set_user_attr(_CONFIG, json.dumps(config))
        return Draw(trial.number, trial.params, config, 1)

    def finish(self, number: int, metrics: Mapping[str, float], candidate: int | None = None) -> None:
        """Tell the sampler a trial's objectives and constraints: its own, or those of the candidate that stands for it."""
        trial = self._trial(number)
        with self._storage.together():
            if candidate is not None:
                trial.set_user_attr(_CANDIDATE, candidate)
            self._constrain(trial, metrics)
            self._study.tell(number, [metrics[name] for name in self._space.objectives])
        self.num_finished += 1

    def stop(self, number: int, stop: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Tell the sampler that a trial was stopped early: it is no result.

        Args:
            stop: the rung, the values there and why, as JSON (`study.running.rungs.Stop`).
            metrics: all of the trial's at that rung.
        """
        trial = self._trial(number)
        goals = self._spec.description.at_rungs.items()
        costs = [stop["values"][metric] * (1 if goal == "min" else -1) for metric, goal in goals]
        with self._storage.together():
            trial.set_user_attr(STOPPED, {**stop, "costs": costs})
            self._constrain(trial, metrics)
            self._study.tell(number, state=TrialState.PRUNED)
        self.num_stopped += 1

    def _constrain(self, trial: optuna.Trial, metrics: Mapping[str, float]) -> None:
        for constraint in self._constraints:
            if str(constraint) not in trial.constraints:
                trial.set_constraint(str(constraint), constraint.violation(metrics))

    def fail(self, number: int, failure: Failure) -> None:
        """End a trial without a result."""
        text = json.dumps({"cause": failure.cause, "error": failure.error})
        self._drawer.sets.forget(number)
        with self._storage.together():
            self._trial(number).set_user_attr(_FAILURE, text)
            self._study.tell(number, state=TrialState.FAIL)
        self.num_failed += 1
