import pytest
import torch

from trainables.cmsp.networks import Shape, join, matched_width, split
from trainables.randomness import generator
from trainables.relu_networks import for_modules, initial_network, modules


def test_parameters_are_counted_as_the_paper_counts_them():
    assert Shape.of_depth(num_inputs=68, depth=3, width=128).num_parameters == 25_602
    assert Shape.of_depth(num_inputs=68, depth=2, width=128).num_parameters == 9_090
    assert Shape.of_depth(num_inputs=68, depth=2, width=361).num_parameters == 25_633


@pytest.mark.parametrize(("depth", "width"), [(2, 361), (3, 128), (4, 96)])
def test_the_width_that_matches_a_number_of_parameters_is_found(depth, width):
    assert matched_width(num_inputs=68, depth=depth, num_parameters=25_602) == width


def test_initial_weights_are_uniform_within_one_over_the_root_of_fan_in():
    tensors = initial_network(Shape(num_inputs=14, widths=(400, 400)).layers, generator(0, "weights"))
    for name in ("layer1.weight", "layer1.bias"):
        assert tensors[name].abs().max() <= 1 / 20
    assert abs(tensors["layer1.weight"].std() - 1 / 20 / 3**0.5) < 1e-3


def test_networks_are_split_as_they_were_joined_and_run_as_torch_modules():
    shape = Shape(num_inputs=10, widths=(7, 20))
    networks = [initial_network(shape.layers, generator(seed, "weights")) for seed in range(3)]
    tensors = split(shape, join(shape, networks))
    for name, tensor in tensors.items():
        assert torch.equal(tensor, torch.stack([network[name] for network in networks]))
    model = modules({name: tensor[1] for name, tensor in for_modules(tensors).items()})
    x_BI = torch.rand(5, 10)
    hidden = (x_BI @ networks[1]["layer0.weight"] + networks[1]["layer0.bias"]).relu()
    hidden = (hidden @ networks[1]["layer1.weight"] + networks[1]["layer1.bias"]).relu()
    torch.testing.assert_close(model(x_BI), hidden @ networks[1]["layer2.weight"] + networks[1]["layer2.bias"])


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
