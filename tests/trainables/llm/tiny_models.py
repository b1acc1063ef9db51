"""Tiny random causal language models of six families, and two more, for the tests beside this file."""

import copy
import functools

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Qwen2Config,
    Qwen3Config,
)

from trainables.llm.anatomy import neurons, residual
from trainables.llm.dissection import dissect

VOCABULARY, WIDTH, NEURONS, HEADS = 61, 32, 40, 4
EPS = 0.05  # large, so that a wrong one is seen

COMMON = {"vocab_size": VOCABULARY, "num_hidden_layers": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SHAPE = {**COMMON, "hidden_size": WIDTH, "num_attention_heads": HEADS, "max_position_embeddings": 32}
GATED = {**SHAPE, "num_key_value_heads": 2, "intermediate_size": NEURONS, "rms_norm_eps": EPS}

CONFIGS = {
    "llama": lambda: LlamaConfig(**GATED, attention_bias=True, mlp_bias=True),
    "mistral": lambda: MistralConfig(**GATED, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**GATED, head_dim=6, attention_bias=True),
    "gemma3": lambda: Gemma3TextConfig(
        **GATED, head_dim=6, sliding_window=4, layer_types=["sliding_attention", "full_attention"]
    ),
    "gpt2": lambda: GPT2Config(
        **COMMON, n_embd=WIDTH, n_head=HEADS, n_positions=32, layer_norm_epsilon=EPS, resid_pdrop=0, attn_pdrop=0, embd_pdrop=0
    ),
    # The next two have no field for the size of a head; the last norms all queries of a token at once.
    "qwen2": lambda: Qwen2Config(**GATED),
    "olmo2": lambda: Olmo2Config(**GATED),
    "neox": lambda: GPTNeoXConfig(**SHAPE, intermediate_size=NEURONS, layer_norm_eps=EPS),
}
RMS_FAMILIES = ["llama", "mistral", "qwen3", "gemma3"]
LAYER_NORM_FAMILIES = ["gpt2", "neox"]
FAMILIES = [*RMS_FAMILIES, *LAYER_NORM_FAMILIES]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randomised(model):
    """Give norms and biases, which begin at one and zero, numbers that show what becomes of them."""
    generator = seeded()
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.15 if parameter.dim() > 1 else 0.3
            parameter.copy_(spread * torch.randn(parameter.shape, generator=generator) + 0.5 * (parameter.dim() == 1))
    return model.eval()


@functools.cache
def _model(family):
    return randomised(AutoModelForCausalLM.from_config(CONFIGS[family]()))


@functools.cache
def anatomy_of(family):
    return dissect(_model(family))


def tiny(family):
    """A model, its anatomy, its tensors by name."""
    model = copy.deepcopy(_model(family))
    return model, anatomy_of(family), dict(model.named_parameters())


def tokens(shape=(2, 10), seed=0):
    return torch.randint(VOCABULARY, shape, generator=seeded(seed))


def logits(model, token_BT=None):
    with torch.no_grad():
        return model(tokens() if token_BT is None else token_BT, use_cache=False).logits


def some_of(layers, seed=0, fraction=0.5):
    """Keep random units, other numbers in every layer."""
    generator = seeded(seed)
    return [torch.rand(units.count, generator=generator) > fraction for units in layers]


def as_many_of(layers, count):
    """Keep the same number of random units in every layer."""
    return [torch.randperm(units.count, generator=seeded(index)) < count for index, units in enumerate(layers)]


def parts_of(family, what):
    """Which units of a model go: (layers, keep) for what a test asks for."""
    _, anatomy, tensors = tiny(family)
    mlps, stream = neurons(anatomy, tensors), [residual(anatomy, tensors)]
    choices = {
        "unlike widths": (mlps, some_of(mlps)),
        "equal widths": (mlps, as_many_of(mlps, 24)),
        "dimensions": (stream, as_many_of(stream, 24)),
        "an odd width": (stream, as_many_of(stream, 21)),
        "both": ([*mlps, *stream], [*as_many_of(mlps, 24), *as_many_of(stream, 20)]),
        "both, unlike": ([*stream, *mlps], [*as_many_of(stream, 19), *some_of(mlps)]),
    }
    return choices[what]


ON_NEURONS = ["unlike widths", "equal widths"]
ON_DIMENSIONS = ["dimensions", "an odd width", "both", "both, unlike"]
CASES = [(family, what) for family in FAMILIES for what in ON_NEURONS]
CASES += [(family, what) for family in RMS_FAMILIES for what in ON_DIMENSIONS]
CASES += [(family, "both") for family in ("qwen2", "olmo2")]
