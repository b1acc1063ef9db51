"""The broad language model that is narrowed: a pretrained one, or a small Llama that a study trains once on all domains."""

import dataclasses
import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainables.laws import require
from trainables.llm.corpus import Corpus
from trainables.llm.corpus_documents import CorpusConfig
from trainables.llm.corpus_recipe import corpus_recipe
from trainables.llm.corpus_stream import Stream
from trainables.llm.dissection import dissect
from trainables.llm.pretrained import model_recipe, tokenizer_recipe
from trainables.llm.shared_model import pack_model
from trainables.llm.training import Trainer, Training
from trainables.randomness import generator, stream_key
from trainables.shared import Recipe

_VERSION = 3
"""Of the code below: another number makes other models."""
_INITIAL_STD = 0.02
_EPS = 1e-6  # of the norms
_UPDATES_AT_ONCE = 100

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BaseConfig:
    """Which model is narrowed: a pretrained one, or the embedded one, of this shape and training. Paper: Llama-3.2-1B."""

    pretrained: str = ""
    """A folder of transformers, a .gguf file, or a name on the hub; empty for the embedded model. Paper: Llama-3.2-1B."""
    revision: str = ""
    """Of a model of the hub; empty for its newest."""
    width: int = 64
    """Residual dimensions of the embedded model, a multiple of num_heads; a pretrained one has its own. Paper: 2048."""
    num_layers: int = 4
    """Decoder blocks, >= 1. Paper: 16."""
    mlp_width: int = 256
    """Neurons of each block's MLP. Paper: 8192."""
    num_heads: int = 4
    """Attention heads, each with keys of its own. Paper: 32, with 8 of keys."""
    weights: dict[str, float] = dataclasses.field(default_factory=lambda: {"python": 0.5, "prose": 0.25, "cpp": 0.25})
    """Share of each domain in the sequences: the breadth of the mixture."""
    training: Training = dataclasses.field(default_factory=lambda: Training(updates=1500, learning_rate=3e-3, warmup=100))
    """How long, and how fast."""

    def __post_init__(self) -> None:
        if not isinstance(self.training, Training):  # JSON makes a dict of it
            object.__setattr__(self, "training", Training(**self.training))
        for name in ("width", "num_layers", "mlp_width", "num_heads"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1", getattr(self, name), "use 1 or more")
        law = "width must be an even multiple of num_heads, for rotary positions come in pairs"
        require(self.width % (2 * self.num_heads) == 0, law, self.width, f"use a multiple of {2 * self.num_heads}")

    @property
    def head_width(self) -> int:
        """Dimensions of a head; it stays when the residual stream is cut."""
        return self.width // self.num_heads


def build_llama(config: BaseConfig, vocabulary: int) -> nn.Module:
    """Make a Llama of the embedded model's shape that knows so many tokens; parameters are as they come."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=config.width,
        intermediate_size=config.mlp_width,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_heads,
        head_dim=config.head_width,
        max_position_embeddings=4096,
        rms_norm_eps=_EPS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):  # transformers draws initial weights from the global generator
        model: nn.Module = LlamaForCausalLM(shape)
    return model.eval()


@torch.no_grad()
def draw_parameters(model: nn.Module, *seed: int | str) -> None:
    """Draw matrices from a normal distribution, by name: std 0.02, and less where a block writes (GPT-2's rule)."""
    writers = {projection.weight for projection in dissect(model, verify=False).writers()}
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            std = _INITIAL_STD / len(writers) ** 0.5 if name in writers else _INITIAL_STD
            parameter.copy_(torch.randn(parameter.shape, generator=generator(*seed, name)) * std)


def base_recipes(config: BaseConfig, corpus: CorpusConfig, seed: int) -> dict[str, Recipe]:
    """How base model, corpus and, with a pretrained model, tokenizer come into a study: `base`, `corpus`, `tokenizer`.

    `trainables.llm.shared_model.unpack_model` builds the base model, `Corpus.of` reads the corpus.

    Args:
        seed: of the embedded model.
    """
    if config.pretrained:
        source = (config.pretrained, config.revision)
        tokenizer = tokenizer_recipe(*source)
        return {"base": model_recipe(*source), "corpus": corpus_recipe(corpus, tokenizer), "tokenizer": tokenizer}
    corpus_made = corpus_recipe(corpus)

    def make(device: torch.device, given: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return pack_model(train_base(config, Corpus.of(given["corpus"]), seed, device))

    shape = {name: value for name, value in dataclasses.asdict(config).items() if name not in ("pretrained", "revision")}
    ingredients = {"version": _VERSION, "seed": seed, **shape}
    base = Recipe(name="base-model", ingredients=ingredients, make=make, needs={"corpus": corpus_made})
    return {"base": base, "corpus": corpus_made}


def train_base(config: BaseConfig, corpus: Corpus, seed: int, device: torch.device) -> nn.Module:
    """Train a model on the mixture from scratch."""
    model = build_llama(config, corpus.vocabulary)
    draw_parameters(model, seed, "base")
    model.to(device)
    training = config.training
    stream = Stream(
        corpus, weights=config.weights, length=training.length, batch_size=training.batch_size, seed=stream_key(seed, "base")
    )
    trainer = Trainer(model, stream, training)
    while trainer.update < training.updates:
        trainer.run(min(_UPDATES_AT_ONCE, training.updates - trainer.update))
        if trainer.update % 500 == 0:
            logger.info("base model: %d updates, loss %.3f nats", trainer.update, trainer.last_loss_nats)
    return model
