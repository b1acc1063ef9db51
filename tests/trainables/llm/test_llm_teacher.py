import copy
import math

import pytest
from toy_model import (
    SHORT,
    VOCABULARY,
    Model,
    ModelWithParts,
    changed,
    close,
    cross_entropy,
    distillation,
    neurons_of,
    same,
    stream,
    train_by_hand,
)

from trainables.llm.training import Teacher, Trainer
from trainables.pruning.penalties import add_group_lasso_gradient


@pytest.mark.parametrize(("alpha", "temperature"), [(0.5, 2.0), (0.25, 3.0), (1.0, 2.0), (0.0, 1.0)])
def test_a_student_learns_the_teachers_softened_answers_and_the_text(alpha, temperature):
    ours, theirs, teacher = Model(), Model(), Model(seed=1)
    before = copy.deepcopy(teacher)
    Trainer(ours, stream(), SHORT, teacher=Teacher(model=teacher, alpha=alpha, temperature=temperature)).run(6)
    train_by_hand(theirs, SHORT, loss_of=distillation(teacher, alpha, temperature))
    assert close(ours, theirs)
    assert same(teacher, before)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it():
    student = Model()
    Trainer(student, stream(), changed(clip_norm=math.inf), teacher=Teacher(model=Model(), alpha=0.0, temperature=2.0)).run(1)
    assert all(float(parameter.grad.abs().max()) < 1e-6 for parameter in student.parameters())


def test_the_last_loss_is_of_the_text_alone():
    token_BT = stream().batch(0)
    expected = cross_entropy(Model(), token_BT).item()
    ways = [
        {},
        {"teacher": Teacher(model=Model(seed=1), alpha=0.1, temperature=2.0)},
        {"add_penalty": lambda tensors, gradients: add_group_lasso_gradient(tensors, gradients, neurons_of(Model()), 1.0)},
    ]
    for way in ways:
        trainer = Trainer(Model(), stream(), SHORT, **way)
        assert math.isnan(trainer.last_loss_nats)
        trainer.run(1)
        assert trainer.last_loss_nats == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", [Model, ModelWithParts])
def test_a_teacher_of_another_vocabulary_is_refused_in_a_sentence(kind):
    teacher = Teacher(model=kind(vocabulary=VOCABULARY + 1), alpha=0.5, temperature=2.0)
    law = "a teacher must have the student's vocabulary of 13 tokens, but got 14; use a model with the same tokenizer"
    with pytest.raises(ValueError, match=law):
        Trainer(Model(), stream(), SHORT, teacher=teacher).run(1)
