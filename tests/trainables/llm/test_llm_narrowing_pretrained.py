import dataclasses
import functools
import json
import tempfile
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from narrowing_trials import CPU, TINY, finished, go_on, rebuilt, same, through_a_file, write_rows
from pretrained_models import change_json, config_of, tokenizer, tokens_of, write_folder, write_gguf, write_model
from tiny_models import logits
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainables.experiment import build_experiment
from trainables.llm.anatomy import neurons, residual
from trainables.llm.corpus import Corpus
from trainables.llm.corpus_documents import CorpusConfig
from trainables.llm.dissection import dissect
from trainables.llm.narrowing import Narrowing
from trainables.llm.narrowing_config import METHODS, PRUNING
from trainables.llm.pretrained import load_pretrained
from trainables.llm.surgery import remove
from trainables.llm.training import Training
from trainables.model_files import load_model, save_model
from trainables.shared import Shared
from trainables.storage import Folder

SHORT = Training(updates=2, batch_size=2, length=16, warmup=0)
SIZES = {"llama": (24, 40), "mistral": (24, 40), "qwen3": (24, 40), "gemma3": (24, 40), "gpt2": (32, 128)}
"""Dimensions and neurons that are left of 32 and of 2 x 40, or 2 x 128."""
SHORTER = ("group_lasso", "attribution", "distillation")
"""Ways that have a stage or a model of their own."""
CASES = [(family, method) for family in SIZES for method in (METHODS if family in ("llama", "gpt2") else SHORTER)]


@functools.cache
def kept_folder():
    return tempfile.TemporaryDirectory()


def place():
    """A folder that lasts as long as the tests."""
    return Path(kept_folder().name)


@functools.cache
def folder_of(family):
    return write_folder(place() / family, config_of(family))


@functools.cache
def corpus_config():
    return CorpusConfig(sources=(write_rows(place()),))


def config_for(name, method="random", **changes):
    """A short trial that narrows a pretrained model."""
    fields = {
        "base": dataclasses.replace(TINY.base, pretrained=str(name)), "corpus": corpus_config(), "window_length": 16,
        "lasso": SHORT, "recovery": SHORT, "relearning": dataclasses.replace(SHORT, updates=1), "relearning_rates": (1e-3,),
    }  # fmt: skip
    return dataclasses.replace(TINY, method=method, **(fields | changes))


def begin(config):
    return build_experiment(Narrowing, config, device=CPU, shared=Shared(Folder(place() / "shared")))


@functools.cache
def narrowed(family, method):
    """A whole trial, its last report, and the folder of its model."""
    experiment = begin(config_for(folder_of(family), method, residual_sparsity=0.0 if family == "gpt2" else 0.25))
    last, out = go_on(experiment)[-1], place() / f"{family}-{method}"
    save_model(Folder(out), "llm_narrowing", experiment.config, experiment.model_tensors(), experiment.model_files())
    return experiment, last, out


@pytest.mark.parametrize(("family", "method"), CASES)
def test_a_pretrained_model_of_any_family_is_narrowed_to_the_end_in_every_way(family, method):
    experiment, last, out = narrowed(family, method)
    assert experiment.progress == 1.0
    assert (last["dimensions_kept"], last["neurons_kept"]) == SIZES[family]
    model = load_model(out)
    assert type(model) is type(load_pretrained(folder_of(family)))
    assert torch.equal(logits(model, tokens_of()), logits(experiment._model, tokens_of()))
    assert sum(parameter.numel() for parameter in model.parameters()) == last["parameters_kept"]
    assert method not in PRUNING or last["pruned_loss_nats"] != last["kept_loss_nats"]


@pytest.mark.parametrize(
    ("family", "method"), [(family, method) for family in SIZES for method in ("attribution", "distillation")]
)
def test_the_folder_of_a_narrowed_model_loads_with_transformers(family, method, tmp_path, monkeypatch):
    """With its code where blocks are unlike."""
    _, _, out = narrowed(family, method)
    has_code = (out / "modeling_narrowed.py").exists()
    assert has_code == (method == "attribution")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=has_code)
    assert torch.allclose(logits(model, tokens_of()), logits(load_model(out), tokens_of()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", SIZES)
def test_a_narrowed_models_folder_has_the_tokenizer_of_its_base(family):
    text = "def f(x):\n    return x + 1\n"
    for name in (folder_of(family), narrowed(family, "attribution")[2]):
        theirs = AutoTokenizer.from_pretrained(name)
        assert theirs(text)["input_ids"] == tokenizer().encode([text])[0]
        assert theirs.eos_token_id == tokenizer().end_id
    assert Corpus.of(narrowed(family, "attribution")[0]._given["corpus"]).end_id == tokenizer().end_id


def test_a_gguf_file_is_narrowed_as_the_model_that_it_holds(tmp_path):
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    model = write_gguf(str(tmp_path / "tiny.gguf"))
    names = tmp_path / "tiny.gguf", write_model(tmp_path / "same", model)
    reports = [begin(config_for(name, "attribution")).step() for name in names]
    assert reports[0] == pytest.approx(reports[1], abs=1e-5)


def left_of(name, num_neurons, num_dimensions, out):
    """A folder with the first units of a model alone."""
    model = load_pretrained(name)
    anatomy, tensors = dissect(model), dict(model.named_parameters())
    layers = [*neurons(anatomy, tensors), residual(anatomy, tensors)]
    counts = zip(layers, (*num_neurons, num_dimensions), strict=True)
    remove(model, anatomy, layers, [torch.arange(units.count) < count for units, count in counts])
    return write_model(out, model)


@pytest.mark.parametrize(
    ("method", "num_neurons", "num_dimensions", "residual_sparsity", "expected"),
    [
        ("attribution", (30, 10), 32, 0.25, (24, 20)),
        ("distillation", (30, 10), 32, 0.25, (24, 20)),
        ("weight_norm", (0, 21), 32, 0.0, (32, 11)),
        # no width of the stock class, which takes multiples of four: it stays, and a small model has the next one
        ("attribution", (30, 10), 21, 0.0, (21, 20)),
        ("distillation", (30, 10), 21, 0.0, (24, 20)),
    ],
)
def test_a_folder_that_was_narrowed_before_is_narrowed_again(
    tmp_path, method, num_neurons, num_dimensions, residual_sparsity, expected
):
    name = left_of(folder_of("llama"), num_neurons, num_dimensions, tmp_path / "base")
    experiment = begin(config_for(name, method, residual_sparsity=residual_sparsity))
    last = go_on(experiment)[-1]
    assert (last["dimensions_kept"], last["neurons_kept"]) == expected
    assert torch.equal(logits(rebuilt(experiment), tokens_of()), logits(experiment._model, tokens_of()))


def test_the_model_of_a_trial_is_the_base_of_another(tmp_path):
    """The folder of an embedded model, whose tokenizer the study trained."""
    experiment, reports = finished("weight_norm")
    save_model(Folder(tmp_path), "llm_narrowing", experiment.config, experiment.model_tensors(), experiment.model_files())
    config = config_for(tmp_path, window_length=TINY.window_length, neuron_sparsity=0.0, residual_sparsity=0.0)
    again = begin(dataclasses.replace(config, evaluation_windows=TINY.evaluation_windows))
    report = again.step()
    windows = [Corpus.of(each._given["corpus"]).windows("python", 32, 9) for each in (experiment, again)]
    assert torch.equal(*windows)
    assert report["pruned_loss_nats"] == pytest.approx(reports[-1]["kept_loss_nats"], abs=1e-6)
    assert report["parameters_kept"] == reports[-1]["parameters_kept"]


@pytest.mark.parametrize(("family", "method"), [("gemma3", "attribution"), ("mistral", "group_lasso"), ("gpt2", "distillation")])
def test_saving_and_loading_changes_nothing(family, method):
    experiment, last, _ = narrowed(family, method)
    again = begin(experiment.config)
    while again.progress < 1.0:
        state = through_a_file(again.state_dict())
        again = begin(experiment.config)
        again.load_state_dict(state)
        report = again.step()
    assert report == last
    assert same(again.model_tensors(), experiment.model_tensors())


def test_a_family_with_dropout_gives_the_same_numbers_again(tmp_path):
    """As does going on after each step; and the global generator is left alone."""
    rates = dict.fromkeys(("resid_pdrop", "attn_pdrop", "embd_pdrop"), 0.2)
    name = write_folder(tmp_path, config_of("gpt2", **rates))
    config = config_for(name, "group_lasso", residual_sparsity=0.0, updates_per_step=1)
    reports = []
    for seed, is_interrupted in ((1, False), (2, True)):
        torch.manual_seed(seed)
        state, experiment = torch.get_rng_state(), begin(config)
        reports.append([])
        while experiment.progress < 1.0:
            reports[-1].append(experiment.step())
            if is_interrupted:
                saved, experiment = experiment.state_dict(), begin(config)
                experiment.load_state_dict(saved)
        assert torch.equal(torch.get_rng_state(), state)
    assert reports[0] == reports[1]


@pytest.mark.parametrize(
    ("method", "law"),
    [
        ("group_lasso", "residual_sparsity must be 0 to prune a model with LayerNorm, .* but got 0.25; remove neurons only"),
        ("from_scratch", "one field of the config must hold the width of the residual stream, 32"),  # heads follow the width
    ],
)
def test_residual_dimensions_of_a_model_with_layer_norm_stay_and_that_is_told_before_anything_is_trained(method, law):
    with pytest.raises(ValueError, match=law):
        begin(config_for(folder_of("gpt2"), method, residual_sparsity=0.25)).state_dict()


def test_a_residual_sparsity_that_takes_no_dimension_is_allowed_under_layer_norm():
    assert begin(config_for(folder_of("gpt2"), residual_sparsity=0.01)).step()["dimensions_kept"] == 32


def test_what_a_model_holds_beside_its_parameters_stays_in_it(tmp_path):
    """A family with numbers in its state that are not trained."""
    gemma4 = getattr(pytest.importorskip("transformers"), "Gemma4TextConfig", None)
    if gemma4 is None:
        pytest.skip("this transformers has no Gemma 4")
    shape = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    heads = {"num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 8, "num_kv_shared_layers": 0, "sliding_window": 8}
    layers = {"layer_types": ["sliding_attention", "full_attention"], "hidden_size_per_layer_input": 0}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model = AutoModelForCausalLM.from_config(gemma4(**shape, **heads, **layers, **ids))
    model.get_buffer("model.layers.1.layer_scalar").fill_(0.25)
    config = config_for(write_model(tmp_path / "base", model), "attribution", residual_sparsity=0.0)
    experiment = begin(config)
    again = begin(config)
    again.load_state_dict(through_a_file(experiment.state_dict()))
    assert again.step() == experiment.step()
    assert float(rebuilt(again).get_buffer("model.layers.1.layer_scalar")) == 0.25


def test_a_start_token_stands_before_every_window_of_a_model_that_knows_one(tmp_path):
    name = write_folder(tmp_path, config_of("llama"))
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    end = content["added_tokens"][0]["content"]
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": end, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {end: {"id": end, "ids": [0], "tokens": [end]}},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    change_json(tmp_path / "tokenizer_config.json", bos_token=end)
    corpus = Corpus.of(begin(config_for(name))._given["corpus"])
    assert (corpus.windows("python", 16, 4)[:, 0] == corpus.start_id).all()


def test_a_tokenizer_that_a_model_does_not_know_is_refused(tmp_path):
    name = write_folder(tmp_path, config_of("llama", vocab_size=200))
    law = r"a tokenizer must fit the model, with tokens in 0\.\.199, but got a token 2\d\d; use the model's own"
    with pytest.raises(ValueError, match=law):
        begin(config_for(name)).step()


def test_sequences_longer_than_a_pretrained_model_takes_are_refused_by_name():
    """It takes 32."""
    config = config_for(folder_of("gpt2"), residual_sparsity=0.0)
    longer = dataclasses.replace(config, recovery=dataclasses.replace(SHORT, length=33))
    with pytest.raises(ValueError, match=r"recovery\.length must be at most the model's limit of 32 tokens, but got 33"):
        begin(longer).step()
    begin(dataclasses.replace(config, window_length=31, method="attribution")).step()
