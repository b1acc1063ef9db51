"""Optuna's samplers where a study needs them otherwise: what each draws hangs on the trials before and nothing else.

Of trials that were stopped early, random and qmc need nothing, nsga2, nsga3, gp and cmaes learn nothing; tpe learns.
"""

import hashlib
import io
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers._lazy_random_state import LazyRandomState
from optuna.samplers._tpe import sampler as tpe
from optuna.study._multi_objective import _fast_non_domination_rank
from optuna.trial import FrozenTrial, TrialState

STOPPED = "stopped"
"""User attribute of a trial that was stopped early: its `rung`, the higher the later, and its `costs` there, lower better."""
GENERATION = "_SortedParents:generation"
"""System attribute of the trials of nsga2 and nsga3; by Optuna's rule with a class's name, which records have."""


def seed_of(key: str) -> int:
    """A seed, 0 .. 2**32 - 1, by name."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "little")


class StoppedTPE(optuna.samplers.TPESampler):
    """Learns from stopped trials: worse than every finished one, and among each other the later stopped the better.

    Of those stopped at one rung, what the others dominate there is worse. Infeasible trials come last, as ever.
    Differs: Optuna ranks stopped trials of one objective only, by values that it was told on the way.
    """

    def _sample(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        states = [TrialState.COMPLETE, TrialState.PRUNED] + [TrialState.RUNNING] * self._constant_liar
        trials = [other for other in study._get_trials(deepcopy=False, states=states) if other.number != trial.number]
        if not any(other.state == TrialState.PRUNED for other in trials):
            return super()._sample(study, trial, search_space)
        below, above = _split(study, trials)
        good = self._build_parzen_estimator(study, search_space, below, handle_below=True)
        bad = self._build_parzen_estimator(study, search_space, above, handle_below=False)
        candidates = good.sample(self._rng.rng, self._n_ei_candidates)
        best = self._compare(candidates, self._compute_acquisition_func(candidates, good, bad))
        return {name: distribution.to_external_repr(best[name]) for name, distribution in search_space.items()}


def _split(study: optuna.Study, trials: Sequence[FrozenTrial]) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
    """The good trials and the others, both by number; as many good ones as Optuna takes."""
    running = [trial for trial in trials if trial.state == TrialState.RUNNING]
    ended = [trial for trial in trials if trial.state != TrialState.RUNNING]
    gamma = tpe.default_gamma if len(study.directions) == 1 else tpe.default_gamma_multiobjective
    num_below = gamma(len(ended))
    feasible = [trial for trial in ended if not tpe._get_infeasible_trial_score(trial)]
    complete = [trial for trial in feasible if trial.state == TrialState.COMPLETE]
    below, above = tpe._split_complete_trials(complete, study, num_below)
    others = rank_stopped([trial for trial in feasible if trial.state == TrialState.PRUNED])
    others += sorted((t for t in ended if tpe._get_infeasible_trial_score(t)), key=tpe._get_infeasible_trial_score)
    num_more = max(0, num_below - len(below))
    below, above = below + others[:num_more], above + others[num_more:] + running
    return sorted(below, key=lambda trial: trial.number), sorted(above, key=lambda trial: trial.number)


def rank_stopped(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Stopped trials, the best first; one that does not say where it was stopped comes last."""
    at_rung: dict[int, list[FrozenTrial]] = {}
    for trial in trials:
        at_rung.setdefault(trial.user_attrs.get(STOPPED, {}).get("rung", -1), []).append(trial)
    ranked: list[FrozenTrial] = []
    for rung in sorted(at_rung, reverse=True):
        here = at_rung[rung]
        costs = np.array([trial.user_attrs.get(STOPPED, {}).get("costs") or [0.0] for trial in here], dtype=float)
        costs[np.isnan(costs)] = np.inf
        ranked += [here[place] for place in np.argsort(_fast_non_domination_rank(costs), kind="stable")]
    return ranked


class _SortedParents(optuna.samplers._ga.BaseGASampler):
    """Draws from parents in the order of their numbers, of first trials, too.

    Differs: Optuna draws from them as they were selected, until they are written down, and later in this order; so a draw
    that was cut short came out otherwise.
    """

    @classmethod
    def _get_generation_key(cls) -> str:
        return GENERATION

    @classmethod
    def _get_parent_cache_key_prefix(cls) -> str:
        return "_SortedParents:parent:"

    def select_parent(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        return sorted(super().select_parent(study, generation), key=lambda trial: trial.number)  # type: ignore[safe-super]


class SortedNSGAII(_SortedParents, optuna.samplers.NSGAIISampler):
    """NSGA-II whose parents are in order."""


class SortedNSGAIII(_SortedParents, optuna.samplers.NSGAIIISampler):
    """NSGA-III whose parents are in order, and are drawn from a stream of their own.

    Differs: Optuna's draws of parents move the stream that children are drawn from, unless the parents were written down
    before; so a draw that was cut short came out otherwise.

    Attributes:
        study_seed: the seed of the whole study.
    """

    study_seed = 0

    def select_parent(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        strategy: Any = self._elite_population_selection_strategy
        strategy._rng = LazyRandomState(seed_of(f"{self.study_seed}/generation {generation}"))
        return super().select_parent(study, generation)


class PlacedByNumber(optuna.samplers.QMCSampler):
    """Gives each trial the place in the sequence that its number says.

    Differs: Optuna counts draws in its storage, and a draw that was cut short took two places.

    Attributes:
        place: in the sequence, from 0.
    """

    place = 0

    def _find_sample_id(self, study: optuna.Study, search_space: dict[str, BaseDistribution]) -> int:
        return self.place


class GuardedCmaEs(optuna.samplers.CmaEsSampler):
    """CMA-ES that trusts its record no further than it must.

    Optuna pickles the optimizer into the record, which others may write to where it is a shared database; a pickle may run
    whatever it names. This one may name what an optimizer is made of, and nothing else. Constraints are ignored in silence:
    Optuna warns of them with every trial that ends, `check_sampler` once.
    """

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> Any:
        for trial in reversed(completed_trials):
            parts = {key: text for key, text in trial.system_attrs.items() if key.startswith(self._attr_key_optimizer)}
            if parts:
                return _OptimizerUnpickler(io.BytesIO(bytes.fromhex(self._concat_optimizer_attrs(parts)))).load()
        return None

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Nothing to do."""


class _OptimizerUnpickler(pickle.Unpickler):
    """Makes optimizers of `cmaes` and their arrays."""

    _NAMES = frozenset(
        {
            ("cmaes._cma", "CMA"),
            ("cmaes._sepcma", "SepCMA"),
            ("cmaes._cmawm", "CMAwM"),
            ("numpy", "dtype"),
            ("numpy", "ndarray"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "scalar"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._NAMES:
            raise pickle.UnpicklingError(
                f"an optimizer in a study's record must be made of cmaes and numpy, but this one names {module}.{name}; "
                "somebody else has written to the record: fork the study from a copy that you trust"
            )
        return super().find_class(module, name)
