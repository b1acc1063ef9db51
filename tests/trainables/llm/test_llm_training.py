import copy
import io
import json
import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from trainables.experiment import DivergedError
from trainables.llm.corpus import Corpus
from trainables.llm.corpus_stream import Stream
from trainables.llm.training import Teacher, Trainer, Training, mean_loss_nats
from trainables.pruning.penalties import add_group_lasso_gradient, group_lasso, group_norms, proximal_step
from trainables.pruning.units import gated_neurons

VOCABULARY, WIDTH, NEURONS = 13, 6, 5
SHORT = Training(updates=6, batch_size=3, length=7, learning_rate=2e-2, warmup=2, weight_decay=0.1)


class Model(nn.Module):
    """Reads one token and says the next: an embedding, a gated MLP, a head. It answers as transformers does."""

    def __init__(self, seed=0):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.gate, self.up = (nn.Linear(WIDTH, NEURONS, bias=False) for _ in range(2))
        self.down = nn.Linear(NEURONS, WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
        self.modes = []

    def forward(self, token_BT, *, use_cache):
        assert not use_cache
        self.modes.append(self.training)
        x = self.embed(token_BT)
        return SimpleNamespace(logits=self.head(x + self.down(functional.silu(self.gate(x)) * self.up(x))))


def tensors_of(model):
    return dict(model.named_parameters())


def neurons_of(model):
    return [gated_neurons(tensors_of(model), name="mlp", gate="gate", up="up", down="down")]


def stream(training=SHORT):
    token_N = torch.randint(VOCABULARY, (400,), generator=torch.Generator().manual_seed(1))
    about = json.dumps({"end_id": 0, "start_id": None, "largest_id": VOCABULARY - 1}).encode()
    tensors = {"tokens/training/text": token_N.to(torch.uint16), "about.json": torch.tensor(list(about), dtype=torch.uint8)}
    corpus = Corpus.of(tensors)
    return Stream(corpus, weights={"text": 1.0}, length=training.length, batch_size=training.batch_size, seed=0)


def cross_entropy(model, token_BT):
    """The mean of -log p(next token), from its definition."""
    p_BTV = model(token_BT[:, :-1], use_cache=False).logits.softmax(-1)
    return -p_BTV.gather(-1, token_BT[:, 1:, None]).log().mean()


def train_by_hand(model, training, *, loss_of=cross_entropy, after=lambda rate: None):
    """Training as torch has it, without a class."""
    batches = stream(training)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=training.weight_decay)
    for update in range(training.updates):
        optimizer.zero_grad()
        loss_of(model, batches.batch(update)).backward()
        norm = math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in model.parameters()))
        for parameter in model.parameters():
            parameter.grad *= min(1.0, training.clip_norm / norm)
        optimizer.param_groups[0]["lr"] = training.rate(update)
        optimizer.step()
        after(training.rate(update))


def close(model, other):
    """Floats of torch's fused and plain AdamW differ in their last digits."""
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return all(torch.allclose(one, two, rtol=1e-4, atol=2e-6) for one, two in pairs)


def same(model, other):
    return all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))


def changed(**changes):
    fields = {name: getattr(SHORT, name) for name in SHORT.__dataclass_fields__}
    return Training(**{**fields, **changes})


def test_the_rate_rises_linearly_then_falls_as_a_cosine_to_a_tenth():
    training = Training(updates=10, warmup=2, learning_rate=2.0)
    assert [training.rate(update) for update in (0, 1, 2)] == [1.0, 2.0, 2.0]
    assert training.rate(6) == pytest.approx(0.2 + 1.8 * 0.5)
    assert training.rate(4) == pytest.approx(0.2 + 1.8 * (1 + math.sqrt(0.5)) / 2)
    assert training.rate(9) == pytest.approx(0.2 + 1.8 * (1 + math.cos(7 * math.pi / 8)) / 2)
    assert training.rate(10) == training.rate(1000) == pytest.approx(0.2)


def test_without_warmup_the_first_update_has_the_highest_rate():
    training = Training(updates=4, warmup=0, learning_rate=1.0)
    assert [training.rate(update) for update in range(5)] == pytest.approx([1.0, 0.8681981, 0.55, 0.2318019, 0.1])


def test_a_training_shorter_than_its_warmup_never_has_the_full_rate():
    training = Training(updates=2, warmup=4, learning_rate=1.0)
    assert [training.rate(update) for update in range(2)] == [0.25, 0.5]
    assert Training(updates=0, warmup=0, learning_rate=1.0).rate(0) == 1.0


def test_tokens_are_those_that_all_updates_ask_for():
    assert Training(updates=3, batch_size=5, length=7).tokens == 105
    assert Training(updates=0).tokens == 0


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
                owned = [theirs.gate.weight[neuron], theirs.up.weight[neuron], theirs.down.weight[:, neuron]]
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


@pytest.mark.parametrize(("alpha", "temperature"), [(0.5, 2.0), (0.25, 3.0), (1.0, 2.0), (0.0, 1.0)])
def test_a_student_learns_the_teachers_softened_answers_and_the_text(alpha, temperature):
    """alpha CE + (1 - alpha) T^2 KL(teacher || student), the mean over tokens of the sum over the vocabulary."""
    ours, theirs, teacher = Model(), Model(), Model(seed=1)
    before = copy.deepcopy(teacher)

    def loss_of(model, token_BT):
        with torch.no_grad():
            p_BTV = (teacher(token_BT[:, :-1], use_cache=False).logits / temperature).softmax(-1)
        q_BTV = (model(token_BT[:, :-1], use_cache=False).logits / temperature).softmax(-1)
        divergence = (p_BTV * (p_BTV.log() - q_BTV.log())).sum(-1).mean()
        return alpha * cross_entropy(model, token_BT) + (1 - alpha) * temperature**2 * divergence

    Trainer(ours, stream(), SHORT, teacher=Teacher(model=teacher, alpha=alpha, temperature=temperature)).run(6)
    train_by_hand(theirs, SHORT, loss_of=loss_of)
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


def begin(model, way):
    """A trainer of each kind."""
    layers = neurons_of(model)
    ways = {
        "plain": {},
        "subgradient": {"add_penalty": lambda tensors, gradients: add_group_lasso_gradient(tensors, gradients, layers, 0.3)},
        "proximal": {"after_update": lambda tensors, rate: proximal_step(tensors, layers, rate)},
        "teacher": {"teacher": Teacher(model=Model(seed=1), alpha=0.5, temperature=2.0)},
    }
    return Trainer(model, stream(), SHORT, **ways[way])


@pytest.mark.parametrize("way", ["plain", "subgradient", "proximal", "teacher"])
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


@pytest.mark.parametrize("num_updates", [6, 40])
def test_a_rate_at_which_numbers_overflow_ends_in_a_sentence(num_updates):
    training, model = changed(learning_rate=1e30, warmup=0, clip_norm=math.inf), Model()
    law = r"the loss must be finite, but is (nan|inf) at learning rate 1e\+30; lower it"
    with pytest.raises(DivergedError, match=law):
        Trainer(model, stream(), training).run(num_updates)
    assert not model.training


def windows(count=7):
    return torch.randint(VOCABULARY, (count, 9), generator=torch.Generator().manual_seed(2))


def test_the_mean_loss_is_that_of_every_token_but_the_first_of_each_window():
    """Uneven batches must not weigh their windows unevenly."""
    model, window_WT, total = Model(), windows(), 0.0
    for window in window_WT.tolist():
        for token, following in pairwise(window):
            logits = model(torch.tensor([[token]]), use_cache=False).logits[0, 0].double()
            total += (logits.exp().sum().log() - logits[following]).item()
    for batch_size in (1, 2, 3, 7, 100):
        assert mean_loss_nats(model, window_WT, batch_size=batch_size) == pytest.approx(total / 56, abs=1e-6)


def test_a_model_that_knows_nothing_has_the_loss_of_a_guess():
    model = Model()
    nn.init.zeros_(model.head.weight)
    assert mean_loss_nats(model, windows(), batch_size=4) == pytest.approx(math.log(VOCABULARY), abs=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_mean_loss_that_is_not_finite_ends_in_a_sentence(bad):
    model = Model()
    nn.init.constant_(model.head.weight, bad)
    with pytest.raises(DivergedError, match="losses must be finite, but got nan nats; lower the learning rate"):
        mean_loss_nats(model, windows(), batch_size=4)


@pytest.mark.parametrize(
    ("changes", "law"),
    [
        ({"updates": -1}, "updates must be at least 0, but got -1; use 0 or more"),
        ({"batch_size": 0}, "batch_size must be at least 1, but got 0"),
        ({"length": 0}, "length must be at least 1, but got 0"),
        ({"warmup": -1}, "warmup must be at least 0, but got -1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive and finite, but got 0.0"),
        ({"learning_rate": math.inf}, "learning_rate must be positive and finite, but got inf"),
        ({"learning_rate": math.nan}, "learning_rate must be positive and finite, but got nan"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0, but got -0.1"),
        ({"weight_decay": math.nan}, "weight_decay must be at least 0, but got nan"),
        ({"weight_decay": math.inf}, "weight_decay must be at least 0, but got inf"),
        ({"clip_norm": 0.0}, "clip_norm must be positive, but got 0.0"),
        ({"clip_norm": math.nan}, "clip_norm must be positive, but got nan"),
    ],
)
def test_impossible_trainings_are_refused_in_a_sentence(changes, law):
    with pytest.raises(ValueError, match=law):
        Training(**changes)


def test_the_edges_of_what_is_possible_are_allowed():
    Training(updates=0, batch_size=1, length=1, warmup=0, learning_rate=1e-300, weight_decay=0.0, clip_norm=math.inf)
