import pytest
import torch
from toy_model import SHORT, Model, ModelWithParts, changed, close, neurons_of, same, stream

from trainables.llm import loss_head
from trainables.llm.training import Teacher, Trainer
from trainables.pruning.penalties import add_group_lasso_gradient

ROWS = []


class Counting(Model):
    """Tells how many sequences it reads at once."""

    def forward(self, token_BT, *, use_cache):
        ROWS.append(len(token_BT))
        return super().forward(token_BT, use_cache=use_cache)


def trained(training, model, **ways):
    trainer = Trainer(model, stream(), training, **ways)
    trainer.run(6)
    return trainer, model


@pytest.mark.parametrize(("size", "rows"), [(None, [4]), (1, [1, 1, 1, 1]), (2, [2, 2]), (3, [3, 1]), (4, [4]), (9, [4])])
def test_a_batch_in_parts_makes_the_update_of_the_whole(size, rows):
    """Also where the last part is smaller."""
    ROWS.clear()
    (one, in_parts), (other, whole) = (trained(changed(micro_batch_size=each), Counting()) for each in (size, None))
    assert ROWS == rows * 6 + [4] * 6
    assert close(in_parts, whole)
    assert one.last_loss_nats == pytest.approx(other.last_loss_nats, abs=1e-5)
    assert same(in_parts, whole) == (rows == [4])


def test_parts_learn_of_a_teacher_and_a_penalty_as_the_whole_does(monkeypatch):
    monkeypatch.setattr(loss_head, "FEW_LOGITS", 0)
    found = []
    for size in (3, None):
        model, teacher = ModelWithParts(), Teacher(model=Model(seed=1, width=9), alpha=0.5, temperature=2.0)
        layers = neurons_of(model)

        def penalise(tensors, gradients, layers=layers):
            add_group_lasso_gradient(tensors, gradients, layers, 0.3)

        found.append(trained(changed(micro_batch_size=size), model, teacher=teacher, add_penalty=penalise))
    (one, in_parts), (other, whole) = found
    assert close(in_parts, whole)
    assert one.last_loss_nats == pytest.approx(other.last_loss_nats, abs=1e-5)
    _, without = trained(SHORT, ModelWithParts())
    assert not close(in_parts, without)


def test_a_head_on_its_own_makes_the_updates_of_the_whole_model(monkeypatch):
    _, whole = trained(SHORT, Model())
    monkeypatch.setattr(loss_head, "FEW_LOGITS", 0)
    _, apart = trained(SHORT, ModelWithParts())
    assert apart.modes == [False]  # to find the head
    assert close(apart, whole)


def test_gradients_of_an_update_do_not_reach_the_next():
    model = Model()
    trainer = Trainer(model, stream(), changed(micro_batch_size=1, learning_rate=1e-30, weight_decay=0.0))
    norms = []
    for _ in range(2):
        trainer.run(1)
        norms.append(torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm())
    assert norms[1] < 1.5 * norms[0]
