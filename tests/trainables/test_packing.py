"""Trials that make their steps as one program come to the same as apart, bit for bit on the CPU, and each stands for itself."""

import itertools

import pytest
import torch

from trainables.cmsp.curriculum import Curriculum
from trainables.cmsp.curriculum_config import CurriculumConfig
from trainables.experiment import DivergedError

CPU = torch.device("cpu")


def config(**changes):
    fixed = {
        "num_task_bits": 6, "num_atoms": 2, "bits_per_atom": 2, "composite_size": 2, "related_atoms": 2, "width": 16,
        "samples_per_update": 48, "sample_budget": 48 * 300, "num_seeds": 1, "samples_per_evaluation": 64,
        "updates_per_step": 100,
    }  # fmt: skip
    return CurriculumConfig(**fixed | changes)


def sixteen(**changes):
    """Trials of one shape: other rates, seeds, numbers of seeds and mixtures."""
    mixtures = itertools.cycle([{"composite_share": 0.3}, {"composite_share": 0.7}, {"related_atoms": 1}])
    return [
        config(learning_rate=1e-3 * 1.3**i, seed=100 * i, num_seeds=1 + i % 2, **mixture, **changes)
        for i, mixture in zip(range(16), mixtures, strict=False)
    ]


def make(configs):
    return [Curriculum(each, device=CPU) for each in configs]


def equal(a, b):
    """Whether two states hold the same, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def run_apart(experiment):
    """Metrics and state after every step."""
    history = []
    while experiment.progress < 1.0:
        history.append((experiment.step(), experiment.state_dict()))
    return history


def run_packed(members):
    """The same of every member of a pack."""
    pack, histories = Curriculum.pack(members), {member: [] for member in members}
    while pack.members:
        for member, outcome in pack.step().items():
            histories[member].append((outcome, member.state_dict()))
    return [histories[member] for member in members]


def same(packed, apart):
    return len(packed) == len(apart) and all(map(equal, packed, apart))


@pytest.fixture(scope="module")
def apart():
    made = make(sixteen())
    return made, [run_apart(experiment) for experiment in made]


def test_sixteen_packed_trials_equal_sixteen_separate_ones_at_every_step(apart):
    packed = make(sixteen())
    histories = run_packed(packed)
    alone, expected = apart
    assert len({len(history) for history in expected}) > 1  # some converge early
    for mine, theirs, member, other in zip(histories, expected, packed, alone, strict=True):
        assert same(mine, theirs)
        assert equal(member.model_tensors(), other.model_tensors())
        assert equal(member.account().evidence, other.account().evidence)
        assert member.progress == 1.0


def test_keys_are_equal_where_rates_seeds_and_mixtures_differ_and_not_where_shapes_do():
    assert len({Curriculum.pack_key(each) for each in sixteen()}) == 1
    others = [{"width": 32}, {"depth": 2}, {"samples_per_update": 96}, {"updates_per_step": 50}, {"sample_budget": 48 * 200}]
    assert len({Curriculum.pack_key(config(**change)) for change in [{}, *others]}) == len(others) + 1


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, 16), ({"num_seeds": 2}, 8), ({"width": 64, "samples_per_update": 600}, 8), ({"num_seeds": 40}, 1),
        ({"width": 128, "samples_per_update": 10_000}, 1),
    ],
)  # fmt: skip
def test_as_many_are_packed_as_pay(changes, size):
    assert Curriculum.pack_size(config(**changes), num_cpus=1, num_gpus=0) == size
    assert Curriculum.pack_size(config(**changes), num_cpus=1, num_gpus=1) == 1


def test_one_that_diverges_fails_alone(apart):
    members = make([*sixteen()[:3], config(learning_rate=1e30, seed=7)])
    pack, outcomes = Curriculum.pack(members), []
    while pack.members:
        outcomes.append(pack.step())
    assert isinstance(outcomes[0][members[3]], DivergedError)
    assert members[3] not in outcomes[1]
    for place in range(3):
        told = [(step[members[place]]) for step in outcomes if members[place] in step]
        assert told == [metrics for metrics, _ in apart[1][place]]


def test_one_that_leaves_is_missed_by_nobody_and_goes_on_alone_where_it_was(apart):
    members = make(sixteen()[:4])
    pack = Curriculum.pack(members)
    pack.step()
    pack.drop(members[1])
    rest = run_apart(members[1])
    assert same(rest, apart[1][1][1:])
    told = []
    while pack.members:
        told.append(pack.step().get(members[0]))
    assert [metrics for metrics in told if metrics] == [metrics for metrics, _ in apart[1][0][1:]]


def test_a_member_that_was_stepped_outside_its_pack_is_not_trained_with_the_others():
    members = make(sixteen()[:2])
    pack = Curriculum.pack(members)
    pack.step()
    members[0].step()
    with pytest.raises(ValueError, match="must be at one update"):
        pack.step()


def test_checkpoints_go_from_packs_to_single_trials_and_back(apart):
    members = make(sixteen()[:3])
    Curriculum.pack(members).step()
    states = [member.state_dict() for member in members]
    again = make(sixteen()[:3])
    for member, state in zip(again, states, strict=True):
        member.load_state_dict(state)
    single, *others = again
    assert same(run_apart(single), apart[1][0][1:])
    for mine, theirs in zip(run_packed(others), apart[1][1:3], strict=True):
        assert same(mine, theirs[1:])


@pytest.mark.slow
def test_sixteen_trials_of_five_hundred_updates_are_the_same_packed():
    configs = [config(num_task_bits=12, sample_budget=48 * 500, learning_rate=1e-3 * 1.1**i, seed=100 * i) for i in range(16)]
    for mine, theirs in zip(run_packed(make(configs)), map(run_apart, make(configs)), strict=True):
        assert same(mine, theirs)
