import copy
import io

import pytest
import torch
from torch import nn
from toy_model import SHORT, Model, changed, close, neurons_of, same, stream

from trainables.llm.training import Teacher, Trainer, mean_loss_nats
from trainables.pruning.penalties import add_group_lasso_gradient, proximal_step


def begin(model, way):
    """A trainer of each kind."""
    layers = neurons_of(model)
    ways = {
        "plain": {},
        "subgradient": {"add_penalty": lambda tensors, gradients: add_group_lasso_gradient(tensors, gradients, layers, 0.3)},
        "proximal": {"after_update": lambda tensors, rate: proximal_step(tensors, layers, rate)},
        "parts": {"training": changed(micro_batch_size=3)},
        "teacher": {"teacher": Teacher(model=Model(seed=1), alpha=0.5, temperature=2.0)},
    }
    return Trainer(model, stream(), **{"training": SHORT, **ways[way]})


@pytest.mark.parametrize("way", ["plain", "subgradient", "proximal", "parts", "teacher"])
def test_two_updates_a_state_and_three_more_are_five(way):
    straight, first = Model(), Model()
    begin(straight, way).run(5)
    trainer = begin(first, way)
    trainer.run(2)
    stored = io.BytesIO()
    torch.save(trainer.state_dict(), stored)
    stored.seek(0)
    later = copy.deepcopy(first)
    resumed = begin(later, way)
    resumed.load_state_dict(torch.load(stored, weights_only=True))
    assert (resumed.update, resumed.last_loss_nats) == (2, trainer.last_loss_nats)
    resumed.run(3)
    assert resumed.update == 5
    assert same(later, straight)


def test_a_state_without_its_optimizer_is_not_enough():
    """So the moments are needed for the test above."""
    straight, first = Model(), Model()
    begin(straight, "plain").run(5)
    begin(first, "plain").run(2)
    resumed = begin(first, "plain")
    resumed.update = 2
    resumed.run(3)
    assert not close(first, straight)


def test_training_and_measuring_leave_the_global_generator_alone():
    model, other = Model(), Model()
    trainer, again = begin(model, "teacher"), begin(other, "teacher")
    state = torch.get_rng_state()
    trainer.run(2)
    mean_loss_nats(model, stream().batch(0), batch_size=2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again.run(2)
    assert same(model, other)


def test_dropout_is_the_same_in_every_run_and_goes_on_after_a_state():
    class Forgetful(Model):
        def forward(self, token_BT, *, use_cache):
            output = super().forward(token_BT, use_cache=use_cache)
            output.logits = nn.functional.dropout(output.logits, 0.5, self.training)
            return output

    straight, again, resumed, without = Forgetful(), Forgetful(), Forgetful(), Model()
    for model in (straight, without):
        Trainer(model, stream(), SHORT).run(4)
    torch.manual_seed(5)
    first, later = (Trainer(model, stream(), SHORT) for model in (again, resumed))
    first.run(2)
    later.run(2)
    then = Trainer(resumed, stream(), SHORT)
    then.load_state_dict(later.state_dict())
    first.run(2)
    then.run(2)
    assert same(again, straight)
    assert same(resumed, straight)
    assert not close(without, straight)
