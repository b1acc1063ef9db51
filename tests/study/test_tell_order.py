"""Draws and tells come in one order that is fixed beforehand, whoever is faster and however often they begin again."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from study.running.tell_order import TellOrder

FIXED = {
    2: ["draw 0", "draw 1", "tell 0", "draw 2", "tell 1", "draw 3", "tell 2", "draw 4", "tell 3", "tell 4"],
    3: ["draw 0", "draw 1", "draw 2", "tell 0", "draw 3", "tell 1", "draw 4", "tell 2", "tell 3", "tell 4"],
}


class Trials:
    """A record that only remembers what was asked of it; a crash forgets which ends wait."""

    def __init__(self, lookahead, num_trials=5):
        self.lookahead, self.num_trials = lookahead, num_trials
        self.history, self.out = [], []
        self.begin()

    def begin(self):
        self.order = TellOrder(
            self.lookahead, num_drawn=self.count("draw"), num_told=self.count("tell"), num_trials=self.num_trials
        )
        told = {entry.removeprefix("tell ") for entry in self.history}
        self.out = [number for number in range(self.count("draw")) if str(number) not in told]

    def count(self, what):
        return sum(entry.startswith(what) for entry in self.history)

    def may_draw(self):
        return self.count("draw") < self.num_trials and self.order.may_draw()

    def draw(self):
        self.out.append(self.count("draw"))
        self.history.append(f"draw {self.out[-1]}")
        self.order.drawn()

    def end(self, place):
        number = self.out.pop(place % len(self.out))
        self.order.end(number, lambda: self.history.append(f"tell {number}"))


@pytest.mark.parametrize("lookahead", FIXED)
@settings(deadline=None, max_examples=200, derandomize=True)
@given(choices=st.lists(st.integers(0, 5), max_size=30))
def test_whichever_trial_ends_first_and_however_often_it_begins_again_the_sequence_is_the_same(lookahead, choices):
    trials = Trials(lookahead)
    while len(trials.history) < 10:
        choice = choices.pop(0) if choices else 0
        if choice == 5:
            trials.begin()
        elif trials.may_draw() and (choice % 2 or not trials.out):
            trials.draw()
        elif trials.out:
            trials.end(choice)
        assert trials.history == FIXED[lookahead][: len(trials.history)]
    assert trials.order.num_waiting == 0


@pytest.mark.parametrize("lookahead", FIXED)
def test_no_more_trials_are_out_or_wait_than_the_lookahead(lookahead):
    trials = Trials(lookahead)
    while trials.may_draw():
        trials.draw()
    assert trials.count("draw") == lookahead
    trials.end(lookahead - 1)  # of a later trial: it waits, and no draw may know less than it should
    assert (trials.order.num_waiting, trials.may_draw()) == (1, False)


def test_an_end_waits_for_the_draw_before_it_and_the_last_ones_for_none():
    trials = Trials(2, num_trials=3)
    trials.draw()
    trials.end(0)
    assert (trials.history, trials.order.num_waiting) == (["draw 0"], 1)
    trials.draw()
    assert trials.history[-1] == "tell 0"
    trials.draw()
    trials.end(1)
    trials.end(0)
    assert trials.history[-2:] == ["tell 1", "tell 2"]


def test_a_trial_is_drawn_alone_with_a_lookahead_of_one():
    trials = Trials(1, num_trials=2)
    trials.draw()
    assert not trials.may_draw()
    trials.end(0)
    trials.draw()
    trials.end(0)
    assert trials.history == ["draw 0", "tell 0", "draw 1", "tell 1"]


def test_without_a_lookahead_an_end_is_told_at_once_and_nothing_holds_a_draw_back():
    trials = Trials(None)
    for _ in range(4):
        trials.draw()
    trials.end(2)
    assert trials.history[-1] == "tell 2"
    assert trials.may_draw()


def test_what_breaks_a_tell_is_not_kept_back():
    order = TellOrder(1, num_drawn=1, num_told=0, num_trials=1)

    def break_down():
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        order.end(0, break_down)
