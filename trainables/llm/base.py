"""The broad language model that is narrowed: a small Llama, trained once on all domains and shared by all trials of a study.

Axes: B sequences, T tokens.
"""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainables.laws import require
from trainables.llm.corpus import Corpus
from trainables.llm.corpus_documents import CorpusConfig
from trainables.llm.corpus_recipe import corpus_recipe
from trainables.llm.corpus_stream import Stream
from trainables.llm.training import Trainer, Training
from trainables.randomness import generator, stream_key
from trainables.shared import Recipe

_VERSION = 2
"""Of the code below: another number makes other models."""
_INITIAL_STD = 0.02
EPS = 1e-6
"""Of the base model's norms."""
_UPDATES_AT_ONCE = 100

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BaseConfig:
    """Shape and training of the embedded base model. Paper: Llama-3.2-1B, of which the shape's proportions are."""

    width: int = 64
    """Residual dimensions, a multiple of num_heads. Paper: 2048."""
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


def build_llama(
    config: BaseConfig, vocabulary: int, *, width: int | None = None, mlp_width: int | None = None, eps: float = EPS
) -> nn.Module:
    """Make a Llama of the base's shape, or a smaller one with its heads; parameters are as they come.

    Args:
        vocabulary: tokens that it knows.
        width, mlp_width: of a smaller one.
        eps: of its norms.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width or config.width,
        intermediate_size=mlp_width or config.mlp_width,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_heads,
        head_dim=config.head_width,
        max_position_embeddings=4096,
        rms_norm_eps=eps,
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
    num_writes = sum(name.endswith(("o_proj.weight", "down_proj.weight")) for name, _ in model.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            writes = name.endswith(("o_proj.weight", "down_proj.weight"))
            std = _INITIAL_STD / num_writes**0.5 if writes else _INITIAL_STD
            parameter.copy_(torch.randn(parameter.shape, generator=generator(*seed, name)) * std)


def base_recipe(config: BaseConfig, corpus: CorpusConfig, seed: int) -> Recipe:
    """How the base model of a study is made: its named parameters."""
    ingredients = {"version": _VERSION, "seed": seed, **dataclasses.asdict(config)}

    def make(device: torch.device, given: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return train_base(config, Corpus.of(given["corpus"]), seed, device)

    return Recipe(name="base-model", ingredients=ingredients, make=make, needs={"corpus": corpus_recipe(corpus)})


def train_base(config: BaseConfig, corpus: Corpus, seed: int, device: torch.device) -> dict[str, Tensor]:
    """Train a model on the mixture from scratch."""
    model = build_llama(config, corpus.largest_id + 1)
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
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def rebuild_llama(config: BaseConfig, tensors: Mapping[str, Tensor], *, is_cut: bool) -> nn.Module:
    """Make a model of the base's family again from its parameters, whatever sizes they have.

    Args:
        is_cut: whether residual dimensions were removed from the base model, which changed the eps of its norms.
    """
    vocabulary, width = tensors["model.embed_tokens.weight"].shape
    eps = EPS * config.width / width if is_cut else EPS
    mlp_widths = {len(tensor) for name, tensor in tensors.items() if name.endswith("gate_proj.weight")}
    # a config with the true width is a stock one; where widths differ, it has none to tell
    mlp_width = max(1, *mlp_widths) if len(mlp_widths) == 1 else None
    model = build_llama(config, vocabulary, width=width, mlp_width=mlp_width, eps=eps)
    for name, tensor in tensors.items():
        module_name, _, attribute = name.rpartition(".")
        module = model.get_submodule(module_name)
        setattr(module, attribute, nn.Parameter(tensor))
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = tensor.shape
    tie: Any = model
    tie.tie_weights()
    return model


def load_parameters(model: nn.Module, tensors: Mapping[str, Any]) -> None:
    """Put tensors in the place of a model's parameters of the same shapes.

    Raises:
        ValueError: if one is missing or left over.
    """
    names = {name for name, _ in model.named_parameters()}
    law = "a model's parameters must be given, each once"
    require(names == set(tensors), law, f"{sorted(names ^ set(tensors))} missing or left over", "use tensors of this model")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[name])
