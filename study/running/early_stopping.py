"""Early stopping of a study's trials: what they are judged by, what of it outlives a crash, and Ray Tune's end of it."""

from collections.abc import Callable, Collection
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from search_spaces.space import Constraint
from study.recording.outbox import Outbox
from study.running.rungs import Rungs, Stop, StopRule
from study.spec import StudySpec
from trainables.protocol import Measurement


class Judge:
    """Says which trials are to be stopped.

    What a trial showed at a rung is put into the outbox before anybody is judged by it, so that a resumed study goes by the
    same; who of the unfinished was to be stopped then, and the driver died over it, is stopped when heard of again.

    Args:
        outbox: of the study; what it knows of earlier sessions is taken in.
        unfinished: trials that are to go on.
    """

    def __init__(self, spec: StudySpec, outbox: Outbox, unfinished: Collection[int] = ()) -> None:
        self._outbox = outbox
        self._rule = StopRule.parse(spec.early_stopping)
        self._constraints = [Constraint.parse(text) for text in spec.description.constraints]
        self._columns = {*spec.description.at_rungs, *(constraint.metric for constraint in self._constraints)}
        self._rungs = Rungs(self._rule, spec.description.at_rungs, self._constraints)
        self._progress: dict[int, float] = {}
        for trial, shown in outbox.rungs() if self._rule.levels else ():
            take_in = self._rungs.judge if trial in unfinished else self._rungs.remember
            take_in(trial, shown["progress"], shown["metrics"])

    def hear(self, trial: int, measurement: Measurement) -> Stop | None:
        """Take a trial's measurement in; return why it is to be stopped, if it is."""
        before, progress = self._progress.get(trial, 0.0), measurement.progress
        self._progress[trial] = progress
        if any(before < level <= progress for level in self._rule.levels):
            metrics = {name: measurement.metrics[name] for name in sorted(self._columns)}
            self._outbox.put_rung(trial, measurement.step, {"progress": progress, "metrics": metrics})
        return self._rungs.judge(trial, progress, measurement.metrics)


class EarlyStopping(FIFOScheduler):
    """Ray Tune's scheduler: first come, first served, and a trial stops when the study says so.

    Args:
        hear: takes a trial's id and a report that is not its last; returns whether the trial is to stop.
    """

    def __init__(self, hear: Callable[[str, dict[str, Any]], bool]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._hear = hear

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return TrialScheduler.STOP if self._hear(trial.trial_id, result) else TrialScheduler.CONTINUE
