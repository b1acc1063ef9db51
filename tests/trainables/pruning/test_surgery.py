import copy

import pytest
import torch
from pruning_networks import VOCABULARY, GatedNetwork, units_of
from torch import nn

from trainables.pruning.surgery import mask, remove, remove_units
from trainables.pruning.units import mlp_neurons, residual_dimensions, sequential_neurons


def some(count, num_kept, seed=0):
    """Keep `num_kept` random units of `count`."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)) < num_kept


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.Sigmoid(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))


def masked_and_removed(model, layers, keep):
    masked, removed = copy.deepcopy(model), copy.deepcopy(model)
    for units, keep_H in zip(layers, keep, strict=True):
        mask(dict(masked.named_parameters()), units, keep_H)
    remove_units(removed, layers, keep)
    return masked, removed


def test_a_masked_neuron_leaks_nothing_not_even_its_bias():
    model = mlp()
    first, _ = sequential_neurons(model)
    with torch.no_grad():
        model[0].bias.fill_(100.0)
        mask(dict(model.named_parameters()), first, torch.zeros(10, dtype=torch.bool))
        x = torch.randn(5, 6)
        rest = model[2].bias.expand(5, -1)
        torch.testing.assert_close(model(x), model[4](rest.relu()), rtol=0, atol=0)
    assert not model[0].weight.any() and not model[0].bias.any() and not model[2].weight.any()


def test_every_network_may_be_masked_by_a_choice_of_its_own():
    tensors = {"a.weight": torch.ones(2, 5, 3), "a.bias": torch.ones(2, 3), "b.weight": torch.ones(2, 3, 4)}
    (units,) = mlp_neurons([("a.weight", "a.bias"), ("b.weight", None)], counts=[3], orientation="in_out")
    keep_PH = torch.tensor([[True, False, True], [False, True, True]])
    mask(tensors, units, keep_PH)
    assert torch.equal(tensors["a.bias"], keep_PH.float())
    assert torch.equal(tensors["a.weight"], keep_PH[:, None, :].expand(2, 5, 3).float())
    assert torch.equal(tensors["b.weight"], keep_PH[:, :, None].expand(2, 3, 4).float())


@pytest.mark.parametrize("kept", [(4, 5), (10, 1), (10, 8), (0, 5), (4, 0)])
def test_a_sequential_without_neurons_computes_what_the_masked_one_does(kept):
    model = mlp()
    layers = sequential_neurons(model)
    masked, removed = masked_and_removed(model, layers, [some(10, kept[0]), some(8, kept[1])])
    x = torch.randn(20, 6)
    torch.testing.assert_close(removed(x), masked(x), rtol=0, atol=1e-5)
    sizes = [(linear.in_features, linear.out_features, tuple(linear.weight.shape)) for linear in removed[::2]]
    a, b = kept
    assert sizes == [(6, a, (a, 6)), (a, b, (b, a)), (b, 3, (3, b))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_residual_network_without_neurons_and_dimensions_computes_what_the_masked_one_does(dtype):
    torch.manual_seed(0)
    network = GatedNetwork().to(dtype)
    with torch.no_grad():
        network.embedding.weight.mul_(1e-3)  # so small that the first norms' eps, even torch's own, tell
    layers = units_of(network)
    keep = [some(20, 7), some(20, 11), some(12, 5)]
    masked, removed = masked_and_removed(network, layers, keep)
    tokens = torch.arange(VOCABULARY)
    for scale in (1.0, 1e3):
        for model in (masked, removed):
            model.embedding.weight.data.mul_(scale)
        torch.testing.assert_close(removed(tokens), masked(tokens), rtol=1e-5, atol=0 if dtype == torch.float64 else 1e-5)
    assert removed(tokens).std() > 0.1
    assert removed.head.weight is removed.embedding.weight
    assert (removed.head.in_features, removed.head.out_features) == (5, VOCABULARY)
    assert (removed.embedding.num_embeddings, removed.embedding.embedding_dim) == (VOCABULARY, 5)
    assert (removed.blocks[0].gate.in_features, removed.blocks[0].gate.out_features) == (5, 7)
    assert removed.norm.normalized_shape == (5,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_norm_that_uses_torchs_own_eps_goes_on_using_it(dtype):
    model = nn.Sequential(nn.RMSNorm(4, dtype=dtype))
    units = residual_dimensions(dict(model.named_parameters()) | {"e.weight": torch.ones(1, 4)}, **names(norms=["0"]))
    x = torch.tensor([1e-4, 2e-4, 0.0, 0.0], dtype=dtype) * (1e-4 if dtype == torch.float64 else 1)
    expected = model(x)[:2]
    norm_only = type(units)(name="norm", kind="residual", count=4, members=units.members[1:])
    remove_units(model, [norm_only], [torch.tensor([True, True, False, False])])
    tolerance = {torch.bfloat16: 1e-2, torch.float32: 1e-6, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(model(x[:2]), expected, rtol=tolerance, atol=0)


def names(**given):
    return {"embeddings": ["e"], "readers": [], "writers": [], "norms": []} | given


def test_removed_parameters_train_as_before():
    model = mlp()
    model[2].weight.requires_grad_(False)
    remove_units(model, sequential_neurons(model), [some(10, 4), some(8, 5)])
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == ["2.weight"]
    model(torch.randn(3, 6)).sum().backward()
    assert model[0].weight.grad.shape == (4, 6)


def test_tensors_without_units_are_what_the_module_without_them_holds():
    model = mlp()
    layers = sequential_neurons(model)
    keep = [some(10, 4), some(8, 5)]
    tensors = dict(model.named_parameters())
    smaller = remove(tensors, layers, keep)
    remove_units(model, layers, keep)
    for name, parameter in model.named_parameters():
        assert torch.equal(smaller[name], parameter)
        assert not smaller[name].requires_grad
        assert smaller[name].data_ptr() != tensors[name].data_ptr()


def test_networks_in_front_lose_the_same_units():
    tensors = {"a.weight": torch.randn(7, 5, 3), "a.bias": torch.randn(7, 3), "b.weight": torch.randn(7, 3, 4)}
    layers = mlp_neurons([("a.weight", "a.bias"), ("b.weight", None)], counts=[3], orientation="in_out")
    smaller = remove(tensors, layers, [torch.tensor([True, False, True])])
    assert torch.equal(smaller["a.weight"], tensors["a.weight"][:, :, [0, 2]])
    assert torch.equal(smaller["a.bias"], tensors["a.bias"][:, [0, 2]])
    assert torch.equal(smaller["b.weight"], tensors["b.weight"][:, [0, 2], :])
    with pytest.raises(ValueError, match="networks that stay in one tensor must keep the same units of a, but got keep of"):
        remove(tensors, layers, [torch.ones(7, 3, dtype=torch.bool)])


def test_a_layer_norm_over_removed_dimensions_is_refused_and_the_model_left_alone():
    model = nn.Sequential()
    model.add_module("e", nn.Embedding(5, 4))
    model.add_module("norm", nn.LayerNorm(4))
    units = residual_dimensions(dict(model.named_parameters()), **names(norms=["norm"]))
    law = "units can be removed from Linear, Embedding and RMSNorm modules only, but got LayerNorm as the owner of"
    with pytest.raises(ValueError, match=rf"{law} norm\.weight; mask these units instead"):
        remove_units(model, [units], [some(4, 2)])
    assert model.e.weight.shape == (5, 4)


def test_a_norm_keeps_at_least_one_dimension():
    network = GatedNetwork()
    *_, residual = units_of(network)
    with pytest.raises(ValueError, match=r"norm\.weight must keep at least one dimension, but got none; use a lower sparsity"):
        remove_units(network, [residual], [torch.zeros(12, dtype=torch.bool)])
    assert network.embedding.weight.shape == (VOCABULARY, 12)


@pytest.mark.parametrize("keep", [torch.ones(9, dtype=torch.bool), torch.ones(10)])
def test_a_choice_that_is_not_one_bool_a_unit_is_refused(keep):
    model = mlp()
    first, _ = sequential_neurons(model)
    tensors = dict(model.named_parameters())
    law = "keep must hold one bool for each of the 10 units of 0"
    for operation in (lambda: mask(tensors, first, keep), lambda: remove_units(model, [first], [keep])):
        with pytest.raises(ValueError, match=rf"{law}, but got torch\.\w+ of shape"):
            operation()


def test_units_of_another_model_are_refused():
    layers = sequential_neurons(mlp())
    with pytest.raises(ValueError, match=r"0\.weight must hold the 10 units of 0 along axis -2, but got shape \(9, 6\)"):
        remove_units(nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)), layers[:1], [some(10, 4)])
