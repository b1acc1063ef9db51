import dataclasses
import gc
import io
import itertools
import weakref

import pytest
import torch

from trainables.cmsp import recovery as recovery_module
from trainables.cmsp.networks import Shape, join
from trainables.cmsp.nonlocality_config import NonlocalityConfig
from trainables.cmsp.recovery import Copy, Recovery
from trainables.experiment import DivergedError
from trainables.pruning.surgery import remove
from trainables.randomness import generator
from trainables.relu_networks import for_modules, initial_network, modules

CPU = torch.device("cpu")
A, B = (0, 1), (2, 3)
CONFIG = dataclasses.replace(
    NonlocalityConfig.tiny(), width=40, learning_rate=2e-2, recovery_updates=50, recovery_samples=37, score_samples=101
)  # copies of 1 to 16, to 32 and to 40 units a layer train as three populations
SIZES = [(40, 40), (39, 2), (33, 12), (30, 40), (31, 17), (9, 21), (16, 16), (5, 9), (12, 3), (2, 1), (0, 7), (11, 0), (0, 0)]
SOLVED = (9, "before", "solved", *A)


def make_copy(seed, *sizes, code=A, name=None):
    """A copy of an untrained network that keeps so many units of each layer, here and there."""
    chance = generator(seed, "keep", *sizes)
    keep = [torch.randperm(CONFIG.width, generator=chance) < size for size in sizes]
    network = initial_network(CONFIG.shape.layers, generator(seed, "weights"))
    return Copy(name=name or (seed, "before", f"{sizes[0]}, {sizes[1]}", *code), code=code, network=network, keep=keep)


def cut(copy):
    return remove(copy.network, CONFIG.shape.neurons, copy.keep)


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


def make_solved():
    """A copy of which that network is left, with units 5 and 21 of the first layer and 3 and 30 of the second."""
    copy, small = make_copy(9, 0, 0, name=SOLVED), solved()
    first, second = torch.tensor([5, 21]), torch.tensor([3, 30])
    copy.network["layer0.weight"][:, first] = small["layer0.weight"]
    copy.network["layer0.bias"][first] = small["layer0.bias"]
    copy.network["layer1.weight"][first[:, None], second] = small["layer1.weight"]
    copy.network["layer1.bias"][second] = small["layer1.bias"]
    copy.network["layer2.weight"][second] = small["layer2.weight"]
    copy.network["layer2.bias"][:] = small["layer2.bias"]
    copy.keep[0][first] = copy.keep[1][second] = True
    return copy


def make_copies(seeds=(0, 1)):
    """Copies of every size on both tasks, and one with nothing to recover: six populations."""
    copies = [make_copy(seed, *sizes, code=code) for seed in seeds for sizes in SIZES for code in (A, B)]
    return [make_solved(), *copies]


def begin(copies, config=CONFIG):
    return Recovery(config, copies, remember=[copy.name for copy in copies], device=CPU)


def run(recovery, num_updates=1000):
    while recovery.progress < 1.0:
        recovery.advance(num_updates)
    return recovery


def stored(state):
    """A state that has been written and read."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


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
    assert lengths[SOLVED] == 1
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
            name: tensor.shape for name, tensor in cut(copy).items()
        }


def test_without_a_layer_only_the_last_bias_is_left_to_learn(together):
    for name, tensors in together.networks.items():
        if name[2] in ("0, 7", "11, 0", "0, 0"):
            assert max(together.accuracies[name]) < 0.7
            assert tensors["layer2.bias"].isfinite().all()
    copy = make_copy(0, 11, 0)
    after = run(begin([copy])).networks[copy.name]
    assert torch.equal(after["layer0.weight"], cut(copy)["layer0.weight"])


def test_a_remembered_network_is_that_of_the_last_measurement_and_has_its_accuracy():
    config = dataclasses.replace(
        CONFIG, learning_rate=0.03, recovery_samples=4, score_samples=4000, updates_per_evaluation=5, recovery_updates=60
    )
    recovery = run(begin([make_copy(seed, 7, 5) for seed in range(8)], config))
    assert any(max(accuracies) - accuracies[-1] > 0.1 for accuracies in recovery.accuracies.values())
    for name, tensors in recovery.networks.items():  # there are 16 inputs: one more or less right is 0.06
        assert exact_accuracy(tensors, A) == pytest.approx(recovery.accuracies[name][-1], abs=0.03)


def test_a_solved_copy_is_remembered_as_it_came(together):
    for name, tensor in solved().items():
        assert torch.equal(together.networks[SOLVED][name], tensor)
    assert exact_accuracy(solved(), A) == 1.0


def test_only_what_shall_be_remembered_is():
    copies = make_copies()[:5]
    recovery = Recovery(CONFIG, copies, remember=[copies[2].name], device=CPU)
    assert set(run(recovery).networks) == {copies[2].name}
    assert len(recovery.accuracies) == 5


@pytest.mark.parametrize("num_updates", [1, 60])
def test_a_recovery_saved_and_loaded_at_every_stop_goes_on_as_if_nothing_had_happened(together, num_updates):
    recovery, stops = begin(make_copies()), set()
    while recovery.progress < 1.0:
        recovery.advance(num_updates)
        state = recovery.state_dict()
        stops.add((state["turn"], state["group"] and state["group"]["update"]))
        again = begin(make_copies())
        again.load_state_dict(stored(state))
        assert again.progress == recovery.progress
        recovery = again
    middle = {turn for turn, update in stops if update in (20, 40)}
    assert middle == set(range(6)) if num_updates == 1 else len(middle - {0}) >= 2
    check_same(together, recovery, together.accuracies)


def test_a_state_is_a_snapshot_that_going_on_leaves_alone(together):
    recovery = begin(make_copies())
    for _ in range(4):
        recovery.advance(1)
    state = recovery.state_dict()
    assert state["turn"] == 1
    assert state["group"]["update"] == 20
    run(recovery)
    again = begin(make_copies())
    again.load_state_dict(state)
    recovery.load_state_dict(state)  # over the end
    for resumed in (again, recovery):
        check_same(together, run(resumed), together.accuracies)


def test_one_population_at_a_time_is_cut_trained_and_saved(monkeypatch):
    """Of the others there are the unpruned networks and masks that the copies share."""
    copies = {copy.name: copy for copy in make_copies()}
    cuts = []
    monkeypatch.setattr(recovery_module, "remove", lambda *args: cuts.append(args[0]) or remove(*args))
    recovery, seen = begin(list(copies.values())), []
    assert cuts == []
    while recovery.progress < 1.0:
        recovery.advance(1)
        group = recovery.state_dict()["group"]
        begun = {name for name, accuracies in recovery.accuracies.items() if accuracies}
        assert len(cuts) == len(begun)
        if group is None:
            continue
        kinds = {(copies[name].width(CONFIG), copies[name].code) for name in group["names"]}
        assert len(kinds) == 1
        assert len(group["population"]["parameters"]) == len(group["names"])
        waiting = copies.keys() - begun
        assert not kinds & {(copies[name].width(CONFIG), copies[name].code) for name in waiting}
        seen += [kind for kind in kinds if kind not in seen]
    assert len(seen) == 6
    assert len(cuts) == len(copies)


def test_a_population_is_let_go_before_the_next_is_made(monkeypatch):
    made, alive = [], []

    class Watched(recovery_module.Population):
        def __init__(self, *args, **kwargs):
            alive.append(sum(population() is not None for population in made))
            made.append(weakref.ref(self))
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(recovery_module, "Population", Watched)
    gc.collect()
    gc.disable()
    try:
        run(begin([make_copy(0, size, size) for size in (40, 30, 10)], dataclasses.replace(CONFIG, recovery_updates=1)))
    finally:
        gc.enable()
    assert alive == [0, 0, 0]


def test_what_a_copy_learns_depends_on_its_name_and_not_on_the_trials_first_seed():
    copies = [make_copy(5, 12, 3), make_copy(5, 30, 40, code=B)]
    one, other = (run(begin(copies, dataclasses.replace(CONFIG, seed=seed, num_seeds=6 - seed))) for seed in (0, 5))
    check_same(one, other, one.accuracies)
    renamed = run(begin([dataclasses.replace(copy, name=(6, *copy.name[1:])) for copy in copies]))
    for copy in copies:
        assert renamed.accuracies[6, *copy.name[1:]] != one.accuracies[copy.name]


def test_without_updates_a_recovery_measures_and_stops():
    copies = make_copies()[:8]
    recovery = begin(copies, dataclasses.replace(CONFIG, recovery_updates=0))
    assert recovery.progress == 0.0
    recovery.advance(1)
    assert recovery.progress == 1.0
    for copy in copies:
        assert len(recovery.accuracies[copy.name]) == 1
        for name, tensor in cut(copy).items():
            assert torch.equal(recovery.networks[copy.name][name], tensor)


def test_without_copies_there_is_nothing_to_do():
    assert begin([]).progress == 1.0


def test_measurements_come_before_the_first_update_at_every_interval_and_at_the_end():
    copy = make_copy(0, 0, 7, code=B)  # it never learns
    for every, updates in ((20, [20, 40, 50]), (25, [25, 50]), (80, [50])):
        recovery = begin([copy], dataclasses.replace(CONFIG, updates_per_evaluation=every))
        seen = []
        while recovery.progress < 1.0:
            recovery.advance(1)
            seen.append(recovery.progress)
            assert len(recovery.accuracies[copy.name]) == 1 + len(seen)
        assert seen == pytest.approx([update / 50 for update in updates])


@pytest.mark.parametrize(
    ("num_updates", "updates"),
    [(1, [20, 40, 50, 70, 90, 100]), (21, [40, 70, 100]), (50, [50, 100]), (51, [70, 100]), (500, [100])],
)
def test_advance_goes_on_to_the_first_measurement_after_so_many_updates_and_over_populations(num_updates, updates):
    """Two populations of copies that never learn, 50 updates each, measured after 20, 40 and 50."""
    recovery, seen = begin([make_copy(0, 0, 7), make_copy(0, 0, 20)]), []
    while recovery.progress < 1.0:
        recovery.advance(num_updates)
        seen.append(recovery.progress)
    assert seen == pytest.approx([update / 100 for update in updates])
    again = {name: list(accuracies) for name, accuracies in recovery.accuracies.items()}
    recovery.advance(num_updates)
    assert recovery.accuracies == again


def test_progress_counts_copies_and_those_that_train_by_their_updates():
    copies = [make_copy(seed, 0, size) for seed, size in ((0, 7), (0, 20), (1, 7), (2, 7))]  # three train, then one
    recovery, seen = begin(copies), [0.0]
    while recovery.progress < 1.0:
        recovery.advance(1)
        seen.append(recovery.progress)
    assert seen == pytest.approx([0.0, 0.3, 0.6, 0.75, 0.85, 0.95, 1.0])


def test_the_first_update_moves_a_weight_by_the_learning_rate_as_with_torchs_own_eps():
    """Adam's first update is rate * g / (|g| + eps): with an eps of 1e-5, as in pretraining, a g of 1e-3 moves 1 % less."""
    config = dataclasses.replace(CONFIG, recovery_updates=2, updates_per_evaluation=1)
    copy = make_copy(0, 40, 40)
    recovery = begin([copy], config)
    recovery.advance(1)
    before_PF = join(Shape.of_depth(num_inputs=8, depth=3, width=copy.width(config)), [cut(copy)])
    after_PF = recovery.state_dict()["group"]["population"]["parameters"]
    moved = (after_PF - before_PF).abs()
    assert moved[moved > 0].median().item() == pytest.approx(config.learning_rate, rel=1e-4)


def test_a_copy_that_is_not_a_number_is_reported_as_divergence():
    broken = make_copy(1, 12, 3, name=(1, "before", "broken", *A))
    kept = [keep_H.nonzero()[0] for keep_H in broken.keep]
    broken.network["layer1.weight"][*kept] = torch.nan
    with pytest.raises(DivergedError, match=r"a pruned copy reported \(1, 'before', 'broken', 0, 1\) = nan"):
        run(begin([*make_copies()[:4], broken]))


def test_a_copy_has_nothing_of_the_units_that_it_lacks():
    copy = make_copy(1, 12, 3)
    expected = run(begin([copy]))
    lost = [(~keep_H).nonzero()[0] for keep_H in copy.keep]
    copy.network["layer0.weight"][:, lost[0]] = copy.network["layer1.weight"][:, lost[1]] = torch.nan
    check_same(expected, run(begin([copy])), [copy.name])


def test_recovery_that_blows_up_is_reported_as_divergence():
    with pytest.raises(DivergedError, match="must be finite"):
        run(begin(make_copies()[1:5], dataclasses.replace(CONFIG, learning_rate=1e37)))


def test_a_copys_population_is_its_widest_layer_in_eighths_of_the_unpruned_one():
    def width(unpruned, *sizes):
        keep = [torch.arange(unpruned) < size for size in sizes]
        return Copy(name=(), code=A, network={}, keep=keep).width(dataclasses.replace(CONFIG, width=unpruned))

    assert [width(256, *sizes) for sizes in ((256, 3), (3, 225), (224, 224), (1, 0), (0, 0))] == [256, 256, 224, 32, 32]
    assert [width(40, *sizes) for sizes in ((16, 3), (17, 3), (40,))] == [16, 32, 48]  # an eighth is a cache line at least
    assert Shape.of_depth(num_inputs=8, depth=3, width=40).padded.widths == (48, 48)
