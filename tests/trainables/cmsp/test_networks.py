import pytest
import torch

from trainables.cmsp.networks import Shape, join, matched_width, split
from trainables.randomness import generator
from trainables.relu_networks import initial_network


def test_parameters_are_counted_as_the_paper_counts_them():
    assert Shape.of_depth(num_inputs=68, depth=3, width=128).num_parameters == 25_602
    assert Shape.of_depth(num_inputs=68, depth=2, width=128).num_parameters == 9_090
    assert Shape.of_depth(num_inputs=68, depth=2, width=361).num_parameters == 25_633


@pytest.mark.parametrize(("depth", "width"), [(2, 361), (3, 128), (4, 96)])
def test_the_width_that_matches_a_number_of_parameters_is_found(depth, width):
    assert matched_width(num_inputs=68, depth=depth, num_parameters=25_602) == width


def test_networks_are_split_as_they_were_joined():
    shape = Shape(num_inputs=10, widths=(7, 20))
    networks = [initial_network(shape.layers, generator(seed, "weights")) for seed in range(3)]
    for name, tensor in split(shape, join(shape, networks)).items():
        assert torch.equal(tensor, torch.stack([network[name] for network in networks]))


def test_neurons_own_their_in_weights_bias_and_out_weights():
    shape = Shape(num_inputs=10, widths=(7, 20))
    tensors = split(shape, join(shape, [initial_network(shape.layers, generator(0, "weights"))]))
    for units, count in zip(shape.neurons, (7, 20), strict=True):
        units.check(tensors)
        assert units.count == count
    assert [member.parameter for member in shape.neurons[1].members] == ["layer1.weight", "layer1.bias", "layer2.weight"]


def test_impossible_shapes_are_refused():
    with pytest.raises(ValueError, match="depth must be at least 2"):
        Shape.of_depth(num_inputs=4, depth=1, width=8)
    with pytest.raises(ValueError, match="width must be at least 1"):
        Shape.of_depth(num_inputs=4, depth=3, width=0)
