import itertools

import pytest
import torch

from trainables.experiment import DivergedError
from trainables.llm.lasso import GroupLasso
from trainables.pruning.penalties import group_lasso, group_norms, proximal_step
from trainables.pruning.strength import AutoStrength, StrengthRule
from trainables.pruning.units import gated_neurons

WIDTH, NEURONS, STRENGTH, RATE = 6, 5, 0.3, 0.1
RULE = StrengthRule(smoothing=0.5, warmup=10, interval=2, increase=2.0, decrease=0.5)
LOSSES = [3.0] * 10 + [2.0, 1.0, 1.0, 5.0, 9.0, 9.0, 1.0, 1.0]


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"gate.weight": (NEURONS, WIDTH), "up.weight": (NEURONS, WIDTH), "down.weight": (WIDTH, NEURONS)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def layers():
    return [gated_neurons(tensors(), name="mlp", gate="gate", up="up", down="down")]


def copies(of):
    return {name: tensor.clone() for name, tensor in of.items()}


def test_the_subgradient_is_that_of_the_strength_times_the_penalty():
    parameters, gradients = tensors(), tensors(1)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in parameters.items()}
    (STRENGTH * group_lasso(leaves, layers())).backward()
    expected = {name: gradients[name] + leaf.grad for name, leaf in leaves.items()}
    GroupLasso(layers(), "subgradient", STRENGTH).add_penalty(parameters, gradients)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, expected[name], atol=1e-6)


def test_the_proximal_way_shrinks_groups_by_rate_times_strength_after_the_update():
    ours, theirs = tensors(), tensors()
    GroupLasso(layers(), "proximal", STRENGTH).after_update(ours, RATE)
    proximal_step(theirs, layers(), RATE * STRENGTH)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name])
    shorter = group_norms(tensors(), layers()[0]) - group_norms(ours, layers()[0])
    assert torch.allclose(shorter, torch.full((NEURONS,), RATE * STRENGTH), atol=1e-5)


def test_each_way_acts_in_its_place_alone():
    subgradient, proximal = (GroupLasso(layers(), way, STRENGTH) for way in ("subgradient", "proximal"))
    gradients, parameters = tensors(1), tensors()
    proximal.add_penalty(parameters, gradients)
    subgradient.after_update(parameters, RATE)
    for name in parameters:
        assert torch.equal(gradients[name], tensors(1)[name])
        assert torch.equal(parameters[name], tensors()[name])


def test_a_strength_without_a_rule_hears_of_no_loss():
    lasso = GroupLasso(layers(), "subgradient", STRENGTH)
    assert not lasso.adjusts
    for loss in (3.0, 1.0, float("nan")):
        lasso.adjust(loss)
    assert (lasso.strength, lasso.state_dict()) == (STRENGTH, {})
    lasso.load_state_dict({})
    assert lasso.strength == STRENGTH


def test_a_strength_with_a_rule_follows_the_loss_on_the_text():
    lasso, auto = GroupLasso(layers(), "subgradient", STRENGTH, RULE), AutoStrength(STRENGTH, RULE)
    strengths = []
    for loss in LOSSES:
        lasso.adjust(loss)
        strengths.append(auto.update(loss))
        assert lasso.strength == strengths[-1]
    steps = {later / earlier for earlier, later in itertools.pairwise(strengths)}
    assert lasso.adjusts
    assert steps == {0.5, 1.0, 2.0}


@pytest.mark.parametrize("way", ["subgradient", "proximal"])
def test_an_adjusted_strength_is_the_one_that_acts(way):
    lasso, plain = GroupLasso(layers(), way, STRENGTH, RULE), GroupLasso(layers(), way, 2 * STRENGTH)
    for loss in LOSSES[:12]:
        lasso.adjust(loss)
    results = []
    for each in (lasso, plain):
        parameters, gradients = tensors(), tensors(1)
        each.add_penalty(parameters, gradients)
        each.after_update(parameters, RATE)
        results.append({**parameters, **{f"gradient of {name}": gradient for name, gradient in gradients.items()}})
    assert lasso.strength == 2 * STRENGTH
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("place", range(0, len(LOSSES), 3))
def test_a_lasso_that_was_saved_goes_on_as_if_it_had_not_been(place):
    straight, saved = (GroupLasso(layers(), "proximal", STRENGTH, RULE) for _ in range(2))
    for loss in LOSSES[:place]:
        straight.adjust(loss)
        saved.adjust(loss)
    state = saved.state_dict()
    saved.adjust(100.0)  # which the state knows nothing of
    again = GroupLasso(layers(), "proximal", STRENGTH, RULE)
    again.load_state_dict(state)
    for loss in LOSSES[place:]:
        straight.adjust(loss)
        again.adjust(loss)
        assert again.strength == straight.strength


def test_a_loss_that_is_not_finite_ends_a_lasso_that_adjusts():
    with pytest.raises(DivergedError, match=r"the loss must be finite, but is inf at strength 0\.3; lower it"):
        GroupLasso(layers(), "subgradient", STRENGTH, RULE).adjust(float("inf"))
