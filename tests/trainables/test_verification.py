"""Models that prove themselves, and what is refused. Everything that needs a clean process is verified in one."""

import dataclasses
import hashlib
import json
import os
import shutil
import sys

import pytest
import torch
from own_experiment import Asked, Plain
from safetensors.torch import load_file, save_file

from trainables.attempt import Attempt
from trainables.experiment import Account
from trainables.mnist.narrowing import Narrowing
from trainables.model_files import save_model
from trainables.passport import Making, add_origin, read_passport, sealed
from trainables.protocol import Assignment
from trainables.registry import load_experiment
from trainables.storage import Folder
from trainables.verification import verify_model, verify_models
from trainables.verification_process import check_model

CPU = torch.device("cpu")
TRIALS = {"cmsp_nonlocality": "target_accuracy", "mnist_narrowing": "accuracy", "llm_narrowing": "kept_loss_nats"}
"""Experiments whose models are networks that were pruned, each with a metric to edit."""


def finish_trial(folder, experiment):
    Folder(folder).write("study.json", b"{}")
    config = dataclasses.asdict(load_experiment(experiment).Config.tiny())
    assignment = Assignment(
        experiment=experiment, config=config, trial=0, attempt=1, study_folder=str(folder), folder=str(folder),
        num_cpus=1, num_gpus=0, import_paths=[],
    )  # fmt: skip
    attempt = Attempt(assignment)
    report = attempt.advance()
    while not report.finished:
        assert report.failure is None, report.failure
        report = attempt.advance()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Models that trials have left, by experiment, and a digit network's candidate; not for writing."""
    found = {}
    for experiment in TRIALS:
        folder = tmp_path_factory.mktemp(experiment)
        finish_trial(folder, experiment)
        found[experiment] = folder / "model"
    return found | {"candidate": folder_of(found["mnist_narrowing"].parent / "candidates")}


def folder_of(parent):
    return sorted(parent.iterdir())[0]


def copy(folder, destination):
    shutil.copytree(folder, destination)
    return destination


def reseal(folder, **changes):
    """What somebody does who edits a passport with care: digests and seal are made anew."""
    fields = read_passport(folder) | changes
    (folder / "passport.json").write_bytes(sealed(fields))
    return folder


def redigest(folder):
    names = [path.name for path in folder.iterdir() if path.name != "passport.json"]
    return reseal(folder, files={name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names})


def save_own(folder, kind=Asked):
    tensors = {"x": torch.tensor([0.0, 1.0, 2.0])}
    save_model(Folder(folder), f"own_experiment:{kind.__name__}", kind.Config(), tensors, making=Making(metrics={"loss": 0.5}))
    return folder


@pytest.fixture(scope="module")
def verified(models, tmp_path_factory):
    """What came of sound and of edited models, all verified in one clean process."""
    place = tmp_path_factory.mktemp("verified")
    folders = dict(models)
    for experiment, metric in TRIALS.items():
        edited = copy(models[experiment], place / f"edited {experiment}")
        metrics = read_passport(edited)["metrics"]
        folders[f"edited {experiment}"] = reseal(edited, metrics=metrics | {metric: metrics[metric] * 0.99})
    other = copy(models["cmsp_nonlocality"], place / "other weights")
    tensors = load_file(other / "model.safetensors")
    tensors["seed0.layer0.weight"][0, 0] += 1e-3
    save_file(tensors, other / "model.safetensors")
    folders["other weights"] = redigest(other)
    smaller = copy(models["cmsp_nonlocality"], place / "smaller")
    save_file({k: v for k, v in load_file(smaller / "model.safetensors").items() if "seed0" in k}, smaller / "model.safetensors")
    folders["smaller"] = redigest(smaller)
    trap = copy(models["cmsp_nonlocality"], place / "trap")
    (trap / "safetensors.py").write_text("raise SystemExit('a file of the folder was executed')")
    folders["trap"] = redigest(trap)
    bent = copy(models["cmsp_nonlocality"], place / "bent")
    folders["bent"] = reseal(bent, environment=[], metrics=None)
    folders["trusted"] = save_own(place / "trusted", Plain)
    folders["not trusted"] = save_own(place / "not trusted", Asked)
    sys.path.insert(0, str(trap))  # as where somebody stands in the folder
    try:
        found = verify_models(list(folders.values()), trusted=["own_experiment:Plain"])
    finally:
        sys.path.remove(str(trap))
    return dict(zip(folders, found, strict=True))


def outcomes(verification):
    return {check.name: check.outcome for check in verification.checks}


@pytest.mark.parametrize("name", [*TRIALS, "candidate"])
def test_a_pruned_network_that_a_trial_left_verifies_in_a_clean_process(verified, name):
    found, checks = verified[name], outcomes(verified[name])
    assert found.is_sound, found.refused
    metric = TRIALS.get(name, "accuracy")
    proofs = ("seal", "files", "digests", "config", "rebuild", "parameters", "probe", f"metric {metric}")
    assert {proof: checks[proof] for proof in proofs} == dict.fromkeys(proofs, "passed")
    assert [check.name for check in found.left_out] == ["other metrics"]
    found.require_sound()


@pytest.mark.parametrize("experiment", TRIALS)
def test_an_edited_metric_is_refused_though_it_was_sealed_again(verified, experiment):
    found, metric = verified[f"edited {experiment}"], TRIALS[experiment]
    assert outcomes(found)["seal"] == "passed"
    assert [check.name for check in found.refused] == [f"metric {metric}"]
    with pytest.raises(ValueError, match=rf"{metric} must be what the model is measured to have, .*, but got .*; do not use"):
        found.require_sound()


def test_other_weights_are_refused_by_their_answers_though_all_digests_were_made_again(verified):
    assert "probe" in [check.name for check in verified["other weights"].refused]
    assert outcomes(verified["other weights"])["digests"] == "passed"


def test_a_model_that_lost_tensors_is_refused_by_its_parameters(verified):
    refused = {check.name: check.told for check in verified["smaller"].refused}
    assert refused["parameters"].startswith("the model must have as many parameters as its passport says, but got ")
    assert refused["probe"].endswith("but got other names or shapes; do not use the folder, and download the model again")
    assert "metrics" in refused


def test_fields_of_another_kind_are_refused_and_others_are_verified_all_the_same(verified):
    assert [check.name for check in verified["bent"].refused] == ["passport"]
    assert "a passport must have every field, each of its kind, but got AttributeError" in verified["bent"].refused[0].told


def test_no_file_of_the_folder_is_imported_even_from_within_it(verified):
    assert verified["trap"].is_sound, verified["trap"].refused


def test_an_experiment_of_ones_own_is_verified_where_it_is_trusted_and_what_it_cannot_show_is_told(verified):
    found = verified["trusted"]
    assert found.is_sound, found.refused
    assert outcomes(found)["parameters"] == "passed"
    assert {check.name: check.told for check in found.left_out} == {
        "probe": "because its experiment has no probe",
        "other metrics": "because the model alone does not tell loss",
    }


def test_an_experiment_that_nobody_trusts_is_refused_and_nothing_more_done(verified):
    found = verified["not trusted"]
    assert [check.name for check in found.checks][-1] == "experiment"
    assert "but got 'own_experiment:Asked'; to import that module, name it in `trusted`" in found.refused[0].told


def test_a_verification_is_a_table_and_json(verified):
    found = verified["edited mnist_narrowing"]
    assert ("metric accuracy", "refused") in [row[:2] for row in found.rows]
    as_json = json.loads(json.dumps(found.to_json()))
    assert as_json["is_sound"] is False
    assert as_json["experiment"] == "mnist_narrowing"
    assert [tuple(check.values()) for check in as_json["checks"]] == found.rows


@pytest.mark.parametrize("experiment", TRIALS)
def test_a_flipped_byte_is_refused_in_each_file(models, tmp_path, experiment):
    folder = copy(models[experiment], tmp_path / "model")
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        for place in {0, len(data) // 2, len(data) - 1, *range(0, len(data), max(1, len(data) // 40))}:
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            found = verify_model(folder)
            assert not found.is_sound, (path.name, place)
            assert outcomes(found)["model"] == "not checked"
        path.write_bytes(data)


def test_another_space_in_the_passport_is_refused(models, tmp_path):
    folder = copy(models["cmsp_nonlocality"], tmp_path / "model")
    path = folder / "passport.json"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\n ", 1))
    assert [check.name for check in verify_model(folder).refused] == ["seal"]


def test_an_edited_field_breaks_the_seal(models, tmp_path):
    folder = copy(models["cmsp_nonlocality"], tmp_path / "model")
    fields = read_passport(folder)
    (folder / "passport.json").write_text(json.dumps(fields | {"commit": "another"}, indent=2))
    assert [check.told for check in verify_model(folder).refused] == [
        "passport.json must be as it was sealed, but got another content; do not use the folder, and download the model again"
    ]


@pytest.mark.parametrize("added", ["notes.txt", ".hidden", "below/model.bin"])
def test_a_file_that_the_passport_does_not_name_is_refused(models, tmp_path, added):
    folder = copy(models["cmsp_nonlocality"], tmp_path / "model")
    (folder / added).parent.mkdir(exist_ok=True)
    (folder / added).write_text("hello")
    (refusal,) = verify_model(folder).refused
    assert refusal.told.startswith("a model folder must hold passport.json and exactly the files that it names, but got ")
    assert f"missing: none; not named: {added}" in refusal.told


@pytest.mark.parametrize("removed", ["model.safetensors", "experiment.json", "passport.tensors"])
def test_a_removed_file_is_refused(models, tmp_path, removed):
    folder = copy(models["cmsp_nonlocality"], tmp_path / "model")
    (folder / removed).unlink()
    (refusal,) = verify_model(folder).refused
    assert f"missing: {removed}; not named: none" in refusal.told


def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(models, tmp_path):
    folder = copy(models["cmsp_nonlocality"], tmp_path / "model")
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    assert [check.name for check in verify_model(folder).refused] == ["digests"]


@pytest.mark.parametrize("files", [{}, [], None, {"../model.safetensors": "0"}])
def test_a_passport_that_names_no_proper_files_is_refused(models, tmp_path, files):
    folder = reseal(copy(models["cmsp_nonlocality"], tmp_path / "model"), files=files)
    assert "files" in [check.name for check in verify_model(folder).refused]


def test_a_config_that_differs_from_the_models_own_is_refused_before_the_model_is_built(models, tmp_path):
    folder = copy(models["cmsp_nonlocality"], tmp_path / "model")
    reseal(folder, config=read_passport(folder)["config"] | {"seed": 5})
    found = verify_model(folder)
    assert [check.name for check in found.refused] == ["config"]
    assert outcomes(found)["model"] == "not checked"


def test_a_folder_without_a_passport_is_told(tmp_path):
    found = verify_model(tmp_path / "nowhere")
    assert found.experiment is None
    assert found.refused[0].told.startswith("a model folder must hold a passport.json")


def test_an_origin_changes_nothing_about_a_model(models, tmp_path):
    folder = copy(models["cmsp_nonlocality"], tmp_path / "model")
    add_origin(folder, {"study": "n1", "trial": 0})
    assert all(check.outcome == "passed" for check in verify_files(folder))


def verify_files(folder):
    found = verify_model(reseal(folder, experiment="this:Zen"))  # is refused before anything is imported
    return [check for check in found.checks if check.name in ("seal", "files", "digests")]


def nudge_probe(folder, factor):
    proof = load_file(folder / "passport.tensors")
    proof["probe/twice"] *= factor
    save_file(proof, folder / "passport.tensors")
    return redigest(folder)


def checks_of(folder):
    return {check.name: check for check in check_model(folder, ["own_experiment:Asked"], CPU)}


def test_answers_must_be_the_same_where_they_were_given_and_close_elsewhere(tmp_path):
    folder = nudge_probe(save_own(tmp_path), 1 + 1e-6)
    assert checks_of(folder)["probe"].outcome == "refused"
    reseal(folder, environment=read_passport(folder)["environment"] | {"processor": "another"})
    elsewhere = checks_of(folder)
    assert elsewhere["probe"].outcome == "passed"
    assert elsewhere["rebuild"].told.endswith("other than when it was saved: processor")
    assert checks_of(nudge_probe(folder, 1.01))["probe"].outcome == "refused"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_answers_that_are_not_finite_are_not_close_to_any_that_are(tmp_path, value):
    folder = save_own(tmp_path)
    proof = load_file(folder / "passport.tensors")
    proof["probe/twice"][1] = value
    save_file(proof, folder / "passport.tensors")
    environment = read_passport(folder)["environment"] | {"torch": "another"}
    assert checks_of(redigest(reseal(folder, environment=environment)))["probe"].outcome == "refused"


def test_images_that_are_not_here_are_told_and_not_held_against_the_model(models, tmp_path):
    config, tensors = Narrowing.Config.tiny(), load_file(models["mnist_narrowing"] / "model.safetensors")
    evidence = {"data": torch.tensor(list(b"0" * 16)), "most_neurons": torch.tensor([24])}
    making = Making(metrics={"accuracy": 0.5}, account=Account(evidence=evidence))
    save_model(Folder(tmp_path), "mnist_narrowing", config, tensors, making=making)
    (check,) = [check for check in check_model(tmp_path, [], CPU) if check.name == "metrics"]
    assert check.outcome == "not checked"
    assert check.told.startswith("because the images that it was made with must be here, but got ")
