"""A language model of five matrices and what trains it by hand, for the tests of training beside this file."""

import json
import math
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional

from trainables.llm.corpus import Corpus
from trainables.llm.corpus_stream import Stream
from trainables.llm.training import Training
from trainables.pruning.units import gated_neurons

VOCABULARY, WIDTH, NEURONS = 13, 6, 5
SHORT = Training(updates=6, batch_size=4, length=7, learning_rate=2e-2, warmup=2, weight_decay=0.1)


class Body(nn.Module):
    """Reads one token: an embedding and a gated MLP."""

    def __init__(self, width):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.gate, self.up = (nn.Linear(width, NEURONS, bias=False) for _ in range(2))
        self.down = nn.Linear(NEURONS, width, bias=False)

    def forward(self, token_BT, *, use_cache):
        assert not use_cache
        x = self.embed(token_BT)
        return (x + self.down(functional.silu(self.gate(x)) * self.up(x)),)


class Model(nn.Module):
    """Reads one token and says the next. It answers as transformers does.

    Attributes:
        modes: whether it was in training mode, at each of its calls.
    """

    def __init__(self, seed=0, *, width=WIDTH, vocabulary=VOCABULARY):
        super().__init__()
        self.body = Body(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
        self.modes = []

    def forward(self, token_BT, *, use_cache):
        self.modes.append(self.training)
        return SimpleNamespace(logits=self.head(self.body(token_BT, use_cache=use_cache)[0]))


class ModelWithParts(Model):
    """Tells its parts, as models of transformers do, so that its head can run on its own."""

    @property
    def base_model(self):
        return self.body

    def get_output_embeddings(self):
        return self.head


def tensors_of(model):
    return dict(model.named_parameters())


def neurons_of(model):
    return [gated_neurons(tensors_of(model), name="mlp", gate="body.gate", up="body.up", down="body.down")]


def stream(training=SHORT):
    token_N = torch.randint(VOCABULARY, (400,), generator=torch.Generator().manual_seed(1))
    about = json.dumps({"end_id": 0, "start_id": None, "largest_id": VOCABULARY - 1}).encode()
    tensors = {"tokens/training/text": token_N.to(torch.uint16), "about.json": torch.tensor(list(about), dtype=torch.uint8)}
    corpus = Corpus.of(tensors)
    return Stream(corpus, weights={"text": 1.0}, length=training.length, batch_size=training.batch_size, seed=0)


def windows(count=7):
    return torch.randint(VOCABULARY, (count, 9), generator=torch.Generator().manual_seed(2))


def changed(**changes):
    fields = {name: getattr(SHORT, name) for name in SHORT.__dataclass_fields__}
    return Training(**{**fields, **changes})


def cross_entropy(model, token_BT):
    """The mean of -log p(next token), from its definition."""
    p_BTV = model(token_BT[:, :-1], use_cache=False).logits.softmax(-1)
    return -p_BTV.gather(-1, token_BT[:, 1:, None]).log().mean()


def distillation(teacher, alpha, temperature):
    """alpha CE + (1 - alpha) T^2 KL(teacher || student), the mean over tokens of the sum over the vocabulary."""

    def loss_of(model, token_BT):
        with torch.no_grad():
            p_BTV = (teacher(token_BT[:, :-1], use_cache=False).logits / temperature).softmax(-1)
        q_BTV = (model(token_BT[:, :-1], use_cache=False).logits / temperature).softmax(-1)
        divergence = (p_BTV * (p_BTV.log() - q_BTV.log())).sum(-1).mean()
        return alpha * cross_entropy(model, token_BT) + (1 - alpha) * temperature**2 * divergence

    return loss_of


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
