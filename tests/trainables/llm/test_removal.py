import pytest

pytest.importorskip("transformers")

import torch
from tiny_models import (
    CASES,
    CONFIGS,
    EPS,
    FAMILIES,
    LAYER_NORM_FAMILIES,
    RMS_FAMILIES,
    as_many_of,
    logits,
    parts_of,
    seeded,
    some_of,
    tiny,
    tokens,
)

from trainables.llm.anatomy import neurons, residual
from trainables.llm.dissection import dissect
from trainables.llm.gates import NextTokenLoss
from trainables.llm.stock import build_on_meta, changed, next_stock_width, resized_config, shapes_of
from trainables.llm.surgery import remove
from trainables.pruning.scores import SCORES
from trainables.pruning.selection import choose_kept
from trainables.pruning.surgery import mask


def masked_logits(family, layers, keep):
    model, _, tensors = tiny(family)
    for units, keep_H in zip(layers, keep, strict=True):
        mask(tensors, units, keep_H)
    return logits(model)


@pytest.mark.parametrize(("family", "what"), CASES)
def test_removed_is_masked(family, what):
    model, anatomy, _ = tiny(family)
    intact, size = logits(model), model.num_parameters()
    layers, keep = parts_of(family, what)
    remove(model, anatomy, layers, keep)
    expected = masked_logits(family, layers, keep)
    assert (expected - intact).abs().max() > 0.1
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
    assert model.num_parameters() < size


@pytest.mark.parametrize("score", ["attribution", "random"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_scored_ranked_over_all_layers_and_cut(family, score):
    model, anatomy, tensors = tiny(family)
    layers = neurons(anatomy, tensors)
    losses = [NextTokenLoss(model, anatomy, tokens(seed=seed)) for seed in (1, 2)]
    keep = choose_kept(SCORES[score](tensors, layers, losses, seeded()), 0.7)
    remove(model, anatomy, layers, keep)
    torch.testing.assert_close(logits(model), masked_logits(family, layers, keep), rtol=0, atol=1e-5)
    left = [units.count for units in neurons(anatomy, dict(model.named_parameters()))]
    assert left == [int(keep_H.sum()) for keep_H in keep]
    assert left[0] != left[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_smaller_model_has_the_same_anatomy(family):
    model, anatomy, _ = tiny(family)
    layers, keep = parts_of(family, "both, unlike" if family in RMS_FAMILIES else "unlike widths")
    remove(model, anatomy, layers, keep)
    assert dissect(model) == anatomy


def test_configs_say_what_the_model_is():
    sizes = {}
    for family in FAMILIES:
        model, anatomy, _ = tiny(family)
        remove(model, anatomy, *parts_of(family, "both" if family in RMS_FAMILIES else "equal widths"))
        sizes[family] = model.config
    for family in RMS_FAMILIES:
        assert (sizes[family].hidden_size, sizes[family].intermediate_size) == (20, 24)
        assert sizes[family].head_dim == (8 if family in ("llama", "mistral") else 6)
        assert sizes[family].rms_norm_eps == pytest.approx(EPS * 32 / 20)
    assert (sizes["neox"].hidden_size, sizes["neox"].intermediate_size) == (32, 24)
    assert (sizes["gpt2"].n_embd, sizes["gpt2"].n_inner) == (32, 24)


def test_a_width_that_the_stock_class_refuses_is_rounded_up_in_the_config_alone():
    model, anatomy, _ = tiny("llama")
    assert [next_stock_width(model.config, width) for width in (21, 24, 32)] == [24, 24, 32]
    remove(model, anatomy, *parts_of("llama", "an odd width"))
    assert model.config.hidden_size == 24
    assert model.get_input_embeddings().weight.shape[1] == 21


@pytest.mark.parametrize("family", RMS_FAMILIES)
def test_removing_in_two_steps_is_removing_in_one(family):
    model, anatomy, _ = tiny(family)
    first, second = parts_of(family, "both, unlike"), parts_of(family, "both, unlike")
    remove(model, anatomy, *first)
    smaller = dict(model.named_parameters())
    layers = [residual(anatomy, smaller), *neurons(anatomy, smaller)]
    again = some_of(layers, seed=5, fraction=0.3)
    remove(model, anatomy, layers, again)
    both = [keep_H.clone().masked_scatter(keep_H, again_H) for keep_H, again_H in zip(second[1], again, strict=True)]
    torch.testing.assert_close(logits(model), masked_logits(family, second[0], both), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", LAYER_NORM_FAMILIES)
def test_dimensions_under_layer_norm_are_refused_and_the_model_is_unchanged(family):
    model, anatomy, tensors = tiny(family)
    expected, stream = logits(model), [residual(anatomy, tensors)]
    with pytest.raises(ValueError, match=r"under RMSNorm only, but got LayerNorm in .*norm|ln_1"):
        remove(model, anatomy, stream, as_many_of(stream, 24))
    assert torch.equal(logits(model), expected)


def test_a_layer_may_lose_all_its_neurons_where_its_modules_bear_it():
    model, anatomy, tensors = tiny("llama")
    layers = neurons(anatomy, tensors)
    keep = [torch.zeros(40, dtype=torch.bool), torch.ones(40, dtype=torch.bool)]
    remove(model, anatomy, layers, keep)
    torch.testing.assert_close(logits(model), masked_logits("llama", layers, keep), rtol=0, atol=1e-5)
    model, anatomy, tensors = tiny("gpt2")
    layers = neurons(anatomy, tensors)
    with pytest.raises(ValueError, match=r"transformer\.h\.0\.mlp must keep a neuron, as Conv1D"):
        remove(model, anatomy, layers, [torch.zeros(128, dtype=torch.bool), torch.ones(128, dtype=torch.bool)])


def test_choices_that_do_not_fit_are_refused_before_anything_is_changed():
    model, anatomy, tensors = tiny("qwen3")
    expected, layers, stream = logits(model), neurons(anatomy, tensors), residual(anatomy, tensors)
    good, none = torch.arange(40) > 20, torch.zeros(32, dtype=torch.bool)
    with pytest.raises(ValueError, match="one bool for each of the 40 units"):
        remove(model, anatomy, layers, [good, good[1:]])
    with pytest.raises(ValueError, match="must keep a dimension"):
        remove(model, anatomy, [*layers, stream], [good, good, none])
    model.model.norm.variance_epsilon = 0.5
    with pytest.raises(ValueError, match="must have one eps"):
        remove(model, anatomy, [*layers, stream], [good, good, ~none.index_fill(0, torch.tensor([3]), True)])
    model.model.norm.variance_epsilon = EPS
    assert torch.equal(logits(model), expected)


def test_a_size_that_no_field_or_several_hold_is_refused_by_name():
    config = CONFIGS["mistral"]()
    config.sliding_window = 32  # as are the width and the longest sequence, neither of which shows in a shape
    shapes = shapes_of(build_on_meta(config))
    with pytest.raises(ValueError, match=r"must hold the span, 32, but got \['max_position_embeddings', 'sliding_window'\]"):
        resized_config(config, "span", 32, 16, shapes)
    with pytest.raises(ValueError, match=r"must hold the width, 32, but got \[\]"):
        resized_config(config, "width", 32, 16, {**shapes, "lm_head.weight": (1, 1)})
    with pytest.raises(ValueError, match=r"(?s)LlamaConfig must accept .*not a multiple of the number of attention heads"):
        changed(CONFIGS["llama"](), {"hidden_size": 33})


def test_numbers_that_come_out_differently_are_an_error():
    model, anatomy, tensors = tiny("llama")
    model.model.layers[0].register_forward_hook(lambda module, args, output: output * output.shape[-1] / 16)  # in any order
    assert dissect(model) == anatomy
    stream = [residual(anatomy, tensors)]
    with pytest.raises(ValueError, match="must compute what the masked one computes"):
        remove(model, anatomy, stream, as_many_of(stream, 24))


def test_tied_weights_stay_tied_and_parameters_trainable():
    for family in ("mistral", "gemma3", "gpt2"):
        model, anatomy, _ = tiny(family)
        model.get_input_embeddings().weight.requires_grad_(False)
        remove(model, anatomy, *parts_of(family, "unlike widths" if family == "gpt2" else "both"))
        assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
        frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
        assert frozen == [f"{anatomy.embeddings[0]}.weight"]


@pytest.mark.parametrize("family", RMS_FAMILIES)
def test_short_types_are_cut_too(family):
    model, _, _ = tiny(family)
    model.to(torch.bfloat16)
    anatomy = dissect(model)
    remove(model, anatomy, *parts_of(family, "both"))
    expected = masked_logits(family, *parts_of(family, "both"))
    assert logits(model).dtype == torch.bfloat16
    assert (logits(model).float() - expected).abs().max() < 0.1 * expected.abs().max()
