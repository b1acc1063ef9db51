import json

import pytest
import torch
from corpus_texts import END

from trainables.llm import corpus_stream
from trainables.llm.corpus import Corpus
from trainables.llm.corpus_stream import Mixture, Stream
from trainables.randomness import stream_key

DOMAINS = ("code", "other", "prose")


@pytest.fixture(scope="module")
def corpus():
    """Each token tells its domain (hundreds) and where in it it stands (units)."""
    sizes = {"code": 81, "other": 41, "prose": 61}
    tensors = {
        f"tokens/{split}/{domain}": tokens(domain, size) for domain, size in sizes.items() for split in ("training", "evaluation")
    }
    about = json.dumps({"end_id": END, "start_id": None}).encode()
    return Corpus.of({**tensors, "about.json": torch.tensor(list(about), dtype=torch.uint8)})


def tokens(domain, size):
    return (torch.arange(size, dtype=torch.int32) + 100 * DOMAINS.index(domain)).to(torch.uint16)


def stream(corpus, weights=None, **settings):
    return Stream(corpus, weights=weights or {"code": 1.0}, **{"length": 4, "batch_size": 8, "seed": 3, **settings})


def firsts(stream, count):
    return torch.cat([stream.batch(index)[:, 0] for index in range(count)]).tolist()


def test_a_batch_holds_windows_of_the_split(corpus):
    token_BT = stream(corpus, dict.fromkeys(DOMAINS, 1.0)).batch(5)
    assert token_BT.shape == (8, 5)
    assert token_BT.dtype == torch.int64
    assert (token_BT.diff(dim=1) == 1).all()
    assert (token_BT[:, 0] % 100 % 4 == 0).all()
    assert stream(corpus).tokens_per_batch == 32


def test_every_window_comes_once_an_epoch(corpus):
    drawn = firsts(stream(corpus, batch_size=7), 60)  # epochs of 20 windows end within batches
    epochs = [drawn[start : start + 20] for start in range(0, 420, 20)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(0, 80, 4))
    assert len({tuple(epoch) for epoch in epochs}) == 21


def test_every_window_comes_once_an_epoch_of_its_domain_in_a_mixture(corpus):
    drawn = firsts(stream(corpus, {"code": 1.0, "other": 3.0, "prose": 0.5}), 200)
    for domain, count in {"code": 20, "other": 10, "prose": 15}.items():
        base = 100 * DOMAINS.index(domain)
        of_domain = [first - base for first in drawn if base <= first < base + 100]
        assert len(of_domain) > 3 * count
        for start in range(0, len(of_domain) - count, count):
            assert sorted(of_domain[start : start + count]) == list(range(0, 4 * count, 4))


def test_any_batch_can_be_made_first(corpus):
    weights = dict.fromkeys(DOMAINS, 1.0)
    in_order = [stream_.batch(index) for stream_ in [stream(corpus, weights)] for index in range(40)]
    backwards = stream(corpus, weights)
    for index in reversed(range(40)):
        assert torch.equal(backwards.batch(index), in_order[index])
    assert torch.equal(stream(corpus, dict(reversed(weights.items()))).batch(17), in_order[17])


def test_batches_of_another_size_hold_the_same_sequences(corpus):
    weights = {"code": 0.3, "prose": 0.7}
    small, large = stream(corpus, weights, batch_size=4), stream(corpus, weights, batch_size=12)
    assert torch.equal(torch.cat([small.batch(index) for index in range(3, 6)]), large.batch(1))


def test_seeds_and_splits_have_orders_of_their_own(corpus):
    one, other, evaluation = (stream(corpus, **settings) for settings in ({}, {"seed": 4}, {"split": "evaluation"}))
    assert firsts(one, 2) != firsts(other, 2)
    assert firsts(one, 2) != firsts(evaluation, 2)
    assert firsts(one, 2) == firsts(stream(corpus), 2)


def test_batches_never_change(corpus):
    """What was drawn when this was written: a resumed study must draw it again."""
    token_BT = stream(corpus, {"code": 0.5, "prose": 0.25, "other": 0.25}, batch_size=6).batch(700)
    assert token_BT[:, 0].tolist() == [24, 28, 248, 220, 16, 36]


@pytest.mark.parametrize("weights", [(1.0, 1.0, 2.0), (0.05, 0.9, 0.05), (7.0, 0.0, 3.0), (0.0, 0.0, 1e-9)])
def test_domains_come_as_often_as_their_weights_say(corpus, weights):
    count = 8000
    drawn = stream(corpus, dict(zip(DOMAINS, weights, strict=True)), batch_size=count).batch(0)[:, 0] // 100
    for got, weight in zip(drawn.bincount(minlength=3).tolist(), weights, strict=True):
        share = weight / sum(weights)
        assert abs(got - share * count) <= 4 * (count * share * (1 - share)) ** 0.5  # 0 for a weight of 0


def test_only_the_ratio_of_weights_matters(corpus):
    assert firsts(stream(corpus, {"code": 1, "prose": 3}), 5) == firsts(
        stream(corpus, {"code": 0.25, "prose": 0.75, "other": 0}), 5
    )


def test_sequences_are_numbered_within_their_domain(monkeypatch):
    monkeypatch.setattr(corpus_stream, "_CHUNK", 16)
    weight_K = torch.tensor([0.2, 0.5, 0.3])
    domain_C, ordinal_C = Mixture(weight_K, stream_key("test")).draw(0, 500)
    for domain in range(3):
        of_domain = ordinal_C[domain_C == domain]
        assert torch.equal(of_domain, torch.arange(len(of_domain)))
    pieces = [Mixture(weight_K, stream_key("test")).draw(first, 25) for first in range(0, 500, 25)]
    assert torch.equal(torch.cat([domain for domain, _ in pieces]), domain_C)
    assert torch.equal(torch.cat([ordinal for _, ordinal in pieces]), ordinal_C)


@pytest.mark.parametrize(
    ("weights", "law"),
    [
        ({"code": -0.1, "prose": 1.0}, "weights must be at least 0 and finite, but got .*-0.1.*; use shares"),
        ({"code": float("nan")}, "weights must be at least 0 and finite, but got .*nan.*; use shares"),
        ({"code": float("inf")}, "weights must be at least 0 and finite, but got .*inf.*; use shares"),
        ({"code": 0.0, "prose": 0.0}, "a mixture must have a weight above 0, but got .*; give a domain some"),
        ({}, "a mixture must have a weight above 0, but got {}; give a domain some"),
        ({"rust": 0.0, "code": 1.0}, r"domains must be of the corpus \(code, other, prose\), but got rust; name its domains"),
    ],
)
def test_weights_that_are_no_mixture_are_refused(corpus, weights, law):
    with pytest.raises(ValueError, match=law):
        Stream(corpus, weights=weights, length=4, batch_size=8, seed=3)


@pytest.mark.parametrize(
    ("settings", "law"),
    [
        ({"length": 0}, "a sequence must have at least 1 token, but got 0; use"),
        ({"length": 41, "weights": {"code": 1.0, "other": 1.0}}, "no longer than the 40 tokens of domain other for training"),
        ({"batch_size": 0}, "a batch must have at least 1 sequence, but got 0; use"),
        ({"split": "test"}, "a split must be one of attribution, training, evaluation, but got 'test'"),
    ],
)
def test_streams_that_cannot_be_are_refused(corpus, settings, law):
    with pytest.raises(ValueError, match=law):
        stream(corpus, **settings)


def test_a_domain_without_weight_may_be_shorter_than_a_sequence(corpus):
    assert stream(corpus, {"code": 1.0, "other": 0.0}, length=41).batch(0).shape == (8, 42)


def test_a_batch_before_the_first_is_refused(corpus):
    with pytest.raises(ValueError, match="a batch's index must be at least 0, but got -1; count"):
        stream(corpus).batch(-1)
