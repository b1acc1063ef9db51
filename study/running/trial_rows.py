"""Trials as rows of Optuna's tables, many read at once: a study with thousands of finished ones goes on in a moment.

Differs: Optuna makes an object of every row of every table and parses each parameter's range twice a trial. Here a table is
one statement, however many trials there are, and a range is parsed once.
"""

import datetime
import functools
import json
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import sqlalchemy
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState

_TRIAL, _PARAM, _VALUE = models.TrialModel, models.TrialParamModel, models.TrialValueModel
_USER, _SYSTEM = models.TrialUserAttributeModel, models.TrialSystemAttributeModel

_TRIAL_COLUMNS = (_TRIAL.number, _TRIAL.state, _TRIAL._datetime_start_utc, _TRIAL._datetime_complete_utc)
_PARTS = (
    (_PARAM, _PARAM.param_id, _PARAM.param_name, _PARAM.param_value, _PARAM.distribution_json),
    (_VALUE, _VALUE.objective, _VALUE.value, _VALUE.value_type),
    (_USER, _USER.key, _USER.value_json),
    (_SYSTEM, _SYSTEM.key, _SYSTEM.value_json),
)


def read_trials(engine: sqlalchemy.Engine, study_id: int) -> list[FrozenTrial]:
    """All trials of a study, by id. It reports no intermediate values."""
    own = sqlalchemy.select(_TRIAL.trial_id).where(_TRIAL.study_id == study_id)

    def select(model: Any, *columns: Any) -> sqlalchemy.Select[Any]:
        return sqlalchemy.select(model.trial_id, *columns).where(model.trial_id.in_(own))

    with engine.connect() as connection:
        trials = connection.execute(select(_TRIAL, *_TRIAL_COLUMNS).order_by(_TRIAL.trial_id)).all()
        parts = [_by_trial(connection.execute(select(model, *columns))) for model, *columns in _PARTS]
    return [_trial(*row, *(part[row.trial_id] for part in parts)) for row in trials]


def _by_trial(rows: Iterable[Any]) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = defaultdict(list)
    for trial_id, *fields in rows:
        found[trial_id].append(fields)
    return found


def _trial(
    trial_id: int,
    number: int,
    state: TrialState,
    start: datetime.datetime | None,
    complete: datetime.datetime | None,
    params: list[Any],
    values: list[Any],
    user: list[Any],
    system: list[Any],
) -> FrozenTrial:
    params.sort()  # as they were drawn; a database would read the whole table to give them in order
    distributions = {name: _distribution(text) for _, name, _, text in params}
    return FrozenTrial(
        number=number,
        state=state,
        value=None,
        values=[_VALUE.stored_repr_to_value(value, kind) for _, value, kind in sorted(values)] or None,
        datetime_start=_local(start),
        datetime_complete=_local(complete),
        params={name: distributions[name].to_external_repr(value) for _, name, value, _ in params},
        distributions=distributions,
        user_attrs={key: json.loads(text) for key, text in user},
        system_attrs={key: json.loads(text) for key, text in system},
        intermediate_values={},
        trial_id=trial_id,
    )


@functools.lru_cache(maxsize=4096)
def _distribution(text: str) -> BaseDistribution:
    """A parameter's range; trials share it, and nobody changes one."""
    return json_to_distribution(text)


def _local(utc: datetime.datetime | None) -> datetime.datetime | None:
    """Optuna stores naive UTC and shows naive local time."""
    return None if utc is None else utc.replace(tzinfo=datetime.UTC).astimezone().replace(tzinfo=None)
