"""The books of a trial, from made-up events: every second is booked once, whatever was killed when."""

import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from study.running.bookkeeping import keep_books
from study.running.ledger import KINDS, Ledger, Spent, spent_line


@dataclass
class Event:
    kind: str
    time_ms: int
    data: dict[str, Any] = field(default_factory=dict)


class Trial:
    """A trial as a worker and a driver live it: steps of 2 s, of which 0.5 s measure, on one CPU; starting takes 1 s."""

    def __init__(self):
        self.events, self.now_s, self.cpu_s = [], 100.0, 0.0
        self.known, self.saved = set(), 0

    def put(self, kind, **data):
        self.events.append(Event(kind, round(self.now_s * 1000), data))

    def work(self, seconds):
        self.now_s += seconds
        self.cpu_s += seconds

    def take_cpu(self):
        taken, self.cpu_s = self.cpu_s, 0.0
        return taken

    def start(self):
        self.put("trial_start")
        self.work(1.0)
        self.step = self.resumed = self.saved
        self.told = 0

    def make_step(self):
        self.work(2.0)
        self.step += 1

    def report(self):
        """All that the attempt has not said yet: first what its checkpoint holds, then its steps."""
        for step in range(self.told + 1, self.step + 1):
            cost = {"step": step, "took": TOOK, "flops": 10.0 * step}
            cost |= {"is_brought": True} if step <= self.resumed else {"cpu_seconds": self.take_cpu()}
            if step not in self.known:
                self.known.add(step)
                self.put("measurement", **cost)
            elif step > self.resumed:
                self.put("repeat", seconds=2.5, **cost)
        self.told = self.step

    def save(self):
        self.saved = self.step

    def lose(self):
        self.put("trial_interrupted", tags={}, cpu_seconds=0.0)
        self.cpu_s = 0.0

    def end(self, state="finished", **data):
        self.put("trial_end", state=state, **{"cpu_seconds": self.take_cpu()} | data)

    @property
    def held_seconds(self):
        starts = [event.time_ms for event in self.events if event.kind == "trial_start"]
        ends = [event.time_ms for event in self.events if event.kind in ("trial_end", "trial_interrupted")]
        return (sum(ends) - sum(starts)) / 1000

    @property
    def ledger(self):
        return keep_books(self.events)


TOOK = {"seconds": 2.0, "cpu_seconds": 2.0, "evaluation_seconds": 0.5, "evaluation_cpu_seconds": 0.5}


def run(trial, num_steps):
    for _ in range(num_steps):
        trial.make_step()
        trial.report()


@pytest.mark.parametrize(("state", "kind"), [("finished", "useful"), ("stopped", "stopped"), ("failed", "failed")])
def test_training_is_of_the_kind_that_its_trial_ends_as(state, kind):
    trial = Trial()
    trial.start()
    run(trial, 3)
    trial.end(state)
    books = {kind: 4.5, "evaluation": 1.5, "idle": 1.0}
    assert trial.ledger == Ledger(books, books, {kind: 30.0})


def test_what_a_trial_did_before_it_failed_in_a_step_failed_with_it():
    trial = Trial()
    trial.start()
    run(trial, 1)
    trial.work(1.25)
    trial.end("failed")
    assert trial.ledger.seconds == trial.ledger.cpu_seconds == {"failed": 2.75, "evaluation": 0.5, "idle": 1.0}


def test_a_trial_that_was_lost_once_too_often_failed_to_its_last_second():
    trial = Trial()
    trial.start()
    run(trial, 1)
    trial.work(1.5)
    trial.end("failed", cpu_seconds=0.0)
    assert trial.ledger.seconds == trial.ledger.cpu_seconds == {"failed": 3.0, "evaluation": 0.5, "idle": 1.0}


def test_steps_that_are_made_again_and_the_unheard_end_of_a_lost_attempt_are_repeated():
    trial = Trial()
    trial.start()
    run(trial, 2)
    trial.work(1.5)
    trial.lose()
    trial.now_s += 60  # nobody holds the slot
    trial.start()
    run(trial, 3)
    trial.end()
    books = {"useful": 4.5, "repeated": 5.5, "evaluation": 1.5, "idle": 2.0}
    assert trial.ledger == Ledger(books, books, {"useful": 30.0, "repeated": 20.0})


def test_steps_that_a_checkpoint_brings_back_are_not_repeated():
    trial = Trial()
    trial.start()
    run(trial, 1)
    trial.make_step()
    trial.save()
    trial.work(1.0)
    trial.lose()
    assert trial.ledger.seconds == {"useful": 1.5, "repeated": 3.0, "evaluation": 0.5, "idle": 1.0}
    trial.start()
    run(trial, 1)
    trial.end()
    books = {"useful": 4.5, "repeated": 1.0, "evaluation": 1.5, "idle": 2.0}
    assert trial.ledger == Ledger(books, pytest.approx(books), {"useful": 30.0})


def test_an_attempt_that_was_lost_unheard_is_taken_for_one_busy_cpu():
    trial = Trial()
    trial.start()
    trial.lose()
    assert trial.ledger == Ledger({"repeated": 1.0}, {"repeated": 1.0}, {})


def test_how_busy_it_was_is_told_by_the_next_attempt_that_is_heard():
    """Others had half of the CPUs, too."""
    trial = Trial()
    trial.start()
    trial.now_s += 3.0
    trial.lose()
    assert trial.ledger.cpu_seconds == {"repeated": 4.0}
    trial.start()
    trial.now_s += 3.0
    run(trial, 1)  # 3 CPU seconds in 6
    trial.end()
    assert trial.ledger.seconds == {"useful": 1.5, "repeated": 4.0, "evaluation": 0.5, "idle": 4.0}
    assert trial.ledger.cpu_seconds == {"useful": 1.5, "repeated": 2.0, "evaluation": 0.5, "idle": 1.0}


def test_who_stays_when_others_leave_holds_more_of_the_slot():
    trial = Trial()
    trial.put("trial_start", share=0.25)
    trial.now_s += 4.0
    trial.put("share", share=0.5)
    trial.now_s += 4.0
    trial.put("share", share=1.0)
    trial.now_s += 1.0
    trial.put("trial_end", state="finished", cpu_seconds=0.0)
    assert trial.ledger.held_seconds == 1.0 + 2.0 + 1.0


def test_waiting_is_idle_and_takes_no_cpu():
    trial = Trial()
    trial.start()
    run(trial, 1)
    trial.now_s += 3
    trial.end()
    assert trial.ledger.seconds["idle"] == 4.0
    assert trial.ledger.cpu_seconds["idle"] == 1.0


def test_what_a_dead_driver_left_open_counts_until_it_was_last_alive():
    trial = Trial()
    trial.start()
    run(trial, 1)
    last_ms = trial.events[-1].time_ms
    trial.now_s += 3600
    trial.put("trial_interrupted", tags={}, until_ms=last_ms + 1000)
    assert trial.ledger.seconds == {"useful": 1.5, "repeated": 1.0, "evaluation": 0.5, "idle": 1.0}


def test_steps_never_take_more_than_there_was():
    """A worker's clock runs fast, or the driver's was set back."""
    took = TOOK | {"seconds": 20.0, "cpu_seconds": 20.0}
    events = [Event("trial_start", 0), Event("measurement", 4000, {"step": 1, "took": took, "cpu_seconds": 3.0})]
    ledger = keep_books([*events, Event("trial_end", 3000, {"state": "finished"})])
    assert ledger.seconds == pytest.approx({"useful": 3.9, "evaluation": 0.1})
    assert sum(ledger.cpu_seconds.values()) == pytest.approx(3.0)


def test_events_of_older_versions_have_their_time_booked_as_idle():
    events = [Event("trial_start", 0), Event("measurement", 4000, {"step": 1}), Event("repeat", 5000, {"seconds": 2.0})]
    assert keep_books([*events, Event("trial_end", 6000, {"state": "finished"})]) == Ledger({"idle": 6.0}, {}, {})


@pytest.mark.parametrize("seed", range(200))
def test_every_second_is_booked_once_whenever_attempts_are_lost(seed):
    draw = random.Random(seed)
    trial, num_steps, made = Trial(), draw.randint(1, 6), 0.0
    while True:
        trial.start()
        made += 1.0
        is_lost = False
        while trial.step < num_steps and not is_lost:
            for act in (trial.make_step, trial.save, trial.report, trial.save):
                if is_lost := draw.random() < 0.15:
                    break
                if act != trial.save or draw.random() < 0.5:
                    made += 2.0 if act == trial.make_step else 0.0
                    act()
        if not is_lost:
            break
        torn = draw.uniform(0.0, 2.0)
        made += torn
        trial.work(torn)
        trial.lose()
        assert sum(trial.ledger.seconds.values()) == pytest.approx(trial.held_seconds)
        trial.now_s += draw.uniform(0.0, 100.0)
    trial.report()
    state = draw.choice(["finished", "stopped", "failed"])
    trial.end(state)
    ledger = trial.ledger
    assert all(value >= 0 for part in (ledger.seconds, ledger.cpu_seconds) for value in part.values())
    assert sum(ledger.seconds.values()) == pytest.approx(trial.held_seconds)
    assert sum(ledger.cpu_seconds.values()) == pytest.approx(made, abs=0.01)  # all on one CPU: no estimate is off
    if state != "failed":  # to which belongs what went by since the last step
        assert ledger.seconds[{"finished": "useful"}.get(state, state)] == pytest.approx(1.5 * num_steps, abs=0.01)
    assert ledger.seconds["evaluation"] == pytest.approx(0.5 * num_steps, abs=0.01)


def test_books_add_up_and_survive_json():
    one, other = Ledger({"useful": 1.0, "idle": 3.0}, {"useful": 2.0}, {}), Ledger({"useful": 4.0}, {}, {"useful": 5.0})
    both = Ledger.sum([one, other])
    assert both == Ledger({"useful": 5.0, "idle": 3.0}, {"useful": 2.0}, {"useful": 5.0})
    assert Ledger.from_json(both.to_json()) == both
    assert both.shares() == {"useful": 0.625, "idle": 0.375}
    assert list(both.shares()) == [kind for kind in KINDS if kind in both.seconds]
    assert Ledger.sum([]).shares() == {}


def test_what_was_spent_is_told_in_one_line():
    books = Ledger(
        {"useful": 2916.0, "stopped": 324.0, "evaluation": 180.0, "repeated": 72.0, "idle": 108.0}, {}, {"useful": 3e12}
    )
    line = "spent 1.2 CPU-h, 0.25 GPU-h, 3e+12 FLOP: 81% useful, 9% stopped early, 2% repeated, 5% evaluation, 3% idle"
    assert spent_line(books, num_cpus=1.2, num_gpus=0.25) == line
    assert spent_line(Ledger(), num_cpus=1, num_gpus=0) is None


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("study.running.ledger.time.monotonic", lambda: now[0])
    return now


def test_a_study_has_spent_what_is_over_and_what_is_under_way(clock):
    spent = Spent(num_cpus=2, num_gpus=0.5, past=[Ledger({"useful": 3600.0}, {}, {"useful": 7.0})])
    assert (spent.cpu_hours, spent.gpu_hours, spent.flops) == (2.0, 0.5, 7.0)
    spent.start(4)
    spent.start(5)
    clock[0] = 1800.0
    assert (spent.cpu_hours, spent.gpu_hours) == (4.0, 1.0)
    spent.end(4)
    clock[0] = 3600.0
    assert spent.cpu_hours == 5.0
    spent.end(5)
    clock[0] = 9000.0
    assert spent.cpu_hours == 5.0


def test_operations_count_each_time_that_they_are_made_and_not_when_a_checkpoint_has_them():
    spent = Spent(num_cpus=1, num_gpus=0)
    spent.start(1)
    spent.hear(1, None, is_known=False)
    for flops in (10.0, 20.0, 30.0):
        spent.hear(1, flops, is_known=False)
    spent.end(1)
    spent.start(1)
    spent.hear(1, 10.0, is_known=True)
    spent.hear(1, 20.0, is_known=False)
    assert spent.flops == 40.0
