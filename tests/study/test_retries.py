"""How the end of an attempt is told, from what Ray says of it."""

import pytest
from ray import cloudpickle
from ray.air.execution._internal import RayActorManager
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
)

from study.running.retries import Losses, LostActorError, loss_of
from study.running.tuner_hooks import every_loss_is_heard
from trainables.failures import SupersededError
from trainables.ray_trainable import ExperimentTrainable, LostWorkerError
from trainables.storage import StorageError


def as_the_driver_gets_it(error):
    """An error that a worker raised."""
    task = RayTaskError("step", f"Traceback\n{type(error).__name__}: {error}", error, "title", 1, "127.0.0.1")
    return cloudpickle.loads(cloudpickle.dumps(task.as_instanceof_cause()))


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ActorDiedError(), "worker_lost"),
        (ActorUnavailableError("the node is gone", None), "node_lost"),
        (RayActorError(preempted=True), "preempted"),
        (LostActorError(OutOfMemoryError("Memory on the node was low")), "out_of_memory"),
        (LostActorError(ObjectLostError("aa", "here", "there")), "node_lost"),
        (as_the_driver_gets_it(StorageError("the storage must keep checkpoints")), "storage"),
        (as_the_driver_gets_it(LostWorkerError("the device is gone")), "worker_lost"),
        (as_the_driver_gets_it(KeyError("a bug")), "bug"),
    ],
)
def test_each_end_of_an_attempt_has_its_cause(error, cause):
    assert loss_of(cloudpickle.loads(cloudpickle.dumps(error))).cause == cause


def test_an_attempt_whose_trial_another_one_has_is_not_blamed():
    class Superseded:
        def advance(self, stopped):
            raise SupersededError("attempt 3 took over from attempt 2")

    trainable = object.__new__(ExperimentTrainable)
    trainable._errand, trainable._stops = Superseded(), None
    with pytest.raises(LostWorkerError) as raised:
        trainable.step()
    assert loss_of(as_the_driver_gets_it(raised.value)).cause == "preempted"


def test_tune_hears_of_a_worker_that_the_memory_monitor_killed():
    heard = []

    class Task:
        class _tracked_actor:
            actor_id = 1
            _on_error = None

        @staticmethod
        def _on_error(_, error):
            heard.append(error)

    manager = object.__new__(RayActorManager)
    manager._failed_actor_ids = set()
    manager._cleanup_actor = lambda tracked_actor: None
    error = OutOfMemoryError("Memory on the node was low")
    with pytest.raises(RuntimeError, match="Caught unexpected exception"):  # the day that Tune does this itself, ours may go
        manager._actor_task_failed(tracked_actor_task=Task, exception=error)
    with every_loss_is_heard():
        manager._actor_task_failed(tracked_actor_task=Task, exception=error)
    assert [type(told) for told in heard] == [LostActorError]
    assert heard[0].why is error
    with pytest.raises(RuntimeError):
        manager._actor_task_failed(tracked_actor_task=Task, exception=error)


def test_losses_are_counted_from_the_last_step_that_a_trial_made():
    losses = Losses()
    assert [losses.is_last(0, "worker_lost", step) for step in (1, 1, 2, 2)] == [False, False, False, False]
    assert losses.is_last(0, "worker_lost", 2)
    assert not losses.is_last(1, "worker_lost", 0)


def test_a_bug_ends_its_trial_at_once_and_a_lost_node_hardly_ever():
    assert Losses().is_last(0, "bug", 5)
    losses = Losses()
    assert [losses.is_last(0, "node_lost", 0) for _ in range(20)] == [False] * 19 + [True]
