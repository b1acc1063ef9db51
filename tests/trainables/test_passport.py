"""What a passport tells, and when it is written."""

import json
import logging
import os
import sys

import own_experiment
import pytest
import torch
from own_experiment import Asked, Plain
from safetensors.torch import load_file

from trainables.experiment import Account, Removal
from trainables.model_files import load_model, save_model
from trainables.passport import Making, add_origin, inputs_of, num_parameters, read_passport, seal_of, tensor_digest
from trainables.shared import Recipe, Shared
from trainables.storage import Folder

ASKED = "own_experiment:Asked"
CONFIG = Asked.Config()
TENSORS = {"x": torch.tensor([0.0, 1.0, 2.0])}


def save(folder, name=ASKED, **making):
    save_model(Folder(folder), name, CONFIG, TENSORS, {"notes.txt": b"hello"}, Making(metrics={"loss": 0.5}, **making))
    return read_passport(folder)


def test_a_passport_names_every_other_file_with_its_digest_and_is_sealed(tmp_path):
    passport = save(tmp_path)
    assert passport["files"].keys() == {path.name for path in tmp_path.iterdir()} - {"passport.json"}
    assert passport["experiment"] == ASKED
    assert passport["config"] == {"size": 3}
    assert passport["metrics"] == {"loss": 0.5}
    assert passport["parameters"] == 3
    assert passport["candidate"] is None
    assert passport["environment"]["torch"] == torch.__version__
    assert passport["seal"] == seal_of(passport)
    assert passport["seal"] != seal_of(passport | {"metrics": {"loss": 0.4}})


def test_the_same_model_has_the_same_files_to_the_last_byte(tmp_path):
    for name in ("one", "other"):
        save(tmp_path / name, account=Account(evidence={"b": torch.ones(2), "a": torch.zeros(2)}))
    contents = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "other")]
    assert contents[0] == contents[1]


def test_evidence_answers_and_units_travel_in_one_file_that_holds_no_pickle(tmp_path):
    keep_H = torch.tensor([True, False, True, True])
    account = Account(
        evidence={"text": torch.tensor([7], dtype=torch.uint16)},
        read={"corpus": "0123", "windows": torch.tensor([[1, 2]])},
        removal=Removal(score="ablation", kept={"layer0": keep_H, "layer1": keep_H}),
    )
    passport = save(tmp_path, account=account, candidate=4)
    proof = load_file(tmp_path / "passport.tensors")
    assert proof.keys() == {"evidence/text", "probe/twice", "kept/layer0", "kept/layer1"}
    assert proof["kept/layer0"].tolist() == keep_H.tolist()
    assert proof["probe/twice"].tolist() == [0, 2, 4]
    assert passport["removal"] == {"score": "ablation", "sparsity": 0.25, "kept_of": {"layer0": [3, 4], "layer1": [3, 4]}}
    assert passport["read"] == {"corpus": "0123", "windows": tensor_digest(torch.tensor([[1, 2]]))}
    assert passport["candidate"] == 4


def test_a_digest_of_a_tensor_is_of_its_type_shape_and_numbers():
    tensors = [torch.zeros(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32), torch.ones(4), torch.zeros(0)]
    assert len({tensor_digest(tensor) for tensor in tensors}) == len(tensors)
    assert tensor_digest(torch.arange(4).view(2, 2).T) == tensor_digest(torch.tensor([[0, 2], [1, 3]]))


def test_inputs_are_told_with_their_ingredients_and_the_digest_of_what_was_read(tmp_path):
    corpus = Recipe(name="corpus", ingredients={"seed": 1}, make=lambda device: {"x": torch.zeros(2)})
    base = Recipe(name="base", ingredients={"width": 2}, make=lambda device, given: given["corpus"], needs={"corpus": corpus})
    shared = Shared(Folder(tmp_path))
    shared.get(base, torch.device("cpu"))
    told = inputs_of({"base": base}, shared.digests)
    assert told["base"]["ingredients"] == {"width": 2}
    assert told["base"]["needs"] == {"corpus": corpus.key}
    assert any(path.name == f"{base.key}-{told['base']['digest']}.safetensors" for path in tmp_path.iterdir())


@pytest.mark.parametrize(("name", "error"), [("Broken", "NotImplementedError: later"), ("Talkative", "at most 1048576 bytes")])
def test_a_model_that_cannot_be_asked_is_saved_without_answers_and_the_log_says_why(tmp_path, caplog, name, error):
    with caplog.at_level(logging.ERROR, logger="trainables"):
        passport = save(tmp_path, name=f"own_experiment:{name}")
    assert error in caplog.text
    assert passport["parameters"] is None
    assert (tmp_path / "model.safetensors").exists()


def test_a_model_of_code_outside_of_any_checkout_has_no_commit(tmp_path, monkeypatch):
    (tmp_path / "own_elsewhere.py").write_text("from own_experiment import Plain\nclass Own(Plain):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert save(tmp_path / "model", name="own_elsewhere:Own")["commit"] is None


def test_an_origin_is_added_under_a_new_seal_and_only_to_a_passport_that_is_whole(tmp_path):
    before = save(tmp_path)
    add_origin(tmp_path, {"study": "first", "trial": 3})
    after = read_passport(tmp_path)
    assert after == before | {"origin": {"study": "first", "trial": 3}, "seal": seal_of(after)}
    (tmp_path / "passport.json").write_text(json.dumps(after | {"metrics": {"loss": 0.1}}))
    with pytest.raises(ValueError, match=r"passport.json must be as it was sealed.*; download the model again"):
        add_origin(tmp_path, {"study": "second"})


@pytest.mark.parametrize("content", [None, "[]", "{", '{"format": 2}', "\xff"])
def test_what_is_no_passport_of_this_format_is_told_in_a_sentence(tmp_path, content):
    if content is not None:
        (tmp_path / "passport.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"a model folder must hold a passport.json of format 1, but .*; "):
        read_passport(tmp_path)


def test_parameters_are_counted_in_modules_lists_and_dicts_shared_ones_once():
    one = torch.nn.Linear(2, 3)
    tied = torch.nn.Sequential(one, one)
    assert num_parameters([tied, {"x": torch.zeros(5)}]) == 9 + 5
    assert num_parameters("a model of another kind") is None


def test_load_model_imports_only_modules_that_are_ours_or_trusted(tmp_path):
    save(tmp_path)
    with pytest.raises(ValueError, match=r"one that you trust, but got 'own_experiment:Asked'; .* name it in `trusted`"):
        load_model(tmp_path)
    assert load_model(tmp_path, trusted=[ASKED])["x"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["this:system", "this:s", "own_experiment:Plain", ["this"], None])
def test_load_model_does_not_import_what_a_file_merely_names(tmp_path, name):
    save(tmp_path)
    (tmp_path / "experiment.json").write_text(json.dumps({"experiment": name, "config": {}}))
    with pytest.raises(ValueError, match="a file's experiment must be one of cmsp_curriculum"):
        load_model(tmp_path, trusted=[ASKED])
    assert "this" not in sys.modules


@pytest.mark.parametrize("file", ["experiment.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"\x80\x04."])
def test_load_model_tells_a_folder_that_is_not_whole_in_a_sentence(tmp_path, file, content):
    save(tmp_path)
    (tmp_path / file).unlink() if content is None else (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=r"a model folder must hold experiment.json and model.safetensors, but"):
        load_model(tmp_path, trusted=[ASKED])


def test_what_an_experiment_put_beside_its_model_is_given_back_and_nothing_of_the_passport(tmp_path, monkeypatch):
    monkeypatch.setattr(own_experiment.Asked, "rebuild", classmethod(lambda cls, config, tensors, files: files))
    save(tmp_path)
    assert load_model(tmp_path, trusted=[ASKED]) == {"notes.txt": b"hello"}


def test_a_model_may_be_saved_with_nothing_known_of_its_making(tmp_path):
    save_model(Folder(tmp_path), "own_experiment:Plain", Plain.Config(), TENSORS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["experiment.json", "model.safetensors", "passport.json"]
    assert read_passport(tmp_path)["metrics"] == {}


@pytest.mark.parametrize("content", ["[" * 200_000, "", "[]", '{"format": 0}'])
def test_what_is_no_passport_is_refused_in_one_sentence(tmp_path, content):
    (tmp_path / "passport.json").write_text(content)
    with pytest.raises(ValueError, match=r"a model folder must hold a passport\.json of format 1, but "):
        read_passport(tmp_path)


def test_a_pipe_is_no_passport_and_nobody_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "passport.json")
    with pytest.raises(ValueError, match="but got something that is no file"):
        read_passport(tmp_path)
