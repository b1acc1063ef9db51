import math

import pytest

from trainables.experiment import DivergedError
from trainables.pruning.strength import AutoStrength, StrengthRule

RULE = StrengthRule(smoothing=0.5, interval=2, increase=2.0, decrease=0.25, warmup=10)
FALLING = [4.0] * 10 + [2.0, 2.0]
"""Ten losses of mean 4, then two that take the average of RULE to 3 and to 2.5."""


def run(losses, rule=RULE, strength=1.0):
    auto = AutoStrength(strength, rule)
    return [auto.update(loss) for loss in losses]


def test_the_strength_goes_up_where_the_average_has_fallen_and_down_where_it_has_risen():
    # averages: 4 noted at the warm-up's end, 3, 2.5 noted, 2.25, 4.125 noted, then as it was
    losses = [*FALLING, 2.0, 6.0, 4.125, 4.125]
    assert run(losses)[9:] == [1.0, 1.0, 2.0, 2.0, 0.5, 0.5, 1.0]


def test_the_first_losses_count_as_their_mean():
    # mean 5.5: to the last loss alone, 10, an average of 7.75 would be a fall
    rising = [*map(float, range(1, 11)), 10.0, 10.0]
    assert run(rising)[-1] == 0.25
    assert run([*rising[:10], 5.0, 5.0])[-1] == 2.0


def test_an_average_that_stays_counts_as_not_risen():
    assert run([3.0] * 12)[-1] == 2.0


def test_a_noisy_loss_is_judged_by_its_average():
    # 3 after 1 is a rise, but the average has gone from 4 to 2.5 and 2.75
    assert run([*[4.0] * 10, 1.0, 3.0])[-1] == 2.0


@pytest.mark.parametrize(("warmup", "interval", "first"), [(10, 2, 12), (10, 5, 15), (15, 5, 20)])
def test_the_first_change_comes_an_interval_after_the_warm_up(warmup, interval, first):
    rule = StrengthRule(warmup=warmup, interval=interval)
    strengths = run([4.0 - 0.1 * number for number in range(2 * interval + warmup)], rule)
    assert strengths.index(1.2) + 1 == first
    assert strengths[-1] == pytest.approx(1.44)


def test_a_resumed_one_goes_on_exactly():
    losses = [3 + math.sin(number) for number in range(60)]
    rule = StrengthRule(interval=3, warmup=12)
    straight = run(losses, rule, strength=0.1)
    assert len(set(straight)) > 5
    for stop in range(60):
        first = AutoStrength(0.1, rule)
        before = [first.update(loss) for loss in losses[:stop]]
        state = first.state_dict()
        first.update(1e6)  # a state is a snapshot
        second = AutoStrength(7.0, rule)
        second.load_state_dict(state)
        assert before + [second.update(loss) for loss in losses[stop:]] == straight


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ends_the_training_and_changes_nothing(loss):
    auto = AutoStrength(0.5, RULE)
    auto.update(2.0)
    before = auto.state_dict()
    with pytest.raises(DivergedError, match=f"the loss must be finite, but is {loss} at strength 0.5; lower it"):
        auto.update(loss)
    assert auto.state_dict() == before


@pytest.mark.parametrize("strength", [0.0, -1.0, math.nan, math.inf])
def test_a_strength_that_no_factor_can_steer_is_refused(strength):
    with pytest.raises(ValueError, match=r"must be positive and finite, but got .*; use 1e-3"):
        AutoStrength(strength, RULE)


@pytest.mark.parametrize(
    ("change", "law"),
    [
        ({"smoothing": 1.0}, r"smoothing must be in \[0, 1\), but got 1.0; use 0.98"),
        ({"smoothing": math.nan}, r"smoothing must be in \[0, 1\)"),
        ({"interval": 0}, "interval must be at least 1"),
        ({"increase": 0.9}, "increase must be at least 1"),
        ({"decrease": 1.1}, r"decrease must be in \(0, 1\]"),
        ({"decrease": 0.0}, r"decrease must be in \(0, 1\]"),
        ({"warmup": 9}, "warmup must be at least 10, as so many losses begin the average, but got 9; use 10 or more"),
    ],
)
def test_impossible_rules_are_refused(change, law):
    with pytest.raises(ValueError, match=law):
        StrengthRule(**change)
