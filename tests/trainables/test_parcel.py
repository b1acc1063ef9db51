"""Several trials in one process: each reports, saves and ends as it would alone."""

import dataclasses

import pytest

from trainables.attempt import Attempt
from trainables.cmsp.curriculum import CurriculumConfig
from trainables.parcel import Parcel
from trainables.protocol import Assignment
from trainables.storage import Folder

TINY = dataclasses.asdict(CurriculumConfig.tiny()) | {"num_seeds": 1}


def assign(place, trial, *, attempt=1, **config):
    Folder(place).write("study.json", b"{}")
    folder = str(place / f"trials/{trial:05d}")
    return Assignment(
        experiment="cmsp_curriculum", config=TINY | {"seed": 100 * trial} | config, trial=trial, attempt=attempt,
        study_folder=str(place), folder=folder, num_cpus=1, num_gpus=0, import_paths=[],
    )  # fmt: skip


def heard(reports):
    """Steps, metrics and progress of each trial, by trial."""
    told = {}
    for report in reports:
        told.setdefault(report.trial, []).extend((m.step, m.metrics, m.progress) for m in report.measurements)
    return told


def run(parcel):
    reports = []
    while parcel.trials:
        reports += parcel.advance()
    return reports


def run_alone(assignment):
    attempt, reports = Attempt(assignment), []
    while not reports or not (reports[-1].finished or reports[-1].failure):
        reports.append(attempt.advance())
    return heard(reports)[assignment.trial]


@pytest.fixture
def alone(tmp_path):
    return {trial: run_alone(assign(tmp_path / "alone", trial)) for trial in range(3)}


def models(place):
    return {path.relative_to(place): path.read_bytes() for path in sorted(place.glob("trials/*/model/*.safetensors"))}


def test_packed_or_in_turns_each_trial_reports_what_it_would_alone_and_leaves_its_model(tmp_path, alone):
    other = assign(tmp_path / "packed", 3, width=8)  # of another shape: takes turns with the pack
    parcel = Parcel([*(assign(tmp_path / "packed", trial) for trial in range(3)), other])
    reports = run(parcel)
    assert {trial: told for trial, told in heard(reports).items() if trial < 3} == alone
    assert sorted(report.trial for report in reports if report.finished) == [0, 1, 2, 3]
    assert len(models(tmp_path / "packed")) == 4
    assert models(tmp_path / "alone").items() <= models(tmp_path / "packed").items()
    log = Folder(tmp_path / "packed/trials/00001").read("log.txt").decode()
    assert "makes its steps together with: trials 0, 1, 2" in log


def test_a_broken_config_fails_alone(tmp_path, alone):
    parcel = Parcel([assign(tmp_path / "p", 0), assign(tmp_path / "p", 1, width=-1), assign(tmp_path / "p", 2)])
    reports = run(parcel)
    (failed,) = [report for report in reports if report.failure is not None]
    assert (failed.trial, failed.failure.cause) == (1, "invalid_config")
    assert {trial: told for trial, told in heard(reports).items() if told} == {0: alone[0], 2: alone[2]}


def test_one_that_is_stopped_reports_and_saves_nothing_more(tmp_path, alone):
    parcel = Parcel([assign(tmp_path / "p", trial) for trial in range(3)])
    first = parcel.advance()
    reports = first + parcel.advance(stopped=[1, 77])
    while parcel.trials:
        reports += parcel.advance(stopped=[1])
    assert heard(reports) == {0: alone[0], 1: alone[1][:1], 2: alone[2]}
    assert not list((tmp_path / "p/trials/00001").rglob("*.safetensors"))


def test_a_parcel_that_is_closed_keeps_the_work_of_every_trial(tmp_path, alone):
    parcel = Parcel([assign(tmp_path / "p", trial) for trial in range(3)])
    parcel.advance()
    parcel.close()
    again = run(Parcel([assign(tmp_path / "p", trial, attempt=2) for trial in range(3)]))
    assert heard(again) == alone  # the first report brings the step of the checkpoint
    assert {report.resumed_step for report in again} == {1}


def test_trials_of_a_parcel_differ_and_share_what_they_hold(tmp_path):
    with pytest.raises(ValueError, match="trials of a parcel must differ"):
        Parcel([assign(tmp_path, 0), assign(tmp_path, 0)])
    with pytest.raises(ValueError, match="must share their CPUs and GPUs"):
        Parcel([assign(tmp_path, 0), dataclasses.replace(assign(tmp_path, 1), num_cpus=2)])
