import pytest
import torch
from toy_model import Model, ModelWithParts, changed, close, same, stream

from trainables.llm import loss_head, training_compiler
from trainables.llm.training import Teacher, Trainer, mean_loss_nats

COMPILED = changed(compile=True, micro_batch_size=3)


@pytest.fixture(autouse=True)
def afresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def quick_compiler(monkeypatch):
    """Traces passes and their gradients as any, and leaves out the C++."""
    monkeypatch.setattr(training_compiler, "_BACKEND", "aot_eager")


def test_a_compiled_model_learns_the_same_and_has_the_same_state(quick_compiler, monkeypatch):
    monkeypatch.setattr(loss_head, "FEW_LOGITS", 0)
    models = [ModelWithParts(), ModelWithParts()]
    teacher = Teacher(model=Model(seed=1), alpha=0.5, temperature=2.0)
    plain, compiled = (
        Trainer(model, stream(), training, teacher=teacher)
        for model, training in zip(models, (changed(micro_batch_size=3), COMPILED), strict=True)
    )
    for trainer in (plain, compiled):
        trainer.run(4)
    assert close(*models)
    assert compiled.last_loss_nats == pytest.approx(plain.last_loss_nats, abs=1e-5)
    assert list(models[1].state_dict()) == list(Model().state_dict())
    state, other = compiled.state_dict(), plain.state_dict()
    assert state["optimizer"]["state"].keys() == other["optimizer"]["state"].keys()
    assert mean_loss_nats(models[1], stream().batch(0), batch_size=4) > 0


def test_a_compiled_model_goes_on_from_a_state_as_if_nothing_had_been(quick_compiler):
    straight, model = Model(), Model()
    Trainer(straight, stream(), COMPILED).run(4)
    first = Trainer(model, stream(), COMPILED)
    first.run(2)
    torch.compiler.reset()
    then = Trainer(model, stream(), COMPILED)
    then.load_state_dict(first.state_dict())
    then.run(2)
    assert same(model, straight)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own, of itself
def test_without_a_compiler_a_sentence_says_what_to_do(monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "/nowhere/c++"))
    law = (
        r"a model that is to be compiled must find a compiler that can, but got .*/nowhere/c\+\+.*; install a C\+\+ compiler, or"
    )
    with pytest.raises(ValueError, match=law):
        Trainer(Model(), stream(), COMPILED).run(1)


def test_other_errors_of_a_compiled_model_stay_what_they_are(quick_compiler):
    with pytest.raises(RuntimeError, match="of the model") as raised, training_compiler.errors_told():
        raise RuntimeError("an error of the model")
    assert type(raised.value) is RuntimeError
