"""What Ray Tune asks beside its searcher, and what must be around it: losses, interruptions, errors."""

import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import tune
from ray.air.execution._internal import RayActorManager
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.tune.execution.tune_controller import TuneController
from rich.console import Console

from study.running.retries import LostActorError
from study.running.searcher import StudySearcher


@contextmanager
def graceful_interrupt(searcher: StudySearcher, console: Console) -> Iterator[None]:
    """Ctrl-C or SIGTERM keeps what is done and stops; a second one stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, _: Any) -> None:
        if searcher.interrupted:
            raise KeyboardInterrupt
        searcher.interrupted = True
        console.print("stopping: running trials save their work (once more to stop at once)", highlight=False)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def what_the_searcher_knows_first(searcher: StudySearcher) -> Iterator[None]:
    """Raise what the searcher knows to have ended the session, rather than what Ray says then."""
    try:
        yield
    except Exception:
        if searcher.error is None:
            raise
    if searcher.error is not None:
        raise searcher.error


@contextmanager
def every_loss_is_heard() -> Iterator[None]:
    """Inside, whatever Ray says of a lost worker reaches its trial.

    Tune ends the whole run for what it does not expect: a worker that Ray's memory monitor killed, a report that was lost with
    its node.
    """
    patched: Any = RayActorManager
    original = patched._actor_task_failed

    def failed(manager: Any, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, RayError) and not isinstance(exception, RayActorError | RayTaskError):
            exception = LostActorError(exception)
        original(manager, tracked_actor_task=tracked_actor_task, exception=exception)

    patched._actor_task_failed = failed
    try:
        yield
    finally:
        patched._actor_task_failed = original


@contextmanager
def starting_workers_keep_their_trials() -> Iterator[None]:
    """Inside, a trial whose worker is starting waits for it.

    Tune gives such a trial to the first worker that comes free and throws the other away in the midst of its imports: where
    trials take less time than a worker needs to start, one works and all others start for ever.
    """
    patched: Any = TuneController
    original = patched._maybe_reuse_cached_actor

    def reuse(controller: Any, trial: Any) -> bool:
        actor = controller._trial_to_actor.get(trial)
        is_starting = actor is not None and controller._actor_manager.is_actor_started(actor)  # or being reset for the trial
        if is_starting and trial not in controller._resetting_trials:
            return False
        return bool(original(controller, trial))

    patched._maybe_reuse_cached_actor = reuse
    try:
        yield
    finally:
        patched._maybe_reuse_cached_actor = original


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
    """Ends the run when it was interrupted, somebody asked for it, or its time or another limit is spent, keeping what is done.

    Args:
        is_asked: whether somebody did, from another terminal.
        limit_spent: says which limit of the study is spent, if one is.
    """

    def __init__(
        self,
        searcher: StudySearcher,
        time_budget_s: float | None,
        is_asked: Callable[[], bool],
        limit_spent: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._searcher, self._is_asked, self._limit_spent = searcher, is_asked, limit_spent
        self._deadline = None if time_budget_s is None else time.monotonic() + time_budget_s
        self.time_is_up = False
        self.limit: str | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self.time_is_up = self._searcher.interrupted = True
        self.limit = self.limit or self._limit_spent()
        if self.limit is not None or self._is_asked():
            self._searcher.interrupted = True
        return self._searcher.interrupted
