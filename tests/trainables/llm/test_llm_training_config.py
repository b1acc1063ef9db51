import math

import pytest

from trainables.llm.training import Training


def test_the_rate_rises_linearly_then_falls_as_a_cosine_to_a_tenth():
    training = Training(updates=10, warmup=2, learning_rate=2.0)
    assert [training.rate(update) for update in (0, 1, 2)] == [1.0, 2.0, 2.0]
    assert training.rate(6) == pytest.approx(0.2 + 1.8 * 0.5)
    assert training.rate(4) == pytest.approx(0.2 + 1.8 * (1 + math.sqrt(0.5)) / 2)
    assert training.rate(9) == pytest.approx(0.2 + 1.8 * (1 + math.cos(7 * math.pi / 8)) / 2)
    assert training.rate(10) == training.rate(1000) == pytest.approx(0.2)


def test_without_warmup_the_first_update_has_the_highest_rate():
    training = Training(updates=4, warmup=0, learning_rate=1.0)
    assert [training.rate(update) for update in range(5)] == pytest.approx([1.0, 0.8681981, 0.55, 0.2318019, 0.1])


def test_a_training_shorter_than_its_warmup_never_has_the_full_rate():
    training = Training(updates=2, warmup=4, learning_rate=1.0)
    assert [training.rate(update) for update in range(2)] == [0.25, 0.5]
    assert Training(updates=0, warmup=0, learning_rate=1.0).rate(0) == 1.0


def test_tokens_are_those_that_all_updates_ask_for():
    assert Training(updates=3, batch_size=5, length=7).tokens == 105
    assert Training(updates=0).tokens == 0


@pytest.mark.parametrize(
    ("changes", "law"),
    [
        ({"updates": -1}, "updates must be at least 0, but got -1; use 0 or more"),
        ({"batch_size": 0}, "batch_size must be at least 1, but got 0"),
        ({"length": 0}, "length must be at least 1, but got 0"),
        ({"warmup": -1}, "warmup must be at least 0, but got -1"),
        ({"micro_batch_size": 0}, "micro_batch_size must be at least 1, or none, but got 0; use a part of batch_size"),
        ({"learning_rate": 0.0}, "learning_rate must be positive and finite, but got 0.0"),
        ({"learning_rate": math.inf}, "learning_rate must be positive and finite, but got inf"),
        ({"learning_rate": math.nan}, "learning_rate must be positive and finite, but got nan"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0, but got -0.1"),
        ({"weight_decay": math.nan}, "weight_decay must be at least 0, but got nan"),
        ({"weight_decay": math.inf}, "weight_decay must be at least 0, but got inf"),
        ({"clip_norm": 0.0}, "clip_norm must be positive, but got 0.0"),
        ({"clip_norm": math.nan}, "clip_norm must be positive, but got nan"),
    ],
)
def test_impossible_trainings_are_refused_in_a_sentence(changes, law):
    with pytest.raises(ValueError, match=law):
        Training(**changes)


def test_the_edges_of_what_is_possible_are_allowed():
    Training(updates=0, batch_size=1, length=1, warmup=0, learning_rate=1e-300, weight_decay=0.0, clip_norm=math.inf)
    Training(batch_size=4, micro_batch_size=1)
    Training(batch_size=4, micro_batch_size=5)
