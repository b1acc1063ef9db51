import pytest

pytest.importorskip("transformers")

import torch
from tiny_models import FAMILIES, logits, seeded, some_of, tiny, tokens
from torch import nn

from trainables.llm.anatomy import neurons, residual
from trainables.llm.gates import NextTokenLoss, gated
from trainables.pruning.scores import SCORES
from trainables.pruning.surgery import mask


def units_of(anatomy, tensors):
    return [*neurons(anatomy, tensors), residual(anatomy, tensors)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["neurons", "dimensions"])
def test_gates_of_zero_mask(family, kind):
    model, anatomy, tensors = tiny(family)
    layers = [units for units in units_of(anatomy, tensors) if (units.kind == "residual") == (kind == "dimensions")]
    keep = some_of(layers)
    with gated(model, anatomy, {units.name: keep_H.float() for units, keep_H in zip(layers, keep, strict=True)}):
        found = logits(model)
    assert not torch.allclose(found, logits(model), atol=0.1)
    for units, keep_H in zip(layers, keep, strict=True):
        mask(tensors, units, keep_H)
    torch.testing.assert_close(found, logits(model), rtol=0, atol=1e-5)


def test_gates_go_when_they_are_left_and_must_be_of_something():
    model, anatomy, _ = tiny("llama")
    expected = logits(model)
    with pytest.raises(RuntimeError), gated(model, anatomy, {"residual": torch.zeros(3)}):
        logits(model)
    assert torch.equal(logits(model), expected)
    with pytest.raises(ValueError, match="layer seven"), gated(model, anatomy, {"layer seven": torch.zeros(3)}):
        pass


def test_the_loss_is_that_of_transformers():
    model, anatomy, tensors = tiny("qwen3")
    loss = NextTokenLoss(model, anatomy, tokens())
    assert loss.activation_shape == (2, 10)
    torch.testing.assert_close(loss(tensors, {}), model(tokens(), labels=tokens()).loss)
    doubled = {name: 2 * tensor for name, tensor in tensors.items()}
    assert loss(doubled, {}) != loss(tensors, {})
    model.train()
    with pytest.raises(ValueError, match="outside training mode"):
        loss(tensors, {})


@pytest.mark.parametrize("family", FAMILIES)
def test_ablation_of_units_is_masking_them_one_after_the_other(family):
    model, anatomy, tensors = tiny(family)
    intact = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    layers, loss = units_of(anatomy, tensors), NextTokenLoss(model, anatomy, tokens((2, 5)))
    scores = SCORES["ablation"](intact, layers, [loss], seeded())
    for units, score_H in zip(layers, scores, strict=True):
        assert score_H.max() > 1e-3
        for index in range(0, units.count, 9):
            masked = {name: tensor.clone() for name, tensor in intact.items()}
            mask(masked, units, torch.arange(units.count) != index)
            with torch.no_grad():
                moved = (loss(masked, {}) - loss(intact, {})).abs()
            torch.testing.assert_close(score_H[index], moved, rtol=0, atol=3e-6)


@pytest.mark.parametrize("score", sorted(SCORES))
@pytest.mark.parametrize("family", FAMILIES)
def test_every_score_tells_units_apart(family, score):
    model, anatomy, tensors = tiny(family)
    layers = units_of(anatomy, tensors)
    losses = [NextTokenLoss(model, anatomy, tokens((2, 5), seed)) for seed in (1, 2)]
    scores = SCORES[score](tensors, layers, losses, seeded())
    for units, score_H in zip(layers, scores, strict=True):
        assert score_H.shape == (units.count,)
        assert score_H.isfinite().all() and (score_H >= 0).all()
        assert len(score_H.unique()) > units.count // 2


def test_attribution_of_activations_is_the_slope_of_the_loss_along_the_gates():
    model, anatomy, tensors = tiny("gemma3")
    layers, loss = units_of(anatomy, tensors), NextTokenLoss(model, anatomy, tokens())
    found = SCORES["activation_attribution"](tensors, layers, [loss], seeded())
    for units, score_H in zip(layers, found, strict=True):
        index, step = int(score_H.argmax()), 1e-2
        ends = [torch.ones(units.count).index_fill(0, torch.tensor([index]), 1 + sign * step) for sign in (1, -1)]
        with torch.no_grad():
            up, down = (loss(tensors, {units.name: gate_H}) for gate_H in ends)
        torch.testing.assert_close(score_H[index], ((up - down) / (2 * step)).abs(), rtol=0.02, atol=1e-4)


def test_training_goes_on_through_gates():
    model, anatomy, tensors = tiny("llama")
    gate_F = nn.Parameter(torch.ones(40))
    loss = NextTokenLoss(model, anatomy, tokens())(tensors, {anatomy.blocks[0].mlp.name: gate_F})
    loss.backward()
    assert gate_F.grad.abs().sum() > 0
