import torch

from trainables.randomness import draw_words, generator, stream_key


def splitmix64(state: int) -> int:
    """The published generator, in Python's integers."""
    z = state & (2**64 - 1)
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return z ^ (z >> 31)


def test_words_are_those_of_splitmix64():
    key = stream_key(7, "data")
    ours = draw_words(torch.tensor([key]), 0, 100)[0].tolist()
    theirs = [splitmix64(key + (i + 1) * 0x9E3779B97F4A7C15) for i in range(100)]
    assert [word % 2**64 for word in ours] == theirs


def test_a_stream_does_not_depend_on_its_company_or_on_how_it_is_cut():
    keys = torch.tensor([stream_key(seed, "data") for seed in range(5)])
    together = draw_words(keys, 0, 64)
    assert torch.equal(together[3], draw_words(keys[3:4], 0, 64)[0])
    assert torch.equal(together[:, 10:], draw_words(keys, 10, 54))


def test_bits_are_fair_and_independent_between_streams():
    words = draw_words(torch.tensor([stream_key(seed, "data") for seed in range(4)]), 0, 20_000)
    bits = torch.stack([(words >> shift) & 1 for shift in range(64)], dim=-1).double()
    assert (bits.mean(dim=1) - 0.5).abs().max() < 5 * 0.5 / 20_000**0.5
    correlation = torch.corrcoef(bits.flatten(1)) - torch.eye(4, dtype=torch.float64)
    assert correlation.abs().max() < 5 / (20_000 * 64) ** 0.5


def test_keys_differ_by_seed_and_purpose():
    assert len({stream_key(seed, purpose) for seed in range(100) for purpose in ("weights", "training")}) == 200


def test_generators_repeat_and_leave_the_global_one_alone():
    before = torch.get_rng_state()
    first, second = (torch.rand(3, generator=generator(1, "weights")) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())
