"""What Ray Tune asks beside its searcher: why an attempt broke down, whether to stop."""

import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune

from study.searcher import StudySearcher


class LossCallback(tune.Callback):
    """Tells the searcher why an attempt broke down; Tune's own call to it does not say."""

    def __init__(self, searcher: StudySearcher) -> None:
        self._searcher = searcher

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # Tune's own getters look in a copy that it makes later; these are the files it has just written on this machine.
        pickled, text = trial.pickled_error_file, trial.error_file
        if pickled and Path(pickled).exists():
            error = pickle.loads(Path(pickled).read_bytes())
        else:
            error = RuntimeError(Path(text).read_text() if text else "Ray gave no reason")
        self._searcher.lost(trial.trial_id, error)


class StopWhenAsked(tune.Stopper):
    """Ends the run when it was interrupted, somebody asked for it, or its time is up, keeping what is done.

    Args:
        is_asked: whether somebody did, from another terminal.
    """

    def __init__(self, searcher: StudySearcher, time_budget_s: float | None, is_asked: Callable[[], bool]) -> None:
        self._searcher, self._is_asked = searcher, is_asked
        self._deadline = None if time_budget_s is None else time.monotonic() + time_budget_s
        self.time_is_up = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self.time_is_up = self._searcher.interrupted = True
        if self._is_asked():
            self._searcher.interrupted = True
        return self._searcher.interrupted
