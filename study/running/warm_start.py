"""What other studies have found, for a sampler to know before it draws a study's first trial.

It is gathered once, at the first launch, and kept with the study: a resume draws by the same, whatever became of the others.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from search_spaces.space import Constraint, StudySpace, choose_representative
from study.asking.query import Study, open_study
from study.asking.trials import TrialRow
from study.errors import UserError
from study.home import write_whole
from study.probe import ProbeTrial
from study.spec import SpaceDescription

Known = dict[str, Any]
"""A trial of another study: `trial`, its label; `params`; `values` of our objectives; `violations` of our constraints."""


def gather(sources: Sequence[str], description: SpaceDescription, *, home: Path) -> list[Known]:
    """Read the finished trials of other studies that have all metrics of our objectives and constraints.

    Args:
        sources: names of studies.

    Raises:
        UserError: if there is no such study, or one of them has no such trial.
    """
    known: list[Known] = []
    for source in sources:
        study = open_study(source, home=home)
        found = [told for row in study.trials() if row.state == "finished" and (told := _known(source, study, row, description))]
        if not found:
            wanted = ", ".join([*description.objectives, *description.constraints])
            raise UserError(
                f"a study to start warm from must have finished trials with our metrics ({wanted}), but {source!r} has none; "
                "wait for it, or name another"
            )
        known += found
    return known


def _known(source: str, study: Study, row: TrialRow, description: SpaceDescription) -> Known | None:
    """What a trial found; None if it lacks a metric or has one that is not finite."""
    constraints = [Constraint.parse(text) for text in description.constraints]
    metric, goal = next(iter((description.representative or description.objectives).items()))
    needed = {metric, *description.objectives, *(constraint.metric for constraint in constraints)}
    candidates = {c.candidate or 0: c.metrics for c in study.candidates(row.number)} or {0: row.metrics}
    if not all(math.isfinite(metrics.get(name, math.nan)) for metrics in candidates.values() for name in needed):
        return None
    metrics = candidates[choose_representative(candidates, constraints, metric, goal)]
    return {
        "trial": f"{source}/{row.number}",
        "params": row.params,
        "values": [metrics[name] for name in description.objectives],
        "violations": {str(constraint): constraint.violation(metrics) for constraint in constraints},
    }


def save(file: Path, known: Sequence[Known]) -> str:
    """Keep what was gathered; returns its digest."""
    text = json.dumps(known)
    write_whole(file, text)
    return _digest(text)


def load(file: Path, digest: str) -> list[Known]:
    """Read what was kept.

    Raises:
        UserError: if it is not there, or is not what it was.
    """
    try:
        text = file.read_text()
    except OSError as error:
        raise UserError(f"a study keeps what it started warm from, but {file} cannot be read ({error}); put it back") from error
    if _digest(text) != digest:
        raise UserError(f"a study keeps what it started warm from, but {file} has changed; put it back as it was")
    found: list[Known] = json.loads(text)
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def as_trials(known: Sequence[Known], space: StudySpace, *, whole_only: bool) -> list[FrozenTrial]:
    """Trials as a sampler of our space takes them: with our ranges, and without parameters that we do not have.

    A parameter out of our range is left out, too.

    Args:
        whole_only: only those that have a value of every parameter that our space then draws, for samplers that know none else.

    Returns:
        finished trials with numbers below 0: they are none of the study's.
    """
    trials = []
    for number, told in enumerate(known, start=1):
        observer = _Observer(told["params"])
        try:
            space.suggest(observer)  # type: ignore[arg-type]  # a stand-in with the methods that spaces use
        except Exception:  # no config of ours comes of its parameters
            continue
        if observer.distributions and not (whole_only and observer.lacks_some):
            trials.append(_frozen(-number, told, observer))
    return trials


def _frozen(number: int, told: Known, observer: "_Observer") -> FrozenTrial:
    trial = optuna.trial.create_trial(
        state=TrialState.COMPLETE,
        values=told["values"],
        params={name: observer.params[name] for name in observer.distributions},
        distributions=observer.distributions,
        user_attrs={"of": told["trial"]},
        constraints=told["violations"] or None,
    )
    trial.number = trial._trial_id = number
    return trial


class _Observer(ProbeTrial):
    """Goes through a space with the parameters of a trial of another, and notes the ranges of those that fit.

    Attributes:
        distributions: of the parameters that it knew.
        lacks_some: whether it had to make one up.
    """

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(0)
        self._params = params
        self.distributions: dict[str, BaseDistribution] = {}
        self.lacks_some = False

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> float:
        if self._observe(name, FloatDistribution(low, high, log=log, step=step)):
            return float(self.params[name])
        return super().suggest_float(name, low, high, step=step, log=log)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        if self._observe(name, IntDistribution(low, high, log=log, step=step)):
            return int(self.params[name])
        return super().suggest_int(name, low, high, step=step, log=log)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        if self._observe(name, CategoricalDistribution(choices)):
            return self.params[name]
        return super().suggest_categorical(name, choices)

    def _observe(self, name: str, distribution: BaseDistribution) -> bool:
        """Whether the trial has a value that fits."""
        try:
            fits = name in self._params and distribution._contains(distribution.to_internal_repr(self._params[name]))
        except (TypeError, ValueError):
            fits = False
        if fits:
            self.params[name], self.distributions[name] = self._params[name], distribution
        else:
            self.lacks_some = True
        return fits
