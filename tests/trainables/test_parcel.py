"""Several trials in one process: each reports, saves and ends as it would alone."""

import dataclasses

import pytest
import torch

from trainables.attempt import Attempt
from trainables.cmsp.curriculum import CurriculumConfig
from trainables.cmsp.population import Population
from trainables.failures import LostRankError
from trainables.parcel import Parcel
from trainables.protocol import Assignment
from trainables.storage import Folder, StorageError

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


@pytest.fixture(scope="module")
def alone_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("alone")


@pytest.fixture(scope="module")
def alone(alone_folder):
    return {trial: run_alone(assign(alone_folder, trial)) for trial in range(3)}


def models(place):
    return {path.relative_to(place): path.read_bytes() for path in sorted(place.glob("trials/*/model/*.safetensors"))}


def test_packed_or_in_turns_each_trial_reports_what_it_would_alone_and_leaves_its_model(tmp_path, alone, alone_folder):
    other = assign(tmp_path / "packed", 3, width=8)  # of another shape: takes turns with the pack
    parcel = Parcel([*(assign(tmp_path / "packed", trial) for trial in range(3)), other])
    reports = run(parcel)
    assert {trial: told for trial, told in heard(reports).items() if trial < 3} == alone
    assert sorted(report.trial for report in reports if report.finished) == [0, 1, 2, 3]
    assert len(models(tmp_path / "packed")) == 4
    assert models(alone_folder).items() <= models(tmp_path / "packed").items()
    log = Folder(tmp_path / "packed/trials/00001").read("log.txt").decode()
    assert "makes its steps together with: trials 0, 1, 2" in log


def test_a_broken_config_fails_alone(tmp_path, alone):
    parcel = Parcel([assign(tmp_path / "p", 0), assign(tmp_path / "p", 1, width=-1), assign(tmp_path / "p", 2)])
    reports = run(parcel)
    (failed,) = [report for report in reports if report.failure is not None]
    assert (failed.trial, failed.failure.cause) == (1, "invalid_config")
    assert {trial: told for trial, told in heard(reports).items() if told} == {0: alone[0], 2: alone[2]}


def test_one_that_diverges_fails_alone_with_its_cause_in_its_log(tmp_path, alone):
    parcel = Parcel([assign(tmp_path / "p", 0), assign(tmp_path / "p", 1, learning_rate=1e30), assign(tmp_path / "p", 2)])
    reports = run(parcel)
    (failed,) = [report for report in reports if report.failure is not None]
    assert (failed.trial, failed.failure.cause) == (1, "diverged")
    assert "DivergedError" in Folder(tmp_path / "p/trials/00001").read("log.txt").decode()
    assert {trial: told for trial, told in heard(reports).items() if told} == {0: alone[0], 2: alone[2]}


def test_one_that_is_ahead_takes_turns_with_the_others(tmp_path, alone):
    early = Attempt(assign(tmp_path / "p", 1))
    early.advance()
    early.close()
    reports = run(Parcel([assign(tmp_path / "p", trial, attempt=2) for trial in range(3)]))
    assert heard(reports) == alone
    logs = [Folder(tmp_path / f"p/trials/{trial:05d}").read("log.txt").decode() for trial in range(3)]
    assert ["trials 0, 2" in log for log in logs] == [True, False, True]


def broken_by(error, monkeypatch):
    """Have every update fail from the second step on."""
    updates = iter(range(150))
    whole = Population.update

    def update(self, *batch):
        if next(updates, None) is None:
            raise error
        whole(self, *batch)

    monkeypatch.setattr(Population, "update", update)


@pytest.mark.parametrize(("error", "cause"), [(MemoryError("full"), "out_of_memory"), (ZeroDivisionError("odd"), "bug")])
def test_what_breaks_a_step_of_all_is_the_failure_of_each(tmp_path, monkeypatch, error, cause):
    broken_by(error, monkeypatch)
    reports = run(Parcel([assign(tmp_path / "p", trial) for trial in range(3)]))
    assert [(report.trial, report.failure and report.failure.cause) for report in reports] == [
        *((trial, None) for trial in range(3)), *((trial, cause) for trial in range(3))
    ]  # fmt: skip


@pytest.mark.parametrize("error", [torch.AcceleratorError("gone"), LostRankError("gone")])
def test_what_ends_a_worker_ends_every_trials_attempt_and_nothing_half_done_is_kept(tmp_path, monkeypatch, alone, error):
    parcel = Parcel([assign(tmp_path / "p", trial) for trial in range(3)])
    with monkeypatch.context() as patch:
        broken_by(error, patch)
        with pytest.raises(type(error), match="gone"):
            run(parcel)
        parcel.close()
    assert heard(run(Parcel([assign(tmp_path / "p", trial, attempt=2) for trial in range(3)]))) == alone


def test_a_storage_that_takes_nothing_of_one_trial_costs_the_others_no_step(tmp_path, monkeypatch, alone):
    monkeypatch.setenv("NARROW_STUDY_CHECKPOINT_S", "0")
    parcel = Parcel([assign(tmp_path / "p", trial) for trial in range(3)])
    (tmp_path / "p/trials/00001").mkdir(parents=True)
    write = Folder.write

    def refuse(folder, name, data):
        if "00001" in str(folder.address) and name.endswith(".pt"):
            raise OSError("disk full")
        write(folder, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write", refuse)
        with pytest.raises(StorageError, match="disk full"):
            run(parcel)
    parcel.close()
    again = Parcel([assign(tmp_path / "p", trial, attempt=2) for trial in range(3)])
    reports = run(again)
    assert {report.resumed_step for report in reports} == {1}
    assert heard(reports) == alone


def test_one_that_is_stopped_reports_nothing_more_and_saves_only_its_log(tmp_path, alone):
    parcel = Parcel([assign(tmp_path / "p", trial) for trial in range(3)])
    first = parcel.advance()
    reports = first + parcel.advance(stopped=[1, 77])
    while parcel.trials:
        reports += parcel.advance(stopped=[1])
    assert heard(reports) == {0: alone[0], 1: alone[1][:1], 2: alone[2]}
    assert [path.name for path in (tmp_path / "p/trials/00001").rglob("*") if path.is_file()] == ["log.txt"]


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
