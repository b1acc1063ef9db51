import math

import pytest
import torch
from toy_model import (
    NEURONS,
    SHORT,
    Model,
    changed,
    close,
    cross_entropy,
    neurons_of,
    same,
    stream,
    tensors_of,
    train_by_hand,
)

from trainables.experiment import DivergedError
from trainables.llm.training import Trainer
from trainables.pruning.penalties import add_group_lasso_gradient, group_lasso, group_norms, proximal_step


@pytest.mark.parametrize("clip_norm", [math.inf, 0.5])
def test_updates_are_those_of_torchs_adamw_under_the_schedule(clip_norm):
    training, ours, theirs = changed(clip_norm=clip_norm), Model(), Model()
    Trainer(ours, stream(), training).run(6)
    train_by_hand(theirs, training)
    assert close(ours, theirs)
    assert not close(ours, Model())


@pytest.mark.parametrize("change", [{"weight_decay": 0.0}, {"clip_norm": 0.5}, {"warmup": 0}, {"updates": 30}])
def test_every_number_of_a_training_tells(change):
    models = [Model(), Model()]
    for model, training in zip(models, (SHORT, changed(**change)), strict=True):
        Trainer(model, stream(), training).run(6)
    assert not close(*models)


def test_gradients_are_clipped_to_a_norm_all_together():
    gradient, clipped, whole = Model(), Model(), Model()
    cross_entropy(gradient, stream().batch(0)).backward()
    Trainer(clipped, stream(), changed(clip_norm=0.25)).run(1)
    Trainer(whole, stream(), changed(clip_norm=math.inf)).run(1)
    norm = math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in gradient.parameters()))
    assert norm > 0.5
    for name, parameter in gradient.named_parameters():
        assert torch.allclose(tensors_of(whole)[name].grad, parameter.grad, rtol=1e-4, atol=1e-7)
        assert torch.allclose(tensors_of(clipped)[name].grad, parameter.grad * 0.25 / norm, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("clip_norm", [math.inf, 0.5])
def test_a_lasso_gradient_is_that_of_the_loss_and_the_penalty_together(clip_norm):
    """So clipping is of their sum."""
    training, ours, theirs, strength = changed(clip_norm=clip_norm), Model(), Model(), 0.3
    layers = neurons_of(ours)

    def penalise(tensors, gradients):
        add_group_lasso_gradient(tensors, gradients, layers, strength)

    def loss_of(model, token_BT):
        return cross_entropy(model, token_BT) + strength * group_lasso(tensors_of(model), layers)

    trainer, plain = Trainer(ours, stream(), training, add_penalty=penalise), Model()
    trainer.run(6)
    train_by_hand(theirs, training, loss_of=loss_of)
    train_by_hand(plain, training)
    assert close(ours, theirs)
    assert not close(ours, plain)
    assert group_norms(tensors_of(ours), layers[0]).sum() < group_norms(tensors_of(plain), layers[0]).sum()


def test_the_proximal_way_shrinks_after_each_update_by_its_rate_and_makes_exact_zeros():
    training, ours, theirs, strength, rates = changed(weight_decay=0.0), Model(), Model(), 17.0, []
    layers = neurons_of(ours)

    def shrink(tensors, rate):
        rates.append(rate)
        proximal_step(tensors, layers, rate * strength)

    def shrink_by_hand(rate):
        with torch.no_grad():
            for neuron in range(NEURONS):
                owned = [theirs.body.gate.weight[neuron], theirs.body.up.weight[neuron], theirs.body.down.weight[:, neuron]]
                norm = math.sqrt(sum(float(part.square().sum()) for part in owned))
                for part in owned:
                    part *= max(0.0, 1 - rate * strength / norm) if norm > 0 else 0.0

    Trainer(ours, stream(), training, after_update=shrink).run(6)
    train_by_hand(theirs, training, after=shrink_by_hand)
    assert rates == [training.rate(update) for update in range(6)]
    assert close(ours, theirs)
    norms = group_norms(tensors_of(ours), layers[0])
    assert 0 < int((norms == 0).sum()) < NEURONS
    assert norms.tolist() == pytest.approx(group_norms(tensors_of(theirs), layers[0]).tolist(), abs=1e-5)


def test_a_model_learns_in_training_mode_and_is_left_outside_it():
    model = Model().eval()
    Trainer(model, stream(), SHORT).run(2)
    assert model.modes == [True, True]
    assert not model.training


def test_no_update_changes_nothing():
    model = Model()
    trainer = Trainer(model, stream(), SHORT)
    trainer.run(0)
    assert trainer.update == 0
    assert same(model, Model())


@pytest.mark.parametrize("num_updates", [6, 40])
def test_a_rate_at_which_numbers_overflow_ends_in_a_sentence(num_updates):
    training, model = changed(learning_rate=1e30, warmup=0, clip_norm=math.inf), Model()
    law = r"the loss must be finite, but is (nan|inf) at learning rate 1e\+30; lower it"
    with pytest.raises(DivergedError, match=law):
        Trainer(model, stream(), training).run(num_updates)
    assert not model.training
