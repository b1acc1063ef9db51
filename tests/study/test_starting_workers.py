"""A worker that is starting is not thrown away for one that comes free."""

from ray.tune.execution.tune_controller import TuneController

from study.running.tuner_hooks import starting_workers_keep_their_trials


class Trial:
    placement_group_factory, config, experiment_tag = "one CPU", {}, ""

    def set_ray_actor(self, actor):
        pass


class Controller(TuneController):
    """Tune's, with one trial, which has a worker already, and one worker that has come free."""

    def __init__(self, *, is_starting):
        self.trial, self.thrown_away = Trial(), []
        self._trial_to_actor, self._actor_to_trial, self._resetting_trials = (
            {self.trial: "its own"},
            {"its own": self.trial},
            set(),
        )
        self._actor_cache = self._actor_manager = self
        self._is_starting, self._live_actors_to_ray_actors_resources = is_starting, {"free": ("handle", None)}

    def has_cached_object(self, resources):
        return True

    def pop_cached_object(self, resources):
        return "free"

    def is_actor_started(self, actor):
        return actor == "its own" and self._is_starting

    def _remove_actor(self, tracked_actor):
        self.thrown_away.append(tracked_actor)

    def _schedule_trial_reset(self, trial, config, tag):
        self._resetting_trials.add(trial)


def test_a_trial_waits_for_its_own_worker_once_that_is_starting():
    stock, ours = Controller(is_starting=True), Controller(is_starting=True)
    assert stock._maybe_reuse_cached_actor(stock.trial)
    assert stock.thrown_away == ["its own"]  # the day that Tune spares it, ours may go
    with starting_workers_keep_their_trials():
        assert not ours._maybe_reuse_cached_actor(ours.trial)
    assert (ours.thrown_away, ours._trial_to_actor) == ([], {ours.trial: "its own"})
    assert ours._maybe_reuse_cached_actor(ours.trial)  # outside, all is as it was


def test_a_trial_whose_worker_waits_for_room_takes_the_one_that_comes_free():
    controller = Controller(is_starting=False)
    with starting_workers_keep_their_trials():
        assert controller._maybe_reuse_cached_actor(controller.trial)
        controller._is_starting = True
        assert controller._maybe_reuse_cached_actor(controller.trial), "it is being prepared for the trial"
    assert (controller.thrown_away, controller._trial_to_actor) == (["its own"], {controller.trial: "free"})
