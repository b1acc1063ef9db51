import pytest

pytest.importorskip("transformers")

import torch
from tiny_models import CONFIGS, GATED, SHAPE, randomised, tiny
from torch import nn
from toy_model import Model, ModelWithParts
from transformers import AutoModelForCausalLM, Gemma2Config, GraniteConfig, PhiConfig

from trainables.llm.loss_head import FEW_LOGITS, find_head

MANY = 10**9  # tokens


def made(config):
    return randomised(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("family", CONFIGS)
def test_a_familys_head_is_found_without_its_name(family):
    model, _, _ = tiny(family)
    head = find_head(model, num_tokens=MANY)
    assert head.linear is model.get_output_embeddings()
    assert head.body is model.base_model


def test_a_head_may_have_a_bias():
    assert find_head(made(PhiConfig(**SHAPE, intermediate_size=40)), num_tokens=MANY).linear.bias is not None


@pytest.mark.parametrize("spread", [1.0, 1e-3])
@pytest.mark.parametrize(
    "config", [lambda: Gemma2Config(**GATED, head_dim=6), lambda: GraniteConfig(**GATED, logits_scaling=4.0)]
)
def test_a_family_that_caps_or_scales_its_logits_has_no_head_of_its_own(config, spread):
    """A cap is seen though the model's own logits are too small for it."""
    model = made(config())
    with torch.no_grad():
        model.get_output_embeddings().weight *= spread
    assert find_head(model, num_tokens=MANY) is None


def test_few_logits_are_not_worth_it():
    model = ModelWithParts()
    assert find_head(model, num_tokens=FEW_LOGITS // 13) is None
    assert model.modes == []
    assert find_head(model, num_tokens=FEW_LOGITS // 13 + 1) is not None
    assert model.modes == [False]


class ReadsOther(ModelWithParts):
    """Something stands between body and head."""

    def forward(self, token_BT, *, use_cache):
        output = super().forward(token_BT, use_cache=use_cache)
        output.logits = self.head(self.body(token_BT, use_cache=False)[0] * 1.01)
        return output


class OddHead(ModelWithParts):
    """The head is a linear map and more."""

    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(self.head, nn.Tanh())


@pytest.mark.parametrize("kind", [Model, ReadsOther, OddHead])
def test_without_parts_that_make_the_logits_there_is_no_head(kind):
    assert find_head(kind(), num_tokens=MANY) is None


def test_looking_for_a_head_leaves_a_model_as_it_was():
    model = ModelWithParts().train()
    find_head(model, num_tokens=MANY)
    assert model.training
    assert not model.head._forward_hooks
    assert all(parameter.grad is None for parameter in model.parameters())
