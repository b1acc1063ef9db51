import json
import shutil

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from pretrained_models import (
    VOCABULARY,
    change_json,
    config_of,
    tokenizer,
    tokens_of,
    write_folder,
    write_gguf,
    write_model,
)
from safetensors.torch import load_file, save_file
from tiny_models import as_many_of, logits, some_of
from transformers import AutoTokenizer, BertConfig, Phi3Config, T5Config

from trainables.llm import pretrained
from trainables.llm.anatomy import neurons
from trainables.llm.dissection import dissect
from trainables.llm.files import load
from trainables.llm.packed_files import FILES, pack_files, unpack_files
from trainables.llm.pretrained import check_pretrained, for_transformers, load_pretrained, model_recipe, tokenizer_recipe
from trainables.llm.shared_model import pack_model, unpack_model
from trainables.llm.surgery import remove
from trainables.llm.tokens import END, tokenizer_of
from trainables.shared import Shared
from trainables.storage import Folder

CPU = torch.device("cpu")
REMEDY = "name a folder of transformers, a .gguf file, or a model of the hub that this machine reaches"
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("llama"), config_of("llama"))


@pytest.fixture
def folder(llama, tmp_path):
    """A copy of a folder, to spoil."""
    return shutil.copytree(llama, tmp_path / "model")


def test_a_folder_is_loaded_in_full_precision(llama, tmp_path):
    write_model(tmp_path / "half", load(llama).to(torch.bfloat16))
    for name in (llama, str(tmp_path / "half")):
        check_pretrained(name)
        model = load_pretrained(name)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert not model.training
    assert torch.equal(logits(load_pretrained(llama), tokens_of()), logits(load(llama), tokens_of()))


def narrowed(name, keep):
    model = load_pretrained(name)
    layers = neurons(dissect(model), dict(model.named_parameters()))
    remove(model, dissect(model), layers, keep(layers))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keep", [some_of, lambda layers: as_many_of(layers, 7)])
def test_a_folder_that_was_narrowed_before_is_loaded_as_it_is(llama, tmp_path, keep, dtype):
    model = narrowed(llama, keep).to(dtype)
    name = write_model(tmp_path, model)
    check_pretrained(name)
    again = load_pretrained(name)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor.to(dtype), model.state_dict()[key]) for key, tensor in again.state_dict().items())


def test_a_gguf_file_is_loaded_with_its_tokenizer(tmp_path):
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    path = str(tmp_path / "tiny.gguf")
    model = write_gguf(path)
    check_pretrained(path)
    loaded = load_pretrained(path)
    assert torch.allclose(logits(loaded, tokens_of()), logits(model, tokens_of()), atol=1e-5)
    assert not hasattr(loaded.config, "quantization_config")
    again = tokenizer_of(unpack_files(tokenizer_recipe(path).make(CPU)))
    text = "def f(x):\n    return x + 1\n"
    assert again.encode([text]) == tokenizer().encode([text])
    assert (again.end_id, again.start_id) == (tokenizer().end_id, None)


@pytest.mark.parametrize("missing", [["gguf"], ["accelerate"], ["gguf", "accelerate"]])
def test_a_library_that_a_gguf_file_needs_is_named(tmp_path, monkeypatch, missing):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None if name in missing else "there")
    with pytest.raises(ImportError, match=f"must be installed to read .*model.gguf, but is not; pip install {' '.join(missing)}"):
        check_pretrained(str(tmp_path / "model.gguf"))


@pytest.mark.parametrize(
    ("name", "content", "law"),
    [
        ("nowhere", None, "a pretrained model must be there, but got .*/nowhere; "),
        ("nowhere.gguf", None, "a GGUF file must be there, but got .*/nowhere.gguf; "),
        ("model.gguf", b"GGML0123", "model.gguf must be a GGUF file, but got another; "),
        ("model.gguf", b"", "model.gguf must be a GGUF file, but got another; "),
        ("notes.txt", b"a text", "'.*/notes.txt' must be a causal language model, but got: .*not a valid JSON file"),
    ],
)
def test_what_is_no_model_is_told_in_a_sentence_before_a_study_starts(tmp_path, name, content, law):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=law) as told:
        model_recipe(str(tmp_path / name)).check_all()
    assert str(told.value).endswith(REMEDY)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("config", "law"),
    [
        ("", "must be a causal language model, but got: .*not a valid JSON file"),
        ("[]", "must be a causal language model, but got: Unrecognized model"),
        ('{"model_type": "own"}', "must be a causal language model, but got: .*model type `own`"),
        ('{"model_type": "own", "auto_map": {"AutoConfig": "theirs.Own"}}', "but got: .*custom code"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "must be a causal language model, but got: .*expected int, got str"),
        ('{"model_type": "llama", "hidden_size": 32, "num_attention_heads": 5}', "but got: .*not a multiple"),
        (
            '{"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "hidden_act": "none"}',
            "narrowed, but got: 'none'",
        ),
        (T5Config, "a config must be of a causal language model that transformers has, but got T5Config"),
        (lambda **shape: BertConfig(is_decoder=True, **shape), r"an embedding, a linear map or a norm, but got cls\.predictions"),
        (lambda **shape: Phi3Config(pad_token_id=0, **shape), r"model\.layers\.0\.mlp\.gate_up_proj fuses gate and up; split it"),
    ],
)
def test_a_structure_that_cannot_be_narrowed_is_named_before_a_study_starts(folder, config, law):
    text = config if isinstance(config, str) else config(**SHAPE).to_json_string()
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=law):
        check_pretrained(str(folder))


def test_a_check_reads_no_weights(folder):
    (folder / "model.safetensors").write_bytes(b"")
    check_pretrained(str(folder))
    with pytest.raises(ValueError, match=r"must be a causal language model, but got: .*; name a folder"):
        load_pretrained(str(folder))


def test_weights_that_would_have_to_be_unpickled_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"must hold \*\.safetensors, but got none; save the model with save_pretrained"):
        check_pretrained(str(folder))
    with pytest.raises(ValueError, match="must be a causal language model, but got"):
        load_pretrained(str(folder))


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_model_of_which_tensors_are_missing_is_refused_by_their_names(folder, name):
    """And not filled up with random numbers."""
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"must hold all tensors of its model, but got none of {name}; name a folder"):
        load_pretrained(str(folder))


def test_a_cut_off_gguf_file_is_told_in_a_sentence(tmp_path):
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03")
    with pytest.raises(ValueError, match=r"cut.gguf' must be a causal language model, but got: .*; name a folder"):
        load_pretrained(str(tmp_path / "cut.gguf"))


def test_running_out_of_memory_is_not_taken_for_a_broken_model(llama, monkeypatch):
    def fail(*_, **__):
        raise MemoryError("no more")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", fail)
    with pytest.raises(MemoryError):
        load_pretrained(llama)


def test_a_tokenizer_comes_as_files_that_give_the_same_tokens(llama, tmp_path):
    files = unpack_files(tokenizer_recipe(llama).make(CPU))
    text, ours = "def f(x):\n    return <|end|>\n", tokenizer_of(files)
    assert ours.encode([text]) == tokenizer().encode([text])
    assert (ours.end_id, ours.start_id) == (tokenizer().end_id, None)
    assert for_transformers(files).keys() == files.keys() - {"narrow_study_ids.json"}
    for name, data in for_transformers(files).items():
        (tmp_path / name).write_bytes(data)
    assert AutoTokenizer.from_pretrained(tmp_path)("def f(x):")["input_ids"] == tokenizer().encode(["def f(x):"])[0]


def test_a_tokenizer_that_starts_every_text_with_a_token_of_its_own_keeps_it(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": END, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {END: {"id": END, "ids": [0], "tokens": [END]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    change_json(folder / "tokenizer_config.json", bos_token=END)
    again = tokenizer_of(unpack_files(tokenizer_recipe(str(folder)).make(CPU)))
    assert (again.start_id, again.end_id) == (0, 0)
    assert again.encode(["a"]) == tokenizer().encode(["a"])  # without it


@pytest.mark.parametrize(("named", "end_id"), [(7, 7), ([5, 6], 5)])
def test_an_end_that_the_tokenizer_does_not_name_is_that_of_the_models_config(folder, named, end_id):
    change_json(folder / "tokenizer_config.json", eos_token=None)
    change_json(folder / "config.json", eos_token_id=named)
    assert tokenizer_of(unpack_files(tokenizer_recipe(str(folder)).make(CPU))).end_id == end_id


@pytest.mark.parametrize("content", [None, b"{"])
def test_a_folder_without_a_tokenizer_is_told_before_a_study_starts(folder, content):
    (folder / "tokenizer.json").unlink()
    if content is not None:
        (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match="model' must have a tokenizer that transformers reads, but got: "):
        tokenizer_recipe(str(folder)).check_all()


def test_a_folder_that_names_no_end_token_is_told_before_a_study_starts(folder):
    change_json(folder / "tokenizer_config.json", eos_token=None)
    change_json(folder / "config.json", eos_token_id=None)
    with pytest.raises(ValueError, match="a tokenizer must have an end token, but got none"):
        tokenizer_recipe(str(folder)).check_all()


def test_a_model_comes_back_from_a_storage_as_it_was_and_is_nobody_elses(llama, tmp_path):
    shared, recipe = Shared(Folder(tmp_path)), model_recipe(llama)
    model = narrowed(llama, some_of)
    for tensors, expected in ((pack_model(model), model), (shared.get(recipe, CPU), load(llama))):
        first, second = unpack_model(tensors), unpack_model(tensors)
        assert torch.equal(logits(first, tokens_of()), logits(expected, tokens_of()))
        assert all(parameter.requires_grad for parameter in first.parameters())
        with torch.no_grad():
            for parameter in first.parameters():
                parameter.zero_()
        assert torch.equal(logits(second, tokens_of()), logits(expected, tokens_of()))
        assert torch.equal(logits(unpack_model(tensors), tokens_of()), logits(expected, tokens_of()))


def test_what_the_name_stands_for_later_changes_nothing_for_a_study(folder, tmp_path):
    shared, recipe = Shared(Folder(tmp_path / "shared")), model_recipe(str(folder))
    expected = logits(unpack_model(shared.get(recipe, CPU)), tokens_of())
    shutil.rmtree(folder)
    again = Shared(Folder(tmp_path / "shared")).get(model_recipe(str(folder)), CPU)
    assert torch.equal(logits(unpack_model(again), tokens_of()), expected)


@pytest.mark.parametrize("family", ["mistral", "gemma3", "gpt2"])
def test_tied_parameters_are_packed_once_and_come_back_tied(family):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config_of(family))
    tensors = pack_model(model)
    assert {name for name in tensors if not name.startswith(FILES)} == dict(model.named_parameters()).keys()
    again = unpack_model(tensors)
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight


def test_files_among_tensors_come_back_whole():
    files = {"a.json": b"{}", "empty": b"", "bytes": bytes(range(256)), "b/c": "ä".encode()}
    tensors = pack_files(files)
    assert all(tensor.dtype == torch.uint8 for tensor in tensors.values())
    assert unpack_files({"model.weight": torch.zeros(1), **tensors}) == files


def test_a_model_of_which_a_storage_has_not_all_is_refused(llama):
    tensors = pack_model(load(llama))
    del tensors["model.norm.weight"]
    with pytest.raises(ValueError, match=r"must hold exactly the tensors of its model, but got missing: \['model.norm.weight'\]"):
        unpack_model(tensors)
