"""Optuna's storage for a study that one process writes: what it has read or written once, it never asks the database again."""

import copy
import datetime
import json
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState, create_trial

from study.running.trial_rows import read_trials

_TRIALS, _PARAMS, _VALUES, _USER, _SYSTEM = (
    model.__table__
    for model in (
        models.TrialModel,
        models.TrialParamModel,
        models.TrialValueModel,
        models.TrialUserAttributeModel,
        models.TrialSystemAttributeModel,
    )
)
_NEWEST = (
    sqlalchemy.select(_TRIALS.c.number)
    .where(_TRIALS.c.study_id == sqlalchemy.bindparam("study"))
    .order_by(_TRIALS.c.trial_id.desc())
    .limit(1)
)
_END = (
    _TRIALS.update()
    .where(_TRIALS.c.trial_id == sqlalchemy.bindparam("trial"))
    .values(state=sqlalchemy.bindparam("ended_as"), datetime_complete=sqlalchemy.bindparam("at"))
)
_CHANGES = {
    table: table.update()
    .where(table.c.trial_id == sqlalchemy.bindparam("trial"), table.c.key == sqlalchemy.bindparam("name"))
    .values(value_json=sqlalchemy.bindparam("json"))
    for table in (_USER, _SYSTEM)
}


class TrialStorage(optuna.storages.RDBStorage):
    """A database with one study or several, of which this process writes one, and nobody else does.

    Trials of that study must report no intermediate values and never wait in Optuna's queue. Of every other study, Optuna's own
    code reads and writes.

    Differs: Optuna reads a trial anew, row by row, before every change of it, and commits each change for itself.
    """

    def __init__(self, url: str, engine_kwargs: dict[str, Any] | None = None) -> None:
        super().__init__(url, engine_kwargs)
        self._study: int | None = None
        self._trials: dict[int, FrozenTrial] = {}
        self._is_together = False
        self._unsaved: list[tuple[Any, dict[str, Any]]] = []

    @contextmanager
    def together(self) -> Iterator[None]:
        """Inside, changes of trials are collected; they are committed at its end, all or none."""
        self._is_together = True
        try:
            yield
            self._save()
        finally:
            self._is_together, self._unsaved = False, []

    def _change(self, statement: Any, values: dict[str, Any]) -> None:
        self._unsaved.append((statement, values))
        if not self._is_together:
            self._save()

    def _save(self) -> None:
        unsaved, self._unsaved = self._unsaved, []
        if unsaved:
            with self.engine.begin() as connection:
                for statement, values in unsaved:
                    connection.execute(statement, values)

    def _get_trials(
        self, study_id: int, states: Container[TrialState] | None, included_trial_ids: set[int], trial_id_greater_than: int
    ) -> list[FrozenTrial]:
        """All trials above an id, and those of some ids; what Optuna's cache asks for."""
        if states is not None or self._study not in (None, study_id):
            return super()._get_trials(study_id, states, included_trial_ids, trial_id_greater_than)
        if self._study is None:
            self._study, self._trials = study_id, {trial._trial_id: trial for trial in read_trials(self.engine, study_id)}
        found = [self._trials[trial_id] for trial_id in included_trial_ids if trial_id <= trial_id_greater_than]
        for trial_id in reversed(self._trials):
            if trial_id <= trial_id_greater_than:
                break
            found.append(self._trials[trial_id])
        return sorted(found, key=lambda trial: trial._trial_id)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        if trial_id not in self._trials:
            return super().get_trial(trial_id)
        trial = copy.copy(self._trials[trial_id])  # which its reader may change
        trial.params, trial.distributions = dict(trial.params), dict(trial.distributions)
        trial.user_attrs, trial.system_attrs = dict(trial.user_attrs), dict(trial.system_attrs)
        return trial

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        """Begin a trial; it is committed whole, with all that a template has."""
        if study_id != self._study:
            return super()._create_new_trial(study_id, template_trial)
        now = datetime.datetime.now()
        trial = copy.deepcopy(template_trial) if template_trial else create_trial(state=TrialState.RUNNING)
        trial.datetime_start = now
        with self.engine.begin() as connection:
            newest = connection.execute(_NEWEST, {"study": study_id}).scalar()
            trial.number = 0 if newest is None else newest + 1
            row = {"number": trial.number, "study_id": study_id, "state": trial.state, "datetime_start": _utc(now)}
            key = connection.execute(_TRIALS.insert(), row).inserted_primary_key
            assert key is not None
            trial._trial_id = key[0]
            for table, rows in _rows(trial).items():
                if rows:
                    connection.execute(table.insert(), [{"trial_id": trial._trial_id} | row for row in rows])
        self._trials[trial._trial_id] = trial
        return trial

    def _set_trial_param(self, trial_id: int, param_name: str, param_value_internal: float, *distributions: Any) -> None:
        super()._set_trial_param(trial_id, param_name, param_value_internal, *distributions)
        if trial := self._trials.get(trial_id):
            trial.distributions[param_name] = distributions[0]
            trial.params[param_name] = distributions[0].to_external_repr(param_value_internal)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        if trial_id not in self._trials:
            return super().set_trial_user_attr(trial_id, key, value)
        self._set_attribute(_USER, self._running(trial_id).user_attrs, trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        if trial_id not in self._trials:
            return super().set_trial_system_attr(trial_id, key, value)
        self._set_attribute(_SYSTEM, self._running(trial_id).system_attrs, trial_id, key, value)

    def _set_attribute(self, table: Any, known: dict[str, Any], trial_id: int, key: str, value: Any) -> None:
        text = json.dumps(value)
        is_new, known[key] = key not in known, json.loads(text)
        if is_new:
            self._change(table.insert(), {"trial_id": trial_id, "key": key, "value_json": text})
        else:
            self._change(_CHANGES[table], {"trial": trial_id, "name": key, "json": text})

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        if trial_id not in self._trials:
            return super().set_trial_state_values(trial_id, state, values)
        trial, now = self._running(trial_id), datetime.datetime.now()
        for objective, value in enumerate(values or ()):
            stored, kind = models.TrialValueModel.value_to_stored_repr(value)
            row = {"trial_id": trial_id, "objective": objective, "value": stored, "value_type": kind}
            self._unsaved.append((_VALUES.insert(), row))
        self._change(_END, {"trial": trial_id, "ended_as": state, "at": _utc(now)})
        trial.values, trial.state, trial.datetime_complete = list(values) if values else None, state, now
        return True

    def _running(self, trial_id: int) -> FrozenTrial:
        trial = self._trials[trial_id]
        self.check_trial_is_updatable(trial_id, trial.state)
        return trial


def _rows(trial: FrozenTrial) -> dict[Any, list[dict[str, Any]]]:
    """What a trial that has not ended has in the tables beside its own."""
    params = [
        {
            "param_name": name,
            "param_value": distribution.to_internal_repr(trial.params[name]),
            "distribution_json": distribution_to_json(distribution),
        }
        for name, distribution in trial.distributions.items()
    ]
    groups = {_USER: trial.user_attrs, _SYSTEM: trial.system_attrs}
    attributes = {table: [{"key": k, "value_json": json.dumps(v)} for k, v in group.items()] for table, group in groups.items()}
    return {_PARAMS: params, **attributes}


def _utc(local: datetime.datetime) -> datetime.datetime:
    """Optuna stores naive UTC and shows naive local time."""
    return local.astimezone(datetime.UTC).replace(tzinfo=None)
