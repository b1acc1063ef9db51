import pytest
import torch
from pruning_networks import DIMENSIONS, NEURONS, VOCABULARY, GatedNetwork, units_of
from torch import nn

from trainables.pruning.units import gated_neurons, mlp_neurons, residual_dimensions, sequential_neurons

STACK = [("a.weight", "a.bias"), ("b.weight", None), ("c.weight", "c.bias")]


def test_a_neuron_owns_its_in_weights_its_bias_and_its_out_weights():
    tensors = {
        "a.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]),  # 3 inputs, 2 neurons
        "a.bias": torch.tensor([10.0, 20.0]),
        "b.weight": torch.tensor([[100.0], [200.0]]),
    }
    (units,) = mlp_neurons([("a.weight", "a.bias"), ("b.weight", "b.bias")], counts=[2], orientation="in_out")
    assert (units.name, units.kind, units.count) == ("a", "neuron", 2)
    assert units.sum_by_unit(tensors).tolist() == [1 + 3 + 5 + 10 + 100, 2 + 4 + 6 + 20 + 200]
    assert units.sum_by_unit(tensors, biases=False).tolist() == [1 + 3 + 5 + 100, 2 + 4 + 6 + 200]


def test_both_orientations_describe_the_same_units_and_networks_may_lie_in_front():
    shapes = {"a.weight": (7, 4, 6), "a.bias": (7, 6), "b.weight": (7, 6, 3), "c.weight": (7, 3, 2), "c.bias": (7, 2)}
    in_out = {name: torch.randn(shape) for name, shape in shapes.items()}
    out_in = {name: tensor.mT if "weight" in name else tensor for name, tensor in in_out.items()}
    described = [mlp_neurons(STACK, counts=[6, 3], orientation=orientation) for orientation in ("in_out", "out_in")]
    for units, turned in zip(*described, strict=True):
        units.check(in_out)
        total_PH = units.sum_by_unit(in_out)
        assert total_PH.shape == (7, units.count)
        torch.testing.assert_close(total_PH, turned.sum_by_unit(out_in))
        one = {name: tensor[4] for name, tensor in in_out.items()}
        torch.testing.assert_close(total_PH[4], units.sum_by_unit(one))


def test_hidden_layers_of_a_sequential_are_found_by_structure():
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(8, 5), nn.ReLU(), nn.Dropout(0.1), nn.Linear(5, 4, bias=False), nn.GELU(), nn.Linear(4, 2)
    )
    first, second = sequential_neurons(model)
    assert [(m.parameter, m.axis, m.role) for m in first.members] == [
        ("1.weight", -2, "weight"),
        ("1.bias", -1, "bias"),
        ("4.weight", -1, "weight"),
    ]
    assert [(m.parameter, m.axis) for m in second.members] == [("4.weight", -2), ("6.weight", -1)]
    assert (first.count, second.count) == (5, 4)


def test_a_sequential_of_anything_else_is_refused():
    with pytest.raises(ValueError, match="modules with parameters must be Linear, but got BatchNorm1d '1'; describe"):
        sequential_neurons(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))


def test_a_sequential_whose_layers_do_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"1\.weight must hold the 4 units of 0 along axis -1, but got shape \(2, 5\)"):
        sequential_neurons(nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 2)))


def test_gated_neurons_and_residual_dimensions_own_every_parameter_they_touch():
    network = GatedNetwork()
    ones = {name: torch.ones_like(parameter) for name, parameter in network.named_parameters()}
    neurons, _, residual = units_of(network)
    # A row of gate and of up with a bias each, and a column of down.
    assert neurons.sum_by_unit(ones).tolist() == [2 * (DIMENSIONS + 1) + DIMENSIONS] * NEURONS
    # The embedding, three norms, and in two blocks a column of gate and of up, a row of down and its bias.
    assert residual.sum_by_unit(ones).tolist() == [VOCABULARY + 3 + 2 * (3 * NEURONS + 1)] * DIMENSIONS
    assert residual.sum_by_unit(ones, biases=False).tolist() == [VOCABULARY + 3 + 2 * 3 * NEURONS] * DIMENSIONS


def test_a_norm_with_a_bias_gives_both_to_the_dimension():
    tensors = {"embedding.weight": torch.ones(5, 3), "norm.weight": torch.ones(3), "norm.bias": torch.ones(3)}
    units = residual_dimensions(tensors, embeddings=["embedding"], readers=[], writers=[], norms=["norm"])
    assert units.sum_by_unit(tensors).tolist() == [7.0] * 3
    assert units.sum_by_unit(tensors, biases=False).tolist() == [6.0] * 3


def test_a_missing_parameter_is_named():
    tensors = {"gate.weight": torch.zeros(4, 3), "up.weight": torch.zeros(4, 3)}
    with pytest.raises(ValueError, match=r"mlp needs down\.weight, but got \['gate\.weight', 'up\.weight'\]; check the name"):
        gated_neurons(tensors, name="mlp", gate="gate", up="up", down="down")


def test_a_parameter_of_another_size_is_named():
    tensors = {"gate.weight": torch.zeros(4, 3), "up.weight": torch.zeros(5, 3), "down.weight": torch.zeros(3, 4)}
    with pytest.raises(ValueError, match=r"up\.weight must hold the 4 units of mlp along axis -2, but got shape \(5, 3\)"):
        gated_neurons(tensors, name="mlp", gate="gate", up="up", down="down")


def test_a_tied_tensor_is_not_counted_twice():
    tensors = dict(GatedNetwork().state_dict())
    with pytest.raises(ValueError, match=r"each tensor must be named once, but got embedding\.weight and head\.weight"):
        residual_dimensions(tensors, embeddings=["embedding"], readers=["head"], writers=[], norms=["norm"])


def test_every_hidden_layer_needs_its_count():
    with pytest.raises(ValueError, match="counts must have a number for each hidden layer, but got 3 for 3 linear layers"):
        mlp_neurons(STACK, counts=[6, 3, 2])
