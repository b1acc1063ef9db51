import pytest
import torch
from pruning_networks import GatedNetwork, NextToken, units_of
from torch import nn

from trainables.pruning.scores import SCORES
from trainables.pruning.surgery import mask
from trainables.pruning.units import mlp_neurons, sequential_neurons

NEEDS_LOSSES = sorted(set(SCORES) - {"weight_norm", "random"})


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Toy:
    """Loss sign * y, averaged over samples that are all x = 2, of y = sum_j v_j relu(w_j x + b_j)."""

    def __init__(self, *signs):
        self.sign_B = torch.tensor(signs)
        self.activation_shape = (len(signs),)

    def __call__(self, tensors, gates):
        a_BH = (torch.full((len(self.sign_B), 1), 2.0) @ tensors["w"] + tensors["b"]).relu() * gates["w"]
        return ((a_BH @ tensors["v"])[:, 0] * self.sign_B).mean()


TOY = {
    "w": torch.tensor([[1.0, -1.0, 0.5]]),
    "b": torch.tensor([1.0, 0.5, 0.0]),  # activations a = 3, 0, 1
    "v": torch.tensor([[2.0], [5.0], [-3.0]]),  # contributions a v = 6, 0, -3
}
(TOY_UNITS,) = mlp_neurons([("w", "b"), ("v", None)], counts=[3], orientation="in_out")


@pytest.mark.parametrize(
    ("score", "batches", "expected"),
    [
        # The loss is y: without a unit it moves by a v.
        ("ablation", [Toy(1.0)], [6, 0, 3]),
        # Two batches that disagree: what a unit does to one undoes what it does to the other.
        ("ablation", [Toy(1.0), Toy(-1.0)], [0, 0, 0]),
        # dL/dw = v x, dL/db = v, dL/dv = a where active; w v x + b v + v a = 2 a v.
        ("attribution", [Toy(1.0)], [12, 0, 6]),
        ("attribution", [Toy(1.0), Toy(-1.0)], [0, 0, 0]),
        # |v x| w + |v| b + |a| v: first 4 + 2 + 6; third 6 * 0.5 + 3 * 0 + 1 * -3 = 0, for only the gradient lost its sign.
        ("abs_gradient_attribution", [Toy(1.0)], [12, 0, 0]),
        ("abs_gradient_attribution", [Toy(1.0), Toy(-1.0)], [12, 0, 0]),
        # |a v| in each batch; within a batch signs still cancel.
        ("activation_attribution", [Toy(1.0), Toy(-1.0)], [6, 0, 3]),
        ("activation_attribution", [Toy(1.0, -1.0)], [0, 0, 0]),
        # Of four samples three agree: |(3 - 1) / 4| of it is left.
        ("activation_attribution", [Toy(1.0, 1.0, 1.0, -1.0)], [3, 0, 1.5]),
        # No sample cancels another.
        ("sample_activation_attribution", [Toy(1.0, -1.0), Toy(-1.0, -1.0)], [6, 0, 3]),
        # Roots of 1 + 1 + 4, 1 + 0.25 + 25 and 0.25 + 0 + 9.
        ("weight_norm", [], [6**0.5, 26.25**0.5, 9.25**0.5]),
    ],
)
def test_scores_worked_out_by_hand(score, batches, expected):
    (score_H,) = SCORES[score](TOY, [TOY_UNITS], batches, seeded())
    torch.testing.assert_close(score_H, torch.tensor(expected, dtype=torch.float32))


class Classification:
    """Cross-entropy of a Sequential of linear layers and ReLU, written out with gates."""

    def __init__(self, seed, layers):
        self.x_BI = torch.randn(30, 6, generator=seeded(seed))
        self.y_B = torch.randint(3, (30,), generator=seeded(seed + 100))
        self.layers = layers
        self.activation_shape = (30,)

    def __call__(self, tensors, gates):
        a = self.x_BI
        for units in self.layers:
            a = nn.functional.linear(a, tensors[f"{units.name}.weight"], tensors[f"{units.name}.bias"]).relu() * gates[units.name]
        return nn.functional.cross_entropy(nn.functional.linear(a, tensors["4.weight"], tensors["4.bias"]), self.y_B)


def test_ablation_in_batched_passes_is_ablation_of_one_unit_after_another():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 7), nn.ReLU(), nn.Linear(7, 3))  # 40: more than one pass
    layers = sequential_neurons(model)
    batches = [Classification(seed, layers) for seed in (1, 2)]
    scores = SCORES["ablation"](dict(model.named_parameters()), layers, batches, seeded())
    open_gates = {units.name: torch.ones(units.count) for units in layers}
    intact = {name: tensor.detach() for name, tensor in model.named_parameters()}
    for units, score_H in zip(layers, scores, strict=True):
        for index in range(units.count):
            copy = {name: tensor.clone() for name, tensor in intact.items()}
            mask(copy, units, torch.arange(units.count) != index)
            moved = sum(loss(copy, open_gates) - loss(intact, open_gates) for loss in batches) / 2
            torch.testing.assert_close(score_H[index], moved.abs(), rtol=0, atol=1e-6)


def test_ablation_of_gated_neurons_and_residual_dimensions_is_masking_them():
    torch.manual_seed(0)
    network = GatedNetwork()
    layers = units_of(network)
    loss = NextToken(network, seed=1)
    intact = {name: tensor.detach().double() for name, tensor in network.named_parameters()}
    scores = SCORES["ablation"](intact, layers, [loss], seeded())
    for units, score_H in zip(layers, scores, strict=True):
        assert score_H.max() > 1e-3
        for index in range(units.count):
            copy = {name: tensor.clone() for name, tensor in intact.items()}
            mask(copy, units, torch.arange(units.count) != index)
            moved = (loss(copy, {}) - loss(intact, {})).abs()
            torch.testing.assert_close(score_H[index], moved.float(), rtol=0, atol=1e-6)


def test_activation_attribution_estimates_the_ablation_of_units_that_write_little():
    torch.manual_seed(0)
    network = GatedNetwork()
    neurons, *_ = units_of(network)
    tensors = {name: tensor.detach().double() for name, tensor in network.named_parameters()}
    tensors["blocks.0.down.weight"] *= 1e-4  # so that the loss is all but linear in their gates
    moved, estimate = (
        SCORES[name](tensors, [neurons], [NextToken(network, seed=1)], seeded())[0]
        for name in ("ablation", "activation_attribution")
    )
    torch.testing.assert_close(estimate, moved, rtol=0.01, atol=0.001 * moved.max().item())


@pytest.mark.parametrize(("shape", "cancels"), [((4, 3), True), ((1, 1), False)])
def test_scores_by_token_differ_from_those_by_batch_where_tokens_cancel_each_other(shape, cancels):
    torch.manual_seed(0)
    network = GatedNetwork()
    layers, loss = units_of(network), NextToken(network, seed=1, shape=shape)
    tensors = dict(network.named_parameters())
    names = ("activation_attribution", "sample_activation_attribution")
    batch_H, token_H = (torch.cat(SCORES[name](tensors, layers, [loss], seeded())) for name in names)
    assert (token_H >= batch_H - 1e-6).all()
    assert (token_H > 1.5 * batch_H).any() == cancels


@pytest.mark.parametrize("name", sorted(SCORES))
def test_every_score_is_a_plain_number_a_unit_and_leaves_the_network_alone(name):
    network = GatedNetwork()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    layers = units_of(network)
    scores = SCORES[name](dict(network.named_parameters()), layers, [NextToken(network, seed=1)], seeded())
    for units, score_H in zip(layers, scores, strict=True):
        assert score_H.shape == (units.count,)
        assert score_H.dtype == torch.float32
        assert not score_H.requires_grad
        assert (score_H >= 0).all()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_random_scores_rank_every_unit_of_all_layers_once():
    network = GatedNetwork()
    tensors, layers = dict(network.named_parameters()), units_of(network)
    first, again, other = (torch.cat(SCORES["random"](tensors, layers, [], seeded(seed))) for seed in (0, 0, 1))
    assert sorted(first.tolist()) == list(range(20 + 20 + 12))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", NEEDS_LOSSES)
def test_scores_of_a_loss_need_a_batch(name):
    with pytest.raises(ValueError, match="this score needs at least one batch, but got no losses; give some, or score by"):
        SCORES[name](TOY, [TOY_UNITS], [], seeded())
