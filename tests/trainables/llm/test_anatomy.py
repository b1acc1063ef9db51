import copy

import pytest

pytest.importorskip("transformers")

import torch
from tiny_models import FAMILIES, GATED, NEURONS, RMS_FAMILIES, SHAPE, WIDTH, anatomy_of, randomised, tiny
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    MambaConfig,
    MixtralConfig,
    OlmoConfig,
    OPTConfig,
    Phi3Config,
    Qwen2MoeConfig,
)

from trainables.llm.anatomy import neurons, residual
from trainables.llm.dissection import dissect
from trainables.llm.probing import NormKind, embedding_scale, norm_kind, orientation_of
from trainables.llm.stock import build_on_meta

EXPERTS = {"num_experts": 4, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}


@pytest.mark.parametrize("family", FAMILIES)
def test_neurons_are_found_in_every_block(family):
    model, anatomy, tensors = tiny(family)
    layers = neurons(anatomy, tensors)
    gated = family in RMS_FAMILIES
    assert [units.count for units in layers] == [128 if family == "gpt2" else NEURONS] * 2
    assert [units.kind for units in layers] == ["gated_neuron" if gated else "neuron"] * 2
    for block, units in zip(anatomy.blocks, layers, strict=True):
        inside = {name for name in tensors if name.startswith(f"{block.mlp.name}.")}
        assert {member.parameter for member in units.members} == inside - {f"{block.mlp.down.name}.bias"}
        assert model.get_submodule(block.name) is not None


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dimension_lies_once_in_every_parameter_that_meets_the_residual_stream(family):
    _, anatomy, tensors = tiny(family)
    units = residual(anatomy, tensors)
    names = [member.parameter for member in units.members]
    assert units.count == WIDTH
    assert len(names) == len(set(names))
    inner = ("q_norm.", "k_norm.", "q_proj.bias", "k_proj.bias", "v_proj.bias", "gate_proj.bias", "up_proj.bias")
    plain = ("c_attn.bias", "c_fc.bias", "query_key_value.bias", "dense_h_to_4h.bias")
    assert set(names) == {name for name in tensors if not any(part in name for part in (*inner, *plain))}


def test_conv1d_is_told_from_linear_where_its_weight_is_square():
    _, anatomy, tensors = tiny("gpt2")
    (writer,) = anatomy.blocks[0].writers
    assert tensors[writer.weight].shape == (WIDTH, WIDTH)
    assert writer.orientation == "in_out"
    assert orientation_of(nn.Linear(4, 4)) == orientation_of(type("Own", (nn.Linear,), {})(4, 4)) == "out_in"
    assert orientation_of(nn.LayerNorm(4)) is None


def test_norms_are_told_by_what_they_compute():
    expected = {"llama": NormKind(False, 0), "gemma3": NormKind(False, 1), "gpt2": NormKind(True, 0), "neox": NormKind(True, 0)}
    for family, kind in expected.items():
        norms = anatomy_of(family).norms
        assert {NormKind(norm.is_centred, norm.offset) for norm in norms} == {kind}
        assert len(norms) == (9 if family == "gemma3" else 5)
        assert anatomy_of(family).final_norm == norms[-1]
    assert norm_kind(nn.BatchNorm1d(4)) is None


def test_norms_of_queries_and_keys_are_known_with_what_feeds_them():
    for family in ("qwen3", "gemma3"):
        inner = anatomy_of(family).inner_norms
        feeds = {norm.name.split("self_attn.")[1]: norm.source.name.split("self_attn.")[1] for norm in inner}
        assert feeds == {"q_norm": "q_proj", "k_norm": "k_proj"}
        assert len(inner) == 4


def test_the_multiplier_of_an_embedding_is_seen():
    model, anatomy, _ = tiny("gemma3")
    assert embedding_scale(model.get_submodule(anatomy.embeddings[0])) == pytest.approx(WIDTH**0.5)
    model, anatomy, _ = tiny("gpt2")
    assert [embedding_scale(model.get_submodule(name)) for name in anatomy.embeddings] == pytest.approx([1, 1])


def test_projections_may_lie_in_the_block_itself():
    config = OPTConfig(
        vocab_size=61, hidden_size=WIDTH, num_hidden_layers=2, ffn_dim=NEURONS, num_attention_heads=4, word_embed_proj_dim=WIDTH,
        max_position_embeddings=32,
    )  # fmt: skip
    model = randomised(AutoModelForCausalLM.from_config(config))
    anatomy = dissect(model)
    assert [units.count for units in neurons(anatomy, dict(model.named_parameters()))] == [NEURONS] * 2
    assert len(anatomy.embeddings) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_without_numbers_has_the_same_anatomy(family):
    model, anatomy, _ = tiny(family)
    assert dissect(build_on_meta(model.config)) == anatomy


@pytest.mark.parametrize(
    ("config", "module"),
    [
        (lambda: MixtralConfig(**GATED, num_local_experts=4), r"model\.layers\.0\.mlp\.\w+"),
        (lambda: Qwen2MoeConfig(**GATED, **EXPERTS), r"model\.layers\.0\.mlp\.\w+"),
        (lambda: Phi3Config(**GATED), r"model\.layers\.0\.mlp\.gate_up_proj fuses gate and up"),
        (lambda: OlmoConfig(**{key: value for key, value in GATED.items() if key != "rms_norm_eps"}), "layers.0.input_layernorm"),
        (lambda: MambaConfig(**SHAPE), r"backbone\.layers\.0\.mixer\.conv1d"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(config, module):
    with pytest.raises(ValueError, match=module):
        dissect(AutoModelForCausalLM.from_config(config()))


def spoil_with(model, name, module):
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


class TwoMlps(nn.Module):
    def __init__(self, mlp):
        super().__init__()
        self.first, self.second = mlp, copy.deepcopy(mlp)

    def forward(self, x):
        return self.first(x) + self.second(x)


def test_structures_of_ones_own_are_refused_by_name():
    model, _, _ = tiny("llama")
    spoil_with(model, "model.layers.1.mlp", TwoMlps(model.model.layers[1].mlp))
    with pytest.raises(ValueError, match=r"model\.layers\.1 must have one MLP.*mlp\.first.*mlp\.second"):
        dissect(model)
    model, _, _ = tiny("llama")
    model.model.spare = nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"model\.spare \(Linear\) used 0 times"):
        dissect(model)
    model, _, _ = tiny("llama")
    model.model.others = nn.ModuleList([nn.Linear(4, 4)])
    with pytest.raises(ValueError, match=r"one stack|model\.others\.0"):
        dissect(model)
    model, _, _ = tiny("llama")
    model.model.layers[1].mlp.gate_proj.weight = model.model.layers[0].mlp.gate_proj.weight
    with pytest.raises(ValueError, match="only may share a parameter"):
        dissect(model)


@pytest.mark.parametrize(
    ("module", "named"),
    [("model.layers.0", "residual"), ("model.layers.1.mlp.act_fn", r"model\.layers\.1\.mlp")],
)
def test_what_the_modules_do_not_show_is_seen_in_the_numbers(module, named):
    model, _, _ = tiny("llama")
    model.get_submodule(module).register_forward_hook(lambda module, args, output: output.roll(1, -1))
    with pytest.raises(ValueError, match=f"units of {named} must lie"):
        dissect(model)


def test_dissecting_leaves_the_model_as_it_was():
    model, _, _ = tiny("gemma3")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    model.model.layers[0].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    dissect(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert not any(module._forward_hooks for module in model.modules())
