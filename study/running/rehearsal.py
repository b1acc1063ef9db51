"""A trial that is drawn in memory and then committed whole: a draw may be thrown away, and no crash leaves half of one."""

import copy
import datetime
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

_ID = -1


class Rehearsal:
    """A study's storage with one trial more, which nobody else sees. What samplers note on the study itself is kept.

    It answers for Optuna's storage where a trial that is drawn, and the sampler that draws it, ask one.

    Args:
        number: of the trial.
        given: parameters that are not drawn.
        known: trials of other studies, which samplers see before those of this one.
        ranges: those that parameters had in trials before; Optuna refuses others that do not fit.

    Attributes:
        frozen: the trial as it is now.
    """

    def __init__(
        self,
        study: optuna.Study,
        number: int,
        given: Mapping[str, Any] | None,
        ranges: Mapping[str, BaseDistribution],
        known: Sequence[FrozenTrial] = (),
    ) -> None:
        self._study, self._ranges, self._known = study, ranges, known
        self._storage = study._storage
        self.frozen = FrozenTrial(
            number=number,
            state=TrialState.RUNNING,
            value=None,
            datetime_start=datetime.datetime.now(),
            datetime_complete=None,
            params={},
            distributions={},
            user_attrs={},
            system_attrs={} if given is None else {"fixed_params": dict(given)},
            intermediate_values={},
            trial_id=_ID,
        )

    def trial(self, sampler: BaseSampler) -> optuna.Trial:
        """The trial, to be drawn by a sampler."""
        study = copy.copy(self._study)
        study._storage, study.sampler = self, sampler  # type: ignore[assignment]
        return optuna.Trial(study, _ID)

    def commit(self) -> int:
        """Give the trial, as it is now, to the storage in one transaction.

        Returns:
            its id there.

        Raises:
            RuntimeError: if another process has drawn a trial.
        """
        trial_id = self._storage.create_new_trial(self._study._study_id, self.frozen)
        number = self._storage.get_trial_number_from_id(trial_id)
        if number != self.frozen.number:
            raise RuntimeError(
                f"a study must have one writer, but trial {self.frozen.number} came as {number}; stop the other one"
            )
        return trial_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def _about(self, trial_id: int, ours: Callable[[], Any], name: str, *args: Any) -> Any:
        return ours() if trial_id == _ID else getattr(self._storage, name)(trial_id, *args)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        found: FrozenTrial = self._about(trial_id, lambda: copy.deepcopy(self.frozen), "get_trial")
        return found

    def get_trial_system_attrs(self, trial_id: int) -> dict[str, Any]:
        return dict(self.get_trial(trial_id).system_attrs)

    def get_trial_user_attrs(self, trial_id: int) -> dict[str, Any]:
        return dict(self.get_trial(trial_id).user_attrs)

    def get_trial_params(self, trial_id: int) -> dict[str, Any]:
        return dict(self.get_trial(trial_id).params)

    def get_trial_number_from_id(self, trial_id: int) -> int:
        return self.get_trial(trial_id).number

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """All trials of other studies that are known, then of the record, and this one last."""
        trials = self._storage.get_all_trials(study_id, deepcopy=deepcopy, states=states)
        known = self._known if states is None or TrialState.COMPLETE in states else ()
        return [*known, *trials, *[self.frozen] * (states is None or TrialState.RUNNING in states)]

    def get_n_trials(self, study_id: int, state: Any = None) -> int:
        states = (state,) if isinstance(state, TrialState) else state
        return len(self.get_all_trials(study_id, deepcopy=False, states=states))

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        if param_name in self._ranges:
            check_distribution_compatibility(self._ranges[param_name], distribution)
        self.frozen.params[param_name] = distribution.to_external_repr(param_value_internal)
        self.frozen.distributions[param_name] = distribution

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._about(trial_id, lambda: self.frozen.user_attrs.__setitem__(key, value), "set_trial_user_attr", key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._about(trial_id, lambda: self.frozen.system_attrs.__setitem__(key, value), "set_trial_system_attr", key, value)
