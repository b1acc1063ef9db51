import dataclasses
import io
import itertools

import pytest
import torch

from trainables.cmsp.networks import Shape, for_modules, initial_network, modules
from trainables.cmsp.nonlocality_config import NonlocalityConfig
from trainables.cmsp.recovery import Copy, Recovery
from trainables.experiment import DivergedError
from trainables.pruning.surgery import remove
from trainables.randomness import generator

CPU = torch.device("cpu")
A, B = (0, 1), (2, 3)
CONFIG = dataclasses.replace(
    NonlocalityConfig.tiny(), width=40, learning_rate=2e-2, recovery_updates=50, recovery_samples=37, score_samples=101
)  # copies of 1 to 16, to 32 and to 40 units a layer train as three populations
SIZES = [(40, 40), (39, 2), (33, 12), (30, 40), (31, 17), (9, 21), (16, 16), (5, 9), (12, 3), (2, 1), (0, 7), (11, 0), (0, 0)]


def cut(seed, *sizes):
    """An untrained network of which the first units of each layer are left."""
    shape = CONFIG.shape
    keep = [torch.arange(units.count) < size for units, size in zip(shape.neurons, sizes, strict=True)]
    return remove(initial_network(shape, generator(seed, "weights")), shape.neurons, keep)


def solved():
    """A network that makes no mistake on A: a + b and a * b of its bits a and b, through both layers."""
    tensors = {
        "layer0.weight": torch.zeros(CONFIG.task.num_inputs, 2),
        "layer0.bias": torch.tensor([0.0, -1.0]),
        "layer1.weight": torch.eye(2),
        "layer1.bias": torch.zeros(2),
        "layer2.weight": torch.tensor([[0.0, 1.0], [0.0, -2.0]]),
        "layer2.bias": torch.tensor([0.5, 0.0]),
    }
    tensors["layer0.weight"][4:6] = 1.0
    return tensors


def make_copies(seeds=(0, 1)):
    """Copies of every size on both tasks, and one with nothing to recover."""
    copies = [
        Copy(name=("before", seed, f"{first}, {second}", *code), code=code, tensors=cut(seed, first, second))
        for seed in seeds
        for first, second in SIZES
        for code in (A, B)
    ]
    return [Copy(name=("before", 9, "solved", *A), code=A, tensors=solved()), *copies]


def begin(copies, config=CONFIG):
    return Recovery(config, copies, remember=[copy.name for copy in copies], device=CPU)


def run(recovery):
    recovery.advance()
    while not recovery.finished:
        recovery.advance()
    return recovery


def check_same(recovery, other, names):
    for name in names:
        assert recovery.accuracies[name] == other.accuracies[name], name
        assert recovery.networks[name].keys() == other.networks[name].keys()
        for parameter, tensor in recovery.networks[name].items():
            assert torch.equal(tensor, other.networks[name][parameter]), (name, parameter)


def all_inputs(code):
    """Every sample that the task can draw for a code, with its label."""
    control = torch.tensor([float(atom in code) for atom in range(CONFIG.task.num_atoms)])
    bits = torch.tensor(list(itertools.product((0.0, 1.0), repeat=CONFIG.num_task_bits)))
    return torch.cat([control.expand(len(bits), -1), bits], dim=1), bits[:, list(code)].sum(1).remainder(2).long()


def exact_accuracy(tensors, code):
    x_BI, y_B = all_inputs(code)
    return (modules(for_modules(tensors))(x_BI).argmax(-1) == y_B).float().mean().item()


@pytest.fixture(scope="module")
def together():
    return run(begin(make_copies()))


def test_a_copy_recovers_alone_as_it_does_in_company(together):
    for copy in make_copies():
        check_same(together, run(begin([copy])), [copy.name])


def test_that_company_leaves_at_many_moments(together):
    """Else the test before this one would show less than it says."""
    lengths = {name: len(accuracies) for name, accuracies in together.accuracies.items()}
    assert lengths["before", 9, "solved", *A] == 1
    assert set(lengths.values()) == {1, 2, 3, 4}  # after 0, 20, 40 and 50 updates
    gained = [max(accuracies) - accuracies[0] for accuracies in together.accuracies.values()]
    assert max(gained) > 0.4


def test_a_copy_leaves_when_it_makes_no_mistake_and_not_before(together):
    for accuracies in together.accuracies.values():
        assert all(accuracy < 1.0 for accuracy in accuracies[:-1])
        assert accuracies[-1] == 1.0 or len(accuracies) == 4


def test_company_may_be_one_other_copy_or_come_in_another_order(together):
    copies = make_copies()
    pairs = [run(begin([copies[place + 1], copies[place]])) for place in range(0, len(copies) - 1, 9)]
    for recovery in [*pairs, run(begin(copies[::-1]))]:
        check_same(together, recovery, recovery.accuracies)


def test_a_remembered_network_has_the_sizes_that_it_was_pruned_to(together):
    for copy in make_copies():
        remembered = together.networks[copy.name]
        assert {name: tensor.shape for name, tensor in remembered.items()} == {
            name: tensor.shape for name, tensor in copy.tensors.items()
        }


def test_without_a_layer_only_the_last_bias_is_left_to_learn(together):
    for name, tensors in together.networks.items():
        if name[2] in ("0, 7", "11, 0", "0, 0"):
            assert max(together.accuracies[name]) < 0.7
            assert tensors["layer2.bias"].isfinite().all()
    before = cut(0, 11, 0)
    after = run(begin([Copy(name=("x",), code=A, tensors=before)])).networks["x",]
    assert torch.equal(after["layer0.weight"], before["layer0.weight"])


def test_a_remembered_network_is_the_best_that_was_measured_and_has_that_accuracy():
    config = dataclasses.replace(
        CONFIG, learning_rate=0.03, recovery_samples=4, score_samples=4000, updates_per_evaluation=5, recovery_updates=60
    )
    copies = [Copy(name=("before", seed, "7, 5", *A), code=A, tensors=cut(seed, 7, 5)) for seed in range(8)]
    recovery = run(begin(copies, config))
    assert any(max(accuracies) - accuracies[-1] > 0.1 for accuracies in recovery.accuracies.values())
    for name, tensors in recovery.networks.items():  # there are 16 inputs: one more or less right is 0.06
        assert exact_accuracy(tensors, A) == pytest.approx(max(recovery.accuracies[name]), abs=0.03)


def test_a_solved_copy_is_remembered_as_it_came(together):
    for name, tensor in solved().items():
        assert torch.equal(together.networks["before", 9, "solved", *A][name], tensor)
    assert exact_accuracy(solved(), A) == 1.0


def test_only_what_shall_be_remembered_is():
    copies = make_copies()[:5]
    recovery = Recovery(CONFIG, copies, remember=[copies[2].name], device=CPU)
    assert set(run(recovery).networks) == {copies[2].name}
    assert len(recovery.accuracies) == 5


@pytest.mark.parametrize("num_advances", [1, 2])
def test_a_recovery_saved_in_the_middle_goes_on_as_if_nothing_had_happened(together, num_advances):
    recovery = begin(make_copies())
    for _ in range(num_advances):
        recovery.advance()
    stored = io.BytesIO()
    torch.save(recovery.state_dict(), stored)
    stored.seek(0)
    again = begin([])
    again.load_state_dict(torch.load(stored, weights_only=True))
    assert again.update == recovery.update == 20 * num_advances
    check_same(together, run(again), together.accuracies)
    assert again.update == together.update


def test_a_state_is_a_snapshot_that_going_on_leaves_alone(together):
    recovery = begin(make_copies())
    recovery.advance()
    state = recovery.state_dict()
    run(recovery)
    again = begin([])
    again.load_state_dict(state)
    check_same(together, run(again), together.accuracies)


def test_without_updates_a_recovery_measures_and_stops():
    copies = make_copies()[:8]
    recovery = begin(copies, dataclasses.replace(CONFIG, recovery_updates=0))
    recovery.advance()
    assert recovery.finished
    assert recovery.update == 0
    for copy in copies:
        assert len(recovery.accuracies[copy.name]) == 1
        for name, tensor in copy.tensors.items():
            assert torch.equal(recovery.networks[copy.name][name], tensor)


def test_measurements_come_before_the_first_update_at_every_interval_and_at_the_end():
    copy = Copy(name=("x",), code=B, tensors=cut(0, 0, 7))  # it never learns
    for every, updates in ((20, [20, 40, 50]), (25, [25, 50]), (80, [50])):
        recovery = begin([copy], dataclasses.replace(CONFIG, updates_per_evaluation=every))
        seen = []
        while not recovery.finished:
            recovery.advance()
            seen.append(recovery.update)
        assert seen == updates
        assert len(recovery.accuracies["x",]) == 1 + len(updates)


def test_the_first_update_moves_a_weight_by_the_learning_rate_as_with_torchs_own_eps():
    """Adam's first update is rate * g / (|g| + eps): with an eps of 1e-5, as in pretraining, a g of 1e-3 moves 1 % less."""
    config = dataclasses.replace(CONFIG, recovery_updates=1)
    recovery = begin([Copy(name=("x",), code=A, tensors=cut(0, 40, 40))], config)
    before_PF = recovery.state_dict()["groups"][0]["population"]["parameters"]
    recovery.advance()
    after_PF = recovery.state_dict()["groups"][0]["population"]["parameters"]
    moved = (after_PF - before_PF).abs()
    assert moved[moved > 0].median().item() == pytest.approx(config.learning_rate, rel=1e-4)


def test_a_copy_that_is_not_a_number_is_reported_as_divergence():
    broken = cut(1, 12, 3)
    broken["layer1.weight"][0, 0] = torch.nan
    copies = [*make_copies()[:4], Copy(name=("before", 1, "broken", *A), code=A, tensors=broken)]
    with pytest.raises(DivergedError, match=r"the recovery of a pruned copy reported \('before', 1, 'broken', 0, 1\) = nan"):
        begin(copies).advance()


def test_recovery_that_blows_up_is_reported_as_divergence():
    with pytest.raises(DivergedError, match="must be finite"):
        run(begin(make_copies()[1:5], dataclasses.replace(CONFIG, learning_rate=1e37)))


def test_a_copys_population_is_its_widest_layer_in_eighths_of_the_unpruned_one():
    def width(unpruned, *sizes):
        tensors = {}
        for layer, size in enumerate([*sizes, 2]):
            tensors |= {f"layer{layer}.weight": torch.zeros(1, size), f"layer{layer}.bias": torch.zeros(size)}
        return Copy(name=(), code=A, tensors=tensors).width(unpruned)

    assert [width(256, *sizes) for sizes in ((256, 3), (3, 225), (224, 224), (1, 0), (0, 0))] == [256, 256, 224, 32, 32]
    assert [width(40, *sizes) for sizes in ((16, 3), (17, 3), (40,))] == [16, 32, 48]  # an eighth is a cache line at least
    assert Shape.of_depth(num_inputs=8, depth=3, width=40).padded.widths == (48, 48)
