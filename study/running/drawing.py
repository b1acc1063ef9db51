"""How a study comes by a trial's parameters: they are given, or those of an earlier trial whose replicate it is, or drawn.

What is drawn is no parameter set that the study has, as far as can be: such a one is thrown away, in memory, and drawn again
from another seed. The record and the study's seed decide all of it, so that a resumed study draws the same.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from search_spaces.space import StudySpace
from study.running.duplicates import ParameterSets
from study.running.rehearsal import Rehearsal
from study.running.replicates import first_of
from study.running.samplers import has_memory, make_sampler
from study.running.samplers_by_name import GENERATION
from study.spec import StudySpec

REPEATS = "repeats"
"""User attribute of a trial that was drawn with the parameters of an earlier one: that one's number."""
_DRAWS = 10
_RANDOM_DRAWS = 50
"""After the sampler's: a space of which a share s is left is taken for spent with a chance of (1 - s)**50."""


class _Drawn(Protocol):
    """What a space makes of parameters, or why it could not."""

    @property
    def params(self) -> dict[str, Any]: ...
    @property
    def failure(self) -> Any: ...


_D = TypeVar("_D", bound=_Drawn)


class Drawer:
    """Draws trials in memory.

    Args:
        study: the record's.
        trials: those that it has.
        known: trials of other studies (`study.running.warm_start`).

    Attributes:
        sets: the parameter sets that trials have, of those that did not fail.
        first_repeat: the first trial that had to take the parameters of another one, since no others were found.
    """

    def __init__(
        self,
        study: optuna.Study,
        spec: StudySpec,
        space: StudySpace,
        trials: Iterable[FrozenTrial],
        known: Sequence[FrozenTrial] = (),
    ) -> None:
        self._study, self._spec, self._space, self._known = study, spec, space, known
        self._ranges: dict[str, BaseDistribution] = {}
        self.sets = ParameterSets()
        self.first_repeat: int | None = None
        for trial in trials:
            if trial.state != TrialState.FAIL:
                self.sets.add(trial.number, trial.params)
            self._note(trial.number, trial)
        if has_memory(spec.sampler):
            study.sampler = make_sampler(spec.sampler, spec.seed, 0, spec.sampler_options)

    def draw(self, number: int, make: Callable[[optuna.Trial], _D]) -> tuple[Rehearsal, _D]:
        """Draw the next trial.

        Args:
            make: what the space makes of a trial.

        Returns:
            the trial, to be committed, and what the space made of it.
        """
        given = self._given(number)
        rehearsal, drawn = self._draw_new(number, make) if given is None else self._take(number, given, make)
        self.sets.add(number, drawn.params)
        self._note(number, rehearsal.frozen)
        return rehearsal, drawn

    def sampler(self, number: int, attempt: int = 0) -> BaseSampler:
        """The sampler that draws a trial. All replicates of a parameter set count as one draw."""
        spec = self._spec
        if has_memory(spec.sampler):
            return self._study.sampler
        noisy = {"deterministic_objective": False} if spec.sampler == "gp" and spec.replicates > 1 else {}
        options = noisy | spec.sampler_options
        return make_sampler(spec.sampler, spec.seed, number // spec.replicates, options, attempt=attempt)

    def _note(self, number: int, trial: FrozenTrial) -> None:
        for name, distribution in trial.distributions.items():
            self._ranges.setdefault(name, distribution)
        if REPEATS in trial.user_attrs and self.first_repeat is None:
            self.first_repeat = number

    def _given(self, number: int) -> Mapping[str, Any] | None:
        """The parameters that a trial has without being drawn."""
        first, replicates = first_of(number, self._spec.replicates), self._spec.replicates
        if number != first:
            storage, study_id = self._study._storage, self._study._study_id
            return storage.get_trial(storage.get_trial_id_from_study_id_trial_number(study_id, first)).params
        position = first // replicates
        return self._space.first_trials[position] if position < len(self._space.first_trials) else None

    def _take(self, number: int, given: Mapping[str, Any], make: Callable[[optuna.Trial], _D]) -> tuple[Rehearsal, _D]:
        rehearsal = Rehearsal(self._study, number, given, self._ranges, self._known)
        trial = rehearsal.trial(self.sampler(number))
        if self._spec.sampler in ("nsga2", "nsga3") and number == first_of(number, self._spec.replicates):
            trial.relative_params  # noqa: B018  # so that it counts among its generation, as a drawn one does
        return rehearsal, make(trial)

    def _draw_new(self, number: int, make: Callable[[optuna.Trial], _D]) -> tuple[Rehearsal, _D]:
        """Draw until a parameter set is new, or none seems left: then take the sampler's first."""
        tries: list[tuple[Rehearsal, _D]] = []
        for sampler in self._samplers(number):
            rehearsal = Rehearsal(self._study, number, None, self._ranges, self._known)
            tries.append((rehearsal, make(rehearsal.trial(sampler))))
            if tries[-1][1].failure is not None or self.sets.first_with(tries[-1][1].params) is None:
                break
        else:
            rehearsal, drawn = tries[0]
            rehearsal.frozen.user_attrs[REPEATS] = self.sets.first_with(drawn.params)
            return tries[0]
        attributes = tries[0][0].frozen.system_attrs
        if GENERATION in attributes:  # a parent may have been drawn at random
            rehearsal.frozen.system_attrs[GENERATION] = attributes[GENERATION]
        return tries[-1]

    def _samplers(self, number: int) -> Iterator[BaseSampler]:
        """The sampler, from ever other seeds, then chance; in a space that seemed spent before, chance sooner."""
        num_draws = _DRAWS if self.first_repeat is None else 1
        for attempt in range(num_draws):
            yield self.sampler(number, attempt)
        for attempt in range(_DRAWS, _DRAWS + _RANDOM_DRAWS):
            yield make_sampler("random", self._spec.seed, number // self._spec.replicates, attempt=attempt)
