import json
import sys

import pytest

pytest.importorskip("transformers")

import torch
from safetensors.torch import load_file, save_file
from tiny_models import CASES, as_many_of, logits, parts_of, tiny, tokens
from transformers import AutoModelForCausalLM

from trainables.llm import reloading
from trainables.llm.anatomy import neurons
from trainables.llm.dissection import dissect
from trainables.llm.files import CODE_FILE, CONFIG_FILE, TENSORS_FILE, load, needs_code, save
from trainables.llm.reloading import check_reload, check_reloads
from trainables.llm.surgery import remove

NEEDS_CODE = {"unlike widths", "both, unlike"}


def cut(family, what):
    model, anatomy, _ = tiny(family)
    remove(model, anatomy, *parts_of(family, what))
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Every family, cut in every way, with its folder."""
    place = tmp_path_factory.mktemp("saved")
    models = {case: (place / f"{index}", cut(*case)) for index, case in enumerate(CASES)}
    model, anatomy, tensors = tiny("llama")
    remove(model, anatomy, neurons(anatomy, tensors), [torch.arange(40) < 0, torch.arange(40) < 9])
    models["llama", "an empty layer"] = (place / "empty", model)
    for folder, model in models.values():
        save(model, folder)
    save(cut("gemma3", "both, unlike").to(torch.bfloat16), place / "long")
    short = load(place / "long")
    save(short, place / "short")
    return {**models, ("gemma3", "bfloat16"): (place / "short", short)}


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """Folders whose model is not what was saved there."""
    place = tmp_path_factory.mktemp("spoilt")
    model, spoilt = cut("llama", "equal widths"), {}
    for name, edit in {
        "other": lambda tensors: tensors["lm_head.weight"].mul_(1.01),
        "nan": lambda tensors: tensors["lm_head.weight"].fill_(torch.nan),
        "missing": lambda tensors: tensors.pop("lm_head.weight"),
        "left over": lambda tensors: tensors.update(extra=torch.zeros(1)),
        "cut off": None,
    }.items():
        save(model, place / name)
        spoilt[name] = (place / name, model)
        if edit is None:
            (place / name / TENSORS_FILE).write_bytes(b"")
        else:
            edited(place / name, edit)
    return spoilt


@pytest.fixture(scope="module")
def answers(saved, spoilt):
    """What a fresh process made of every folder; one process, as its start takes seconds."""
    folders = [folder for folder, _ in (*saved.values(), *spoilt.values())]
    return dict(zip(folders, reloading._answers(folders, tokens()), strict=True))


@pytest.fixture
def from_fresh_process(answers, monkeypatch):
    monkeypatch.setattr(reloading, "_answers", lambda folders, token_BT: [answers[folder] for folder in folders])


def test_folders_reload_in_a_fresh_process_with_the_same_logits(saved, from_fresh_process):
    assert len(saved) == len(CASES) + 2
    assert max(check_reloads(list(saved.values()), tokens())) <= 1e-5


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("other", r"must give the logits of the model that was saved there, to 1e-05, but got a difference of 0\.0"),
        ("nan", "a difference of inf"),
        ("missing", r"no other, but got {'missing_keys': \['lm_head.weight'\]}"),
        ("left over", r"no other, but got {'unexpected_keys': \['extra'\]}"),
        ("cut off", r"must load in a fresh process, .* but got {'SafetensorError': "),
    ],
)
def test_a_reload_that_differs_is_an_error(spoilt, from_fresh_process, name, told):
    with pytest.raises(ValueError, match=told):
        check_reload(*spoilt[name], tokens())


@pytest.mark.parametrize(("family", "what"), CASES)
def test_code_is_written_only_where_a_config_cannot_say_it(saved, family, what):
    folder, model = saved[family, what]
    refused = (family, what) in {("llama", "an odd width"), ("gemma3", "an odd width")}  # not a multiple of the heads
    assert needs_code(folder) == (folder / CODE_FILE).exists() == (what in NEEDS_CODE or refused)
    config = json.loads((folder / CONFIG_FILE).read_text())
    assert config["model_type"] == model.config.model_type
    assert config["architectures"] == [type(model).__name__]
    assert ("narrowed" in config) == needs_code(folder)


@pytest.mark.parametrize(("family", "what"), CASES)
def test_our_loader_gives_the_same_logits_and_generates(saved, family, what):
    folder, model = saved[family, what]
    loaded = load(folder)
    assert type(loaded) is type(model)
    assert torch.equal(logits(loaded), logits(model))
    first, second = (one.generate(tokens()[:1], max_new_tokens=4, do_sample=False, pad_token_id=0) for one in (loaded, model))
    assert torch.equal(first, second)
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("what", ["equal widths", "both"])
def test_stock_folders_load_and_generate_with_transformers_and_no_code(saved, what):
    for family, part in CASES:
        if part == what:
            folder, model = saved[family, what]
            loaded = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
            torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-5)
            assert loaded.generate(tokens()[:1], max_new_tokens=3, do_sample=False, pad_token_id=0).shape[1] > 10


def test_a_loaded_model_can_be_cut_and_saved_again(saved, tmp_path):
    for key in (("gemma3", "both, unlike"), ("gpt2", "unlike widths")):
        model = load(saved[key][0])
        anatomy = dissect(model)
        layers = neurons(anatomy, dict(model.named_parameters()))
        remove(model, anatomy, layers, as_many_of(layers, 5))
        expected = logits(model)
        assert save(model, tmp_path / key[0]) == (key[0] == "gemma3")  # its width is not of the stock class
        assert torch.equal(logits(load(tmp_path / key[0])), expected)


def test_types_are_kept(saved):
    folder, model = saved["gemma3", "bfloat16"]
    loaded = load(folder)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert torch.equal(logits(loaded), logits(model))


def test_our_loader_executes_no_file_of_the_folder(tmp_path):
    model = cut("llama", "unlike widths")
    save(model, tmp_path)
    marker = tmp_path / "executed"
    for name in (CODE_FILE, "configuration_narrowed.py", "__init__.py", "modeling.py"):
        (tmp_path / name).write_text(f"open({str(marker)!r}, 'w').close()\n")
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    stem = CODE_FILE.removesuffix(".py")
    config["auto_map"] |= {"AutoConfig": f"{stem}.NarrowedConfig", "AutoModel": f"{stem}.Narrowed"}
    config |= {"quantization_config": {"quant_method": "gptq", "bits": 4}, "attn_implementation": "somebody/kernel"}
    config["inner"] = [{"_attn_implementation": "somebody/kernel", "width": 3}]
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    before = set(sys.modules)
    loaded = load(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.config.inner == [{"width": 3}]
    assert not marker.exists()
    assert not any("narrowed" in name for name in set(sys.modules) - before)


def edited(folder, edit):
    tensors = load_file(folder / TENSORS_FILE)
    edit(tensors)
    save_file(tensors, folder / TENSORS_FILE, metadata={"format": "pt"})


DOWN = "model.layers.1.mlp.down_proj.weight"
TAMPERING = [
    (lambda tensors: tensors.pop(DOWN), rf"missing: \['{DOWN}'\], left over: \[\]"),
    (lambda tensors: tensors.update(extra=torch.zeros(1)), r"left over: \['extra'\]"),
    (lambda tensors: tensors.update({DOWN: torch.zeros(32, 3)}), rf"of other shapes: {{'{DOWN}': '\(32, 3\) for \(32, \d+\)'}}"),
    (lambda tensors: tensors.pop("model.embed_tokens.weight"), r"missing: \['lm_head.weight', 'model.embed_tokens.weight'\]"),
]


@pytest.mark.parametrize(("edit", "told"), TAMPERING)
def test_folders_with_other_tensors_are_refused_by_name(tmp_path, edit, told):
    save(cut("mistral", "unlike widths"), tmp_path)
    edited(tmp_path, edit)
    with pytest.raises(ValueError, match=told):
        load(tmp_path)


def test_broken_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must hold config\.json and model\.safetensors, whole"):
        load(tmp_path)
    save(cut("llama", "unlike widths"), tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    for change, told in [
        ({"model_type": "own"}, "must name a model_type"),
        ({"num_attention_heads": 5}, "not a multiple"),
        ({"narrowed": {"model.spare": {"numbers": {}, "shapes": {}}}}, r"model\.spare"),
        ({"narrowed": {"model.norm": {"numbers": {"forward": 1}, "shapes": {}}}}, r"model\.norm\.forward"),
        ({"narrowed": {"model.norm": {"numbers": {}, "shapes": {"gate": [1]}}}}, r"model\.norm\.gate"),
    ]:
        (tmp_path / CONFIG_FILE).write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=told):
            load(tmp_path)
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    whole = (tmp_path / TENSORS_FILE).read_bytes()
    (tmp_path / TENSORS_FILE).write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="whole, but got"):
        load(tmp_path)
