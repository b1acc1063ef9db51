"""Models out of MLflow: which one is meant, whole or not at all, with a passport that holds; and its registry."""

import dataclasses
import json
import shutil
from pathlib import Path

import mlflow
import pytest

from study.asking.choosing import choose_model, take_out
from study.asking.query import open_study
from study.asking.registration import register_model
from study.cli import main
from study.errors import UserError
from study.keeping.retention import DROPPED, MODEL_TAG, REGISTERED_TAG
from study.recording.outbox import Outbox
from study.recording.tracking_writer import StudyWriter
from trainables.attempt import Attempt
from trainables.passport import read_passport, sealed
from trainables.protocol import Assignment
from trainables.registry import load_experiment
from trainables.storage import Folder
from trainables.verification import verify_models

EXPERIMENTS = ("cmsp_nonlocality", "mnist_narrowing", "llm_narrowing")
"""Of trials 0, 1 and 2: their networks are pruned ones."""
STUDY = {
    "objectives": [{"metric": "score", "goal": "min", "unit": ""}], "constraints": [], "log_scale": [], "color_by": "null",
    "experiment": "mnist_narrowing", "space": "m:f", "num_trials": "4",
}  # fmt: skip


def run_trial(folder, number, outbox):
    """Run a trial as a worker does, and tell of it as a driver does."""
    experiment = EXPERIMENTS[number]
    config = dataclasses.asdict(load_experiment(experiment).Config.tiny())
    place = folder / str(number)
    Folder(place).write("study.json", b"{}")
    attempt = Attempt(
        Assignment(
            experiment=experiment, config=config, trial=number, attempt=1, study_folder=str(place), folder=str(place),
            num_cpus=1, num_gpus=0, import_paths=[],
        )
    )  # fmt: skip
    report = attempt.advance()
    outbox.put(
        "trial_start", f"trial/{number}/start/1", {"params": {"n": number}, "tags": {"params": {"n": number}}}, trial=number
    )
    offers = list(report.measurements[-1].candidates)
    while not report.finished:
        assert report.failure is None, report.failure
        report = attempt.advance()
        offers += [offer for measurement in report.measurements for offer in measurement.candidates]
    outbox.put("measurement", f"trial/{number}/step/1", {"step": 1, "metrics": {"score": number}, "progress": 1.0}, trial=number)
    for offer in offers[:2]:
        data = {"step": 1, "params": {}, "model": str(place / offer["folder"]), "number": offer["number"]}
        data["metrics"] = offer["metrics"] | {"score": 5.0}
        outbox.put("candidate", f"trial/{number}/candidate/{offer['number']}", data, trial=number)
    data = {"state": "finished", "tags": {}, "model": str(place / "model"), "charts": None}
    outbox.put("trial_end", f"trial/{number}/end/1", data, trial=number)


@pytest.fixture(scope="module")
def study(store, tmp_path_factory):
    """Three finished trials and one that runs."""
    folder = tmp_path_factory.mktemp("models")
    outbox = Outbox(folder / "outbox.db")
    outbox.put("session_start", "session/1/start", {"tags": STUDY})
    for number in range(len(EXPERIMENTS)):
        run_trial(folder, number, outbox)
    outbox.put("trial_start", "trial/3/start/1", {"params": {}, "tags": {"params": {}}}, trial=3)
    artifacts = (folder / "mlflow").as_uri()
    StudyWriter(outbox, name="models", study_id="m", tracking_uri=store, artifacts=artifacts).deliver()
    outbox.close()
    return open_study("models", tracking_uri=store, home=folder)


@pytest.fixture(scope="module")
def taken(study, tmp_path_factory):
    """Models that were taken out of the study, by what they are."""
    place = tmp_path_factory.mktemp("taken")
    folders = {name: take_out(study.trial(number), place / name) for number, name in enumerate(EXPERIMENTS)}
    return folders | {"candidate": take_out(study.model(1, 0), place / "candidate")}


def test_pruned_models_of_every_kind_come_out_of_mlflow_and_verify_in_a_fresh_process(taken, tmp_path):
    for name, folder in taken.items():
        shutil.copytree(folder, tmp_path / f"flipped {name}")
        tensors = tmp_path / f"flipped {name}" / "model.safetensors"
        data = bytearray(tensors.read_bytes())
        data[-2] ^= 1
        tensors.write_bytes(data)
        edited = shutil.copytree(folder, tmp_path / f"edited {name}")
        fields = read_passport(edited)
        fields["metrics"] = {metric: value + 0.25 for metric, value in fields["metrics"].items()}
        (edited / "passport.json").write_bytes(sealed(fields))
    sound = verify_models([*taken.values(), *sorted(tmp_path.iterdir())])
    assert [found.is_sound for found in sound] == [True] * len(taken) + [False] * 2 * len(taken)
    for found in sound[: len(taken)]:
        assert [name for name, outcome, _ in found.rows if name.startswith("metric") and outcome == "passed"]


def test_a_passport_says_which_model_of_which_study_this_is(study, taken):
    origin = read_passport(taken["candidate"])["origin"]
    row = study.model(1, 0)
    assert origin == {"study": "models", "trial": 1, "candidate": 0, "run_id": row.run_id, "model_id": row.model_id}


def test_a_model_loads_in_one_line(study):
    assert study.trial(2).load_model().config.model_type == "llama"
    assert len(list(study.load_model(1, 0)[0].parameters())) > 0


def test_the_knee_a_trial_or_a_candidate_is_chosen(study):
    assert choose_model(study, knee=True).label == "0"
    assert choose_model(study, trial=2).label == "2"
    assert choose_model(study, candidate="1.0").label == "1.0"


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({}, "one model must be asked for, by --knee, --trial or --candidate, but got none"),
        ({"knee": True, "trial": 1}, "but got --knee and --trial"),
        ({"trial": 1, "where": "size > 1"}, "choose the front of a knee, but got --trial"),
        ({"candidate": "3"}, "a candidate must be TRIAL.NUMBER, but got '3'"),
        ({"candidate": "2.7"}, "but trial 2 of 'models' has none, not 7"),
        ({"trial": 9}, "a trial of 'models' must be 0 to 3, but got 9"),
    ],
)
def test_a_wrong_choice_is_the_users_mistake(study, asked, sentence):
    with pytest.raises(UserError) as told:
        choose_model(study, **asked)
    assert sentence in str(told.value)


def test_a_trial_that_runs_has_no_model(study, tmp_path):
    with pytest.raises(UserError, match="a trial must have finished to have a model, but trial 3 is running"):
        take_out(study.trial(3), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_left_alone(study, tmp_path):
    (tmp_path / "mine").write_text("precious")
    for folder in (tmp_path, tmp_path / "mine"):
        with pytest.raises(UserError, match="a model needs a folder of its own"):
            take_out(study.trial(0), folder)
    assert (tmp_path / "mine").read_text() == "precious"


def ask(capsys, monkeypatch, *options):
    """What the command prints, and its exit status."""
    monkeypatch.setattr("sys.argv", ["study", *options])
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr()
    return printed.out + printed.err, end.value.code


def test_a_registered_model_is_the_same_version_however_often_and_loads_by_its_alias(study, capsys, monkeypatch, home, tmp_path):
    options = ["model", "models", "--trial", "1", "--register", "digits", "--alias", "best", "--tracking-uri", study.tracking_uri]
    told, status = ask(capsys, monkeypatch, *options)
    assert (status, told.splitlines()[-1]) == (0, "registered: models:/digits@best")
    fields = json.loads(ask(capsys, monkeypatch, *options, "--json", "--out", str(tmp_path / "out"))[0])
    assert (fields["registered"], fields["version"], fields["label"]) == ("digits", 1, "1")
    version = mlflow.MlflowClient(study.tracking_uri).get_model_version_by_alias("digits", "best")
    copied = mlflow.artifacts.download_artifacts(version.source, dst_path=str(tmp_path / "registered"))
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == Path(copied, "model.safetensors").read_bytes()
    told, status = ask(capsys, monkeypatch, *options[:4], "--register", "a/b", "--tracking-uri", study.tracking_uri)
    assert (status, "ones that MLflow takes" in told) == (2, True)


def registry(uri):
    """Names of the registered models."""
    return {model.name for model in mlflow.MlflowClient(uri).search_registered_models()}


@pytest.mark.parametrize(
    ("trial", "name", "alias", "sentence"),
    [
        (3, "fine", None, "a trial must have finished to have a model, but trial 3 is running"),
        (2, "it's", None, "must be without quotes, but got"),
        (2, "a/b", None, "ones that MLflow takes"),
        (2, "fine", "v1", "ones that MLflow takes"),
    ],
)
def test_a_registration_that_is_refused_leaves_nothing(study, trial, name, alias, sentence):
    before, row = registry(study.tracking_uri), study.trial(trial)
    with pytest.raises(UserError, match=sentence):
        register_model(row, study.tracking_uri, name=name, alias=alias)
    assert registry(study.tracking_uri) == before
    assert REGISTERED_TAG not in mlflow.MlflowClient(study.tracking_uri).get_run(row.run_id).data.tags


def test_a_run_without_a_model_is_not_registered(study):
    row = dataclasses.replace(study.trial(3), state="finished")
    with pytest.raises(UserError, match=f"but run {row.run_id} has none"):
        register_model(row, study.tracking_uri, name="nothing")
    assert "nothing" not in registry(study.tracking_uri)


def test_a_version_says_of_which_study_its_model_is_however_it_was_found(study):
    merged = dataclasses.replace(study.model(1, 0), study="models")
    version = register_model(merged, study.tracking_uri, name="labelled")
    tags = mlflow.MlflowClient(study.tracking_uri).get_model_version("labelled", str(version)).tags
    assert tags["narrow_study.model"] == "models 1.0"


@pytest.mark.parametrize("of_candidate", [False, True])
def test_a_model_that_is_dropped_while_it_is_copied_is_not_given_out(study, tmp_path, monkeypatch, of_candidate):
    row, client = study.model(1, 0) if of_candidate else study.trial(0), mlflow.MlflowClient(study.tracking_uri)
    place = mlflow.artifacts if of_candidate else mlflow.MlflowClient

    def drop(*_, **__):
        if of_candidate:
            client.set_logged_model_tags(row.model_id, {MODEL_TAG: DROPPED})
        else:
            client.set_tag(row.run_id, MODEL_TAG, DROPPED)
        return str(tmp_path)

    monkeypatch.setattr(place, "download_artifacts", drop)
    try:
        with pytest.raises(UserError, match="was dropped"):
            row.download_model(tmp_path / "copy")
    finally:
        client.delete_logged_model_tag(row.model_id, MODEL_TAG) if of_candidate else client.delete_tag(row.run_id, MODEL_TAG)


def test_what_somebody_puts_into_the_folder_during_a_long_download_stays(study, tmp_path, monkeypatch):
    folder, download = tmp_path / "out", type(study.trial(0)).download_model
    folder.mkdir()
    take_out(study.trial(0), folder)
    shutil.rmtree(folder)

    def slowly(self, destination):
        folder.mkdir()
        (folder / "mine").write_text("precious")
        return download(self, destination)

    monkeypatch.setattr(type(study.trial(0)), "download_model", slowly)
    with pytest.raises(UserError, match="must be one that can be written, but"):
        take_out(study.trial(0), folder)
    assert (folder / "mine").read_text() == "precious"


def test_the_command_tells_a_sound_folder_from_another(taken, capsys, monkeypatch, tmp_path):
    told, status = ask(capsys, monkeypatch, "verify", str(taken["candidate"]))
    assert status == 0
    assert f"{taken['candidate']} is what its passport says" in told
    bad = shutil.copytree(taken["candidate"], tmp_path / "bad")
    (bad / "more.py").write_text("")
    told, status = ask(capsys, monkeypatch, "verify", str(bad), "--json")
    assert status == 1
    assert json.loads(told)[0]["is_sound"] is False
    told, status = ask(capsys, monkeypatch, "verify", str(tmp_path / "none"))
    assert (status, "a model's folder must exist" in told) == (2, True)


def test_a_model_that_goes_nowhere_is_a_mistake(capsys, monkeypatch, home):
    assert "got neither --out nor --register" in ask(capsys, monkeypatch, "model", "models", "--knee")[0]
    assert "give both" in ask(capsys, monkeypatch, "model", "models", "--knee", "--out", "x", "--alias", "y")[0]
