"""Tiny models whose heads differ, beside the families of `tiny_models`."""

from tiny_models import GATED, SHAPE, randomised, tiny
from transformers import AutoModelForCausalLM, Gemma2Config, GraniteConfig, PhiConfig

BIASED = {"a head with a bias": lambda: PhiConfig(**SHAPE, intermediate_size=40)}
CHANGED = {  # what the model says is not what its head does
    "capped": lambda: Gemma2Config(**GATED, head_dim=6),
    "scaled": lambda: GraniteConfig(**GATED, logits_scaling=4.0),
}


def model_of(family):
    """A random model of a family, here or there."""
    others = BIASED | CHANGED
    return randomised(AutoModelForCausalLM.from_config(others[family]())) if family in others else tiny(family)[0]
