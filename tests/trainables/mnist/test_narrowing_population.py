from itertools import pairwise

import pytest
import torch

from trainables.mnist.population import Population
from trainables.pruning.penalties import group_lasso
from trainables.pruning.surgery import mask
from trainables.randomness import generator
from trainables.relu_networks import for_modules, hidden_neurons, initial_network, logits, modules, stack

SIZES = [7, 6, 5, 3]
INF = float("inf")
X_PBI = torch.randn(3, 16, 7, generator=torch.Generator().manual_seed(0))
LABEL_PB = torch.randint(3, (3, 16), generator=torch.Generator().manual_seed(1))


def network(sizes=SIZES, seed=0):
    return initial_network(list(pairwise(sizes)), generator(seed, "weights"))


def make(networks=None, *, learning_rate=1e-2, clip_norm=INF):
    networks = networks or [network(seed=seed) for seed in range(3)]
    return Population(networks, learning_rate=learning_rate, clip_norm=clip_norm)


def losses(tensors, places=(0, 1, 2), scale=1.0):
    """Cross-entropy of each network on the samples of its place."""
    logit_PBO = logits(tensors, X_PBI[list(places)])
    by_network = [
        torch.nn.functional.cross_entropy(logit_BO, label_B)
        for logit_BO, label_B in zip(logit_PBO, LABEL_PB[list(places)], strict=True)
    ]
    return torch.stack(by_network) * torch.as_tensor(scale)


def train(population, num_updates, places=(0, 1, 2), **options):
    for _ in range(num_updates):
        population.adam(population.gradients(lambda tensors: losses(tensors, places, **options)))


def networks_of(population):
    return [population.network(place) for place in range(len(population))]


def assert_alike(networks, others, **tolerance):
    for ours, theirs in zip(networks, others, strict=True):
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[name], **tolerance)


def all_but(gone, counts=(6, 5)):
    """keep_PH of each hidden layer; gone: (network, layer, neuron)."""
    keep = [torch.ones(3, count, dtype=torch.bool) for count in counts]
    for place, layer, neuron in gone:
        keep[layer][place, neuron] = False
    return keep


def units_of(tensors, gone):
    """All parameters of some units, in a row."""
    owned = []
    for place, layer, neuron in gone:
        for member in hidden_neurons(tensors)[layer].members:
            owned.append(tensors[member.parameter][place].select(member.axis, neuron).flatten())
    return torch.cat(owned)


@pytest.mark.parametrize("clip_norm", [INF, 0.5])
def test_every_update_is_that_of_torch_adam_and_torch_clipping(clip_norm):
    """Losses are of different scale, so that some gradients are clipped and others are not."""
    scale_P, num_clipped = [0.1, 3.0, 50.0], [0, 0, 0]
    population = make(clip_norm=clip_norm)
    models = [modules(for_modules(network(seed=seed))) for seed in range(3)]
    optimizers = [torch.optim.Adam(model.parameters(), lr=1e-2) for model in models]
    for _ in range(25):
        train(population, 1, scale=scale_P)
        for place, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(X_PBI[place]), LABEL_PB[place]) * scale_P[place]
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            num_clipped[place] += int(norm > clip_norm)
            optimizer.step()
            ours = modules(for_modules(population.network(place))).state_dict()
            assert_alike([ours], [model.state_dict()], rtol=1e-5, atol=1e-6)
    if clip_norm == 0.5:
        assert num_clipped[0] == 0
        assert 0 < num_clipped[1] < 25
        assert num_clipped[2] == 25


def test_networks_go_in_as_copies():
    networks = [network()]
    train(make(networks), 2, places=[0])
    assert_alike(networks, [network()], rtol=0, atol=0)


def test_the_order_of_names_changes_no_number():
    """A file gives its tensors in any order."""
    population, backwards = (
        make(clip_norm=0.5),
        make([dict(reversed(network(seed=seed).items())) for seed in range(3)], clip_norm=0.5),
    )
    for one in (population, backwards):
        train(one, 20, scale=50.0)
    assert_alike(networks_of(population), networks_of(backwards), rtol=0, atol=0)


def test_units_that_pad_a_smaller_network_stay_exactly_zero():
    sizes = [[7, 6, 2, 3], [7, 3, 5, 3], [7, 1, 1, 3]]
    population = make([network(one, seed) for seed, one in enumerate(sizes)], clip_norm=1.0)
    for _ in range(30):
        gradients = population.gradients(lambda tensors: losses(tensors) + 1e-2 * group_lasso(tensors, hidden_neurons(tensors)))
        population.adam(gradients)
    for place, (_, first, second, _) in enumerate(sizes):
        after = population.network(place)
        assert [len(after["layer0.bias"]), len(after["layer1.bias"])] == [first, second]
        for name, tensor in population.tensors.items():
            assert tensor[place].count_nonzero() == after[name].count_nonzero() == after[name].numel()


def test_a_padded_network_trains_as_it_does_alone():
    sizes = [[7, 6, 2, 3], [7, 3, 5, 3], [7, 1, 1, 3]]
    together = make([network(one, seed) for seed, one in enumerate(sizes)], clip_norm=0.5)
    train(together, 20)
    for place, one in enumerate(sizes):
        alone = make([network(one, place)], clip_norm=0.5)
        train(alone, 20, places=[place])
        assert_alike([together.network(place)], networks_of(alone), rtol=1e-5, atol=1e-6)


GONE = [(0, 0, 2), (0, 0, 5), (0, 1, 1), (2, 1, 0), (2, 1, 4)]


def test_masked_units_stay_exactly_zero_although_adam_had_moved_them():
    population = make()
    train(population, 10)
    assert units_of(population.tensors, GONE).all()
    population.mask(all_but(GONE))
    assert [tensor.sum(1).tolist() for tensor in population.alive()] == [[4, 6, 6], [4, 5, 3]]
    for _ in range(20):
        train(population, 1)
        assert not units_of(population.tensors, GONE).any()


def test_a_mask_touches_no_other_unit():
    population, whole = make(), make()
    for one in (population, whole):
        train(one, 10)
    population.mask(all_but(GONE))
    for units, keep_PH in zip(hidden_neurons(whole.tensors), all_but(GONE), strict=True):
        mask(whole.tensors, units, keep_PH)
    assert_alike([population.tensors], [whole.tensors], rtol=0, atol=0)


def test_a_network_is_cut_out_as_a_copy_without_dead_units():
    population = make()
    train(population, 10)
    population.mask(all_but(GONE))
    for place, (first, second) in enumerate([(4, 4), (6, 5), (6, 3)]):
        one = population.network(place)
        assert {name: tuple(tensor.shape) for name, tensor in one.items()} == {
            "layer0.weight": (7, first),
            "layer0.bias": (first,),
            "layer1.weight": (first, second),
            "layer1.bias": (second,),
            "layer2.weight": (second, 3),
            "layer2.bias": (3,),
        }
        assert all(tensor.all() for tensor in one.values())
        torch.testing.assert_close(logits(one, X_PBI[place]), logits(population.tensors, X_PBI)[place])
    before = population.network(1)
    for tensor in population.network(1).values():
        tensor.zero_()
    assert_alike([population.network(1)], [before], rtol=0, atol=0)


def test_a_unit_with_one_parameter_left_is_alive():
    tensors = {name: torch.zeros_like(tensor) for name, tensor in network().items()}
    tensors["layer0.bias"][3] = -1e-3
    tensors["layer2.weight"][4, 0] = 1e-3
    population = make([tensors])
    assert [layer.nonzero().tolist() for layer in population.alive()] == [[[0, 3]], [[0, 4]]]


def test_those_that_stay_go_on_as_if_nobody_had_left():
    stays, shrinks = make(clip_norm=0.5), make(clip_norm=0.5)
    for population in (stays, shrinks):
        train(population, 10)
        population.mask(all_but([(0, 0, 2), (2, 0, 0), (2, 0, 3), (2, 1, 4), (0, 1, 4)]))
        train(population, 5)
    shrinks.keep([0, 2])
    assert len(shrinks) == 2
    assert shrinks.tensors["layer1.weight"].shape == (2, 5, 4)
    assert_alike(networks_of(shrinks), [stays.network(0), stays.network(2)], rtol=0, atol=0)
    for _ in range(15):
        train(stays, 1)
        train(shrinks, 1, places=[0, 2])
        assert_alike(networks_of(shrinks), [stays.network(0), stays.network(2)], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("places", [[2, 0], [2, 0, 1]])
def test_networks_stay_in_the_order_that_they_are_named_in(places):
    population, whole = make(), make()
    population.keep(places)
    assert_alike(networks_of(population), [whole.network(place) for place in places], rtol=0, atol=0)


def test_a_network_that_lost_a_layer_goes_on_with_the_bias_of_its_last():
    population = make()
    population.mask(all_but([(0, 0, neuron) for neuron in range(6)] + [(0, 1, neuron) for neuron in range(5)]))
    population.keep([0])
    bias_O = network()["layer2.bias"]
    assert torch.equal(logits(population.network(0), X_PBI[0]), bias_O.expand(16, 3))
    train(population, 100, places=[0])
    shares = LABEL_PB[0].bincount(minlength=3) / 16
    torch.testing.assert_close(logits(population.network(0), X_PBI[0])[0].softmax(-1), shares, rtol=0, atol=0.05)


def prepared(num_updates=10):
    population = make(clip_norm=0.5)
    train(population, num_updates)
    population.mask(all_but(GONE))
    population.keep([0, 2])
    return population


def test_a_state_brings_a_population_back_exactly_whatever_it_holds():
    population = prepared()
    again = make([network([7, 2, 2, 3])], clip_norm=0.5)
    again.load_state_dict(population.state_dict())
    assert_alike([again.tensors], [population.tensors], rtol=0, atol=0)
    for one in (population, again):
        train(one, 15, places=[0, 2])
    assert_alike([again.tensors], [population.tensors], rtol=0, atol=0)


def test_a_state_is_a_snapshot():
    population = prepared()
    state, before = population.state_dict(), networks_of(population)
    train(population, 5, places=[0, 2])
    again = make(clip_norm=0.5)
    again.load_state_dict(state)
    train(again, 5, places=[0, 2])  # nor does who was loaded write into the state
    assert_alike([again.tensors], [population.tensors], rtol=0, atol=0)
    again.load_state_dict(state)
    assert_alike(networks_of(again), before, rtol=0, atol=0)


def test_populations_begin_as_the_stack_of_their_networks():
    networks = [network(seed=seed) for seed in range(3)]
    assert_alike([make(networks).tensors], [stack(networks)], rtol=0, atol=0)
    assert len(make(networks)) == 3


def test_units_are_known_by_their_first_places_through_every_cut_and_checkpoint():
    population = make()
    population.mask(all_but([(0, 0, 1), (2, 0, 0), (2, 0, 3), (2, 1, 4)]))
    population.keep([0, 2])
    population.mask([torch.tensor([[True, False, True, True, True], [True] * 5]), torch.ones(2, 5, dtype=torch.bool)])
    expected = [[[0, 3, 4, 5], [0, 1, 2, 3, 4]], [[1, 2, 4, 5], [0, 1, 2, 3]]]
    assert [[index_H.tolist() for index_H in population.kept_by(place)] for place in (0, 1)] == expected
    again = make()
    again.load_state_dict(population.state_dict())
    again.keep([1])
    assert [index_H.tolist() for index_H in again.kept_by(0)] == expected[1]
    assert [len(network["layer0.bias"]) for network in networks_of(again)] == [4]
