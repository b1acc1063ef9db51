import pytest
import torch
from pruning_networks import GatedNetwork, units_of

from trainables.pruning.penalties import add_group_lasso_gradient, group_lasso, group_norms, hoyer, l1, proximal_step
from trainables.pruning.units import mlp_neurons

NAMES = [(f"layer{index}.weight", f"layer{index}.bias") for index in range(3)]
LAYERS = mlp_neurons(NAMES, counts=[32, 16], orientation="in_out")
BOTH = pytest.mark.parametrize("biases", [True, False])


def networks(num_networks, seed=0):
    """MLPs 48-32-16-2, with the networks in front."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for (weight, bias), (fan_in, fan_out) in zip(NAMES, [(48, 32), (32, 16), (16, 2)], strict=True):
        tensors[weight] = torch.randn(num_networks, fan_in, fan_out, generator=generator)
        tensors[bias] = torch.randn(num_networks, fan_out, generator=generator)
    return tensors


def zero_unit(tensors, units, index):
    for member in units.members:
        tensors[member.parameter].select(member.axis, index).zero_()


def clone(tensors):
    return {name: tensor.clone() for name, tensor in tensors.items()}


@BOTH
def test_group_norms_are_those_of_in_weights_bias_and_out_weights_together(biases):
    tensors = networks(2)
    for network in range(2):
        for unit in range(32):
            group = [tensors["layer0.weight"][network, :, unit], tensors["layer1.weight"][network, unit, :]]
            group += [tensors["layer0.bias"][network, unit, None]] if biases else []
            norm_PH = group_norms(tensors, LAYERS[0], biases=biases)
            torch.testing.assert_close(norm_PH[network, unit], torch.cat(group).norm())


@BOTH
def test_group_lasso_counts_the_weights_between_two_layers_in_both(biases):
    weight, bias = torch.tensor([[3.0]]), torch.tensor([4.0])
    tensors = {name: weight if "weight" in name else bias for pair in NAMES for name in pair}
    layers = mlp_neurons(NAMES, counts=[1, 1])
    expected = 2 * (3**2 + biases * 4**2 + 3**2) ** 0.5
    assert group_lasso(tensors, layers, biases=biases).item() == pytest.approx(expected)


def test_group_lasso_of_residual_dimensions_sums_the_norms_of_their_whole_groups():
    network = GatedNetwork()
    *_, residual = units_of(network)
    tensors = {name: tensor.detach() for name, tensor in network.named_parameters()}
    along = {"embedding.weight": -1, "norm.weight": -1}
    for block in ("blocks.0", "blocks.1"):
        along |= {f"{block}.{name}": -1 for name in ("norm.weight", "gate.weight", "up.weight", "down.bias")}
        along[f"{block}.down.weight"] = -2
    norms = [
        torch.cat([tensors[name].select(axis, dimension).flatten() for name, axis in along.items()]).norm()
        for dimension in range(residual.count)
    ]
    torch.testing.assert_close(group_lasso(tensors, [residual]), torch.stack(norms).sum())


@BOTH
def test_the_written_out_gradient_is_that_of_autograd(biases):
    tensors = networks(3)
    zero_unit(tensors, LAYERS[0], 5)
    gradients = networks(3, seed=1)
    strength_P = torch.tensor([0.1, 2.0, 0.0])
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    (strength_P * group_lasso(leaves, LAYERS, biases=biases)).sum().backward()
    # Without biases none reaches them: autograd has no gradient there at all.
    expected = {name: gradients[name] + (0 if leaf.grad is None else leaf.grad) for name, leaf in leaves.items()}
    add_group_lasso_gradient(tensors, gradients, LAYERS, strength_P, biases=biases)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name])
    assert all(torch.equal(gradients[name][2], networks(3, seed=1)[name][2]) for name in gradients)


@pytest.mark.parametrize("penalty", [group_lasso, hoyer])
def test_units_that_are_exactly_zero_get_no_gradient_and_no_nan(penalty):
    some, none = networks(2), {name: torch.zeros_like(tensor) for name, tensor in networks(2).items()}
    zero_unit(some, LAYERS[0], 5)
    for tensors in (some, none):
        leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
        penalty(leaves, LAYERS).sum().backward()
        gradients = [leaves[name].grad for name in ("layer0.weight", "layer0.bias", "layer1.weight", "layer1.bias")]
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert not leaves["layer0.weight"].grad[..., 5].any()
    assert not any(gradient.any() for gradient in gradients)
    assert penalty(none, LAYERS).tolist() == [0.0, 0.0]


def test_a_strength_of_its_own_moves_each_network_as_if_alone():
    tensors = networks(2)
    together = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    add_group_lasso_gradient(tensors, together, LAYERS, torch.tensor([0.5, 3.0]))
    for place, strength in enumerate([0.5, 3.0]):
        alone = {name: torch.zeros_like(tensor[place]) for name, tensor in tensors.items()}
        add_group_lasso_gradient({name: tensor[place] for name, tensor in tensors.items()}, alone, LAYERS, strength)
        for name, gradient in alone.items():
            torch.testing.assert_close(together[name][place], gradient)


@BOTH
def test_a_proximal_step_shortens_each_group_by_the_threshold_and_ends_at_zero(biases):
    tensors = networks(3)
    before = clone(tensors)
    (units,) = LAYERS[:1]
    norm_PH = group_norms(before, units, biases=biases)
    threshold_P = norm_PH.quantile(0.5, dim=-1)
    proximal_step(tensors, [units], threshold_P, biases=biases)
    factor_PH = torch.clamp(1 - threshold_P[:, None] / norm_PH, min=0)
    assert (factor_PH == 0).sum(-1).tolist() == [16, 16, 16]
    torch.testing.assert_close(tensors["layer0.weight"], before["layer0.weight"] * factor_PH[:, None, :])
    torch.testing.assert_close(tensors["layer1.weight"], before["layer1.weight"] * factor_PH[:, :, None])
    torch.testing.assert_close(tensors["layer0.bias"], before["layer0.bias"] * (factor_PH if biases else 1))
    assert torch.equal(tensors["layer0.weight"] == 0, (factor_PH == 0)[:, None, :].expand(3, 48, 32))
    assert torch.equal(tensors["layer2.weight"], before["layer2.weight"])


def test_a_proximal_step_minimises_distance_plus_norms():
    tensors = networks(2)
    before = clone(tensors)
    proximal_step(tensors, LAYERS[:1], 4.0)

    def objective(candidate):
        distance = sum(0.5 * (candidate[name] - before[name]).square().sum() for name in before)
        return distance + 4.0 * group_lasso(candidate, LAYERS[:1]).sum()

    least = objective(tensors)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        near = {name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator) for name, tensor in tensors.items()}
        assert objective(near) > least


def test_layers_that_share_weights_shrink_one_after_the_other():
    together, apart = networks(2), networks(2)
    proximal_step(together, LAYERS, 3.0)
    for units in LAYERS:
        proximal_step(apart, [units], 3.0)
    assert all(torch.equal(together[name], apart[name]) for name in together)


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_a_proximal_step_leaves_zero_units_at_zero(threshold):
    tensors = networks(2)
    zero_unit(tensors, LAYERS[0], 5)
    proximal_step(tensors, LAYERS, threshold)
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert not group_norms(tensors, LAYERS[0])[:, 5].any()
    assert group_norms(tensors, LAYERS[0])[:, 6].all()


def test_a_threshold_of_zero_changes_nothing():
    tensors = networks(2)
    proximal_step(tensors, LAYERS, 0.0)
    assert all(torch.equal(tensor, networks(2)[name]) for name, tensor in tensors.items())


@pytest.mark.parametrize("company", [[1, 3], [4, 1, 3], [1, 0, 2, 3], [0, 1, 2, 3, 4]])
def test_a_networks_numbers_do_not_depend_on_its_company(company):
    def narrowed(places):
        tensors = {name: tensor[places].clone() for name, tensor in networks(5).items()}
        gradients = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        strength_P = torch.linspace(0.1, 0.5, 5)[places]
        for _ in range(5):
            proximal_step(tensors, LAYERS, strength_P)
            add_group_lasso_gradient(tensors, gradients, LAYERS, strength_P)
        return {f"{kind} {name}": t for kind, held in (("t", tensors), ("g", gradients)) for name, t in held.items()}

    couple, crowd = narrowed([1, 3]), narrowed(company)
    where = [company.index(1), company.index(3)]
    assert all(torch.equal(couple[name], crowd[name][where]) for name in couple)


def test_l1_sums_absolute_values_of_the_named_parameters():
    tensors = {"weight": torch.tensor([[[1.0, -2.0]], [[0.0, 5.0]]]), "bias": torch.tensor([[-3.0], [1.0]])}
    assert l1(tensors, ["weight", "bias"], num_leading=1).tolist() == [6.0, 6.0]
    assert l1(tensors, ["weight"]).item() == 8.0


def test_hoyer_counts_units_and_does_not_see_scale():
    tensors = {"a": torch.eye(4), "b": torch.zeros(4, 4)}
    layers = mlp_neurons([("a", None), ("b", None)], counts=[4])
    assert hoyer(tensors, layers).item() == pytest.approx(2.0)  # four alike: the root of 4
    assert hoyer({"a": 7 * torch.eye(4), "b": torch.zeros(4, 4)}, layers).item() == pytest.approx(2.0)
    tensors["a"][1:] = 0
    assert hoyer(tensors, layers).item() == pytest.approx(1.0)
