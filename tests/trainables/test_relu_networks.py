from itertools import pairwise

import pytest
import safetensors.torch
import torch

from trainables.pruning.surgery import mask, remove
from trainables.randomness import generator
from trainables.relu_networks import (
    CrossEntropy,
    by_seed,
    fold_constants,
    for_modules,
    from_seeds,
    hidden_neurons,
    initial_network,
    logits,
    modules,
    num_layers,
    stack,
)

SIZES = [7, 6, 5, 3]


def network(sizes=SIZES, seed=0):
    return initial_network(list(pairwise(sizes)), generator(seed, "weights"))


def inputs(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference(tensors):
    """The same network as torch builds it."""
    layers = []
    for layer in range(len(tensors) // 2):
        weight_IO, bias_O = tensors[f"layer{layer}.weight"], tensors[f"layer{layer}.bias"]
        linear = torch.nn.Linear(*weight_IO.shape)
        linear.load_state_dict({"weight": weight_IO.T, "bias": bias_O})
        layers += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1]).requires_grad_(False)


def by_hand():
    """One input, two hidden neurons, one output: at x = 2 they emit 2.5 and 1."""
    return {
        "layer0.weight": torch.tensor([[1.0, -1.0]]),
        "layer0.bias": torch.tensor([0.5, 3.0]),
        "layer1.weight": torch.tensor([[1.0], [10.0]]),
        "layer1.bias": torch.tensor([-1.0]),
    }


def without_layer(tensors, layer):
    """The network after one of its two hidden layers lost all its neurons."""
    keep = [torch.full((units.count,), place != layer) for place, units in enumerate(hidden_neurons(tensors))]
    return remove(tensors, hidden_neurons(tensors), keep)


def clone(tensors):
    return {name: tensor.clone() for name, tensor in tensors.items()}


def test_initial_weights_are_uniform_within_one_over_the_root_of_fan_in():
    tensors = network([14, 400, 400, 2])
    for name in ("layer1.weight", "layer1.bias"):
        assert tensors[name].abs().max() <= 1 / 20
    assert abs(tensors["layer1.weight"].std() - 1 / 20 / 3**0.5) < 1e-3


def test_initial_networks_have_the_shapes_of_their_layers_and_are_as_different_as_their_generators():
    shapes = {name: tuple(tensor.shape) for name, tensor in network([4, 3, 2]).items()}
    assert shapes == {"layer0.weight": (4, 3), "layer0.bias": (3,), "layer1.weight": (3, 2), "layer1.bias": (2,)}
    one, same, other = (network(seed=seed)["layer1.weight"] for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not (one == other).any()


def test_logits_worked_out_by_hand():
    assert logits(by_hand(), torch.tensor([[2.0], [4.0]])).tolist() == [[11.5], [3.5]]


@pytest.mark.parametrize("sizes", [[7, 3], [7, 6, 3], SIZES])
def test_logits_are_those_of_torch_modules(sizes):
    x_BI = inputs(9, 7)
    torch.testing.assert_close(logits(network(sizes), x_BI), reference(network(sizes))(x_BI))


def test_networks_side_by_side_compute_what_each_computes_alone():
    networks, x_PBI = [network(seed=seed) for seed in range(3)], inputs(3, 9, 7)
    own, common = logits(stack(networks), x_PBI), logits(stack(networks), x_PBI[0])
    assert own.shape == common.shape == (3, 9, 3)
    for place, alone in enumerate(map(reference, networks)):
        torch.testing.assert_close(own[place], alone(x_PBI[place]))
        torch.testing.assert_close(common[place], alone(x_PBI[0]))


def test_gates_multiply_activations_and_layers_without_one_stay_open():
    x_BI = torch.tensor([[2.0]])
    assert logits(by_hand(), x_BI, {"layer0": torch.tensor([2.0, 0.5])}).item() == 2 * 2.5 + 10 * 0.5 - 1
    assert logits(by_hand(), x_BI, {"layer0": torch.tensor([-1.0, 0.0])}).item() == -2.5 - 1  # after the ReLU
    assert torch.equal(logits(network(), inputs(9, 7), {}), logits(network(), inputs(9, 7)))
    both = logits(network(), inputs(9, 7), {"layer0": torch.ones(6), "layer1": torch.full((5,), 2.0)})
    assert torch.equal(both, logits(network(), inputs(9, 7), {"layer1": torch.full((5,), 2.0)}))


def test_gates_may_be_of_each_network_and_sample():
    tensors, x_BI = stack([by_hand(), by_hand()]), torch.tensor([[2.0], [2.0]])
    gate_PBH = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [1.0, 1.0]]])
    assert logits(tensors, x_BI, {"layer0": gate_PBH}).squeeze(-1).tolist() == [[1.5, 9.0], [-1.0, 11.5]]


def test_a_gate_that_is_shut_does_what_masking_does():
    tensors, masked = network(), network()
    keep_H = torch.tensor([True, False, True, True, False, True])
    mask(masked, hidden_neurons(masked)[0], keep_H)
    torch.testing.assert_close(logits(tensors, inputs(9, 7), {"layer0": keep_H.float()}), logits(masked, inputs(9, 7)))


def test_cross_entropy_is_the_mean_over_a_batch():
    two_classes = {"layer0.weight": torch.tensor([[1.0, -1.0]]), "layer0.bias": torch.zeros(2)}
    loss = CrossEntropy(torch.tensor([[0.0], [0.5]]), torch.tensor([0, 1]))
    expected = (torch.tensor(2.0).log() + torch.tensor(1.0).exp().add(1).log()) / 2  # log(1 + exp(wrong - right))
    torch.testing.assert_close(loss(two_classes, {}), expected)
    assert loss.activation_shape == (2,)


def test_cross_entropy_obeys_its_gates():
    label_B = torch.tensor([0, 2, 1])
    loss = CrossEntropy(inputs(3, 7), label_B)
    gates = {"layer1": torch.zeros(5)}
    expected = torch.nn.functional.cross_entropy(network()["layer2.bias"].expand(3, 3), label_B)
    torch.testing.assert_close(loss(network(), gates), expected)
    assert loss(network(), gates) != loss(network(), {})


def test_a_folded_neuron_leaves_relu_of_its_bias_to_the_next_layer():
    tensors = by_hand() | {"layer0.weight": torch.zeros(1, 2)}
    fold_constants(tensors, 0, torch.tensor([False, True]))
    assert tensors["layer1.bias"].tolist() == [-1 + 10 * 3]
    tensors["layer0.bias"][0] = -0.5
    fold_constants(tensors, 0, torch.tensor([True, False]))
    assert tensors["layer1.bias"].tolist() == [-1 + 10 * 3]  # a negative bias emits nothing
    assert tensors["layer0.bias"].tolist() == [-0.5, 3.0]
    assert tensors["layer1.weight"].tolist() == [[1.0], [10.0]]


GONE = [
    [torch.tensor([False, True, False, True, True, False]), torch.tensor([True, False, False, True, False])],
    [torch.tensor([True, False, False, False, False, True]), torch.tensor([False, True, False, False, True])],
]


def deaf(tensors, gone):
    """The network after the in-weights of some neurons of both layers went to zero; biases are large, of either sign."""
    tensors = clone(tensors)
    for layer, gone_H in enumerate(gone):
        tensors[f"layer{layer}.weight"][:, gone_H] = 0
        tensors[f"layer{layer}.bias"] *= 10
    return tensors


def fold_and_mask(tensors, gone):
    for layer, gone_H in enumerate(gone):
        fold_constants(tensors, layer, gone_H)
    for units, gone_H in zip(hidden_neurons(tensors), gone, strict=True):
        mask(tensors, units, ~gone_H)


def test_neurons_that_nothing_reaches_can_be_folded_masked_and_removed():
    tensors, x_BI = deaf(network(), GONE[0]), inputs(9, 7)
    before, unfolded = logits(tensors, x_BI), clone(tensors)
    fold_and_mask(tensors, GONE[0])
    torch.testing.assert_close(logits(tensors, x_BI), before, rtol=0, atol=1e-6)
    removed = remove(tensors, hidden_neurons(tensors), [~gone_H for gone_H in GONE[0]])
    assert [units.count for units in hidden_neurons(removed)] == [3, 3]
    torch.testing.assert_close(logits(removed, x_BI), before, rtol=0, atol=1e-6)
    for units, gone_H in zip(hidden_neurons(unfolded), GONE[0], strict=True):
        mask(unfolded, units, ~gone_H)
    assert (logits(unfolded, x_BI) - before).abs().max() > 0.1  # what the folding is for


def test_each_network_folds_its_own_choice():
    networks = [deaf(network(seed=seed), gone) for seed, gone in enumerate(GONE)]
    tensors, x_BI = stack(networks), inputs(9, 7)
    before = logits(tensors, x_BI)
    fold_and_mask(tensors, [torch.stack(layer) for layer in zip(*GONE, strict=True)])
    torch.testing.assert_close(logits(tensors, x_BI), before, rtol=0, atol=1e-6)
    for place, gone in enumerate(GONE):
        fold_and_mask(networks[place], gone)
        for name, tensor in networks[place].items():
            torch.testing.assert_close(tensors[name][place], tensor)


def test_a_neuron_that_only_folded_ones_reach_can_be_folded_after_them():
    gone = [torch.tensor([False, True, True, False, False, False]), torch.tensor([False, False, True, False, False])]
    tensors, x_BI = deaf(network(), [gone[0], torch.zeros(5, dtype=torch.bool)]), inputs(9, 7)
    tensors["layer0.bias"][1:3] = 2.0
    tensors["layer1.weight"][:, 2] = torch.tensor([0.0, 1.5, 1.0, 0.0, 0.0, 0.0])
    before = logits(tensors, x_BI)
    fold_and_mask(tensors, gone)
    torch.testing.assert_close(logits(tensors, x_BI), before, rtol=0, atol=1e-6)


def test_folding_no_neuron_changes_nothing():
    tensors = network()
    fold_constants(tensors, 0, torch.zeros(6, dtype=torch.bool))
    assert all(torch.equal(tensor, network()[name]) for name, tensor in tensors.items())


def test_smaller_networks_are_stacked_with_zeros_and_compute_the_same():
    networks = [network([7, 6, 2, 3], seed=0), network([7, 4, 5, 3], seed=1), without_layer(network([7, 3, 1, 3], seed=2), 0)]
    tensors, x_PBI = stack(networks), inputs(3, 9, 7)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert shapes == {
        "layer0.weight": (3, 7, 6),
        "layer0.bias": (3, 6),
        "layer1.weight": (3, 6, 5),
        "layer1.bias": (3, 5),
        "layer2.weight": (3, 5, 3),
        "layer2.bias": (3, 3),
    }
    for place, one in enumerate(networks):
        for name, tensor in one.items():
            assert torch.equal(tensors[name][place][tuple(map(slice, tensor.shape))], tensor)
            assert tensors[name][place].count_nonzero() == tensor.count_nonzero()
    together = logits(tensors, x_PBI)
    for place, one in enumerate(networks[:2]):
        torch.testing.assert_close(together[place], reference(one)(x_PBI[place]))
    torch.testing.assert_close(together[2], logits(networks[2], x_PBI[2]))


def test_a_stack_is_a_copy():
    one = network()
    stack([one])["layer0.bias"].zero_()
    assert one["layer0.bias"].all()


def test_modules_are_linear_layers_with_relu_between_that_compute_the_same():
    tensors, x_BI = network(), inputs(9, 7)
    model = modules(for_modules(tensors))
    assert [type(module).__name__ for module in model] == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert [(linear.in_features, linear.out_features) for linear in model[::2]] == [(7, 6), (6, 5), (5, 3)]
    torch.testing.assert_close(model(x_BI), logits(tensors, x_BI))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_modules_of_a_network_that_lost_a_layer_emit_its_last_bias():
    tensors = without_layer(network(), 1)
    model = modules(for_modules(tensors))
    assert torch.equal(model(inputs(9, 7)), tensors["layer2.bias"].expand(9, 3))


def test_tensors_for_modules_have_outputs_before_inputs_with_or_without_axes_in_front():
    one, two = network(), stack([network(), network(seed=1)])
    for name, tensor in for_modules(one).items():
        assert torch.equal(tensor, one[name].T if name.endswith("weight") else one[name])
        assert torch.equal(tensor, for_modules(two)[name][0])
    assert for_modules(two)["layer1.weight"].shape == (2, 5, 6)


@pytest.mark.parametrize("sizes", [SIZES, [7, 1, 3]])
def test_tensors_for_modules_are_copies(sizes):
    tensors = network(sizes)
    for tensor in for_modules(tensors).values():
        tensor.zero_()
    assert all(torch.equal(tensor, network(sizes)[name]) for name, tensor in tensors.items())


def test_networks_of_different_sizes_survive_a_file_in_the_order_of_their_seeds():
    """More than ten: by name, seed10 comes before seed2."""
    networks = [network([7, 2 + seed % 3, 1 + seed, 3], seed=seed) for seed in range(12)]
    named = by_seed(networks)
    assert len(named) == 12 * 6
    assert named["seed11.layer1.weight"].shape == (12, 4)
    loaded = from_seeds(safetensors.torch.load(safetensors.torch.save(named)))
    assert [model[2].out_features for model in loaded] == list(range(1, 13))
    for model, one in zip(loaded, networks, strict=True):
        torch.testing.assert_close(model(inputs(9, 7)), reference(one)(inputs(9, 7)))


def test_networks_are_ordered_by_seed_however_their_tensors_are():
    named = by_seed([network([7, 1 + seed, 3], seed=seed) for seed in range(12)])
    loaded = from_seeds({name: named[name] for name in sorted(named, reverse=True)})
    assert [model[0].out_features for model in loaded] == list(range(1, 13))


@pytest.mark.parametrize("in_front", [False, True])
def test_hidden_neurons_are_counted_layer_by_layer(in_front):
    tensors = stack([network()] * 2) if in_front else network()
    assert num_layers(tensors) == 3
    layers = hidden_neurons(tensors)
    assert [(units.name, units.count) for units in layers] == [("layer0", 6), ("layer1", 5)]
    assert [member.parameter for member in layers[1].members] == ["layer1.weight", "layer1.bias", "layer2.weight"]
    for units in layers:
        units.check(tensors)


def test_a_linear_network_has_no_hidden_neurons():
    assert hidden_neurons(network([7, 3])) == []
