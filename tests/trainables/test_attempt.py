"""An attempt without Ray: build, advance, save, go on, fail."""

import dataclasses
import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from trainables.attempt import Attempt
from trainables.charts import Chart, Panel, Series
from trainables.cmsp.curriculum import CurriculumConfig
from trainables.experiment import Candidate, Experiment, Metric
from trainables.failures import SupersededError
from trainables.mnist.narrowing_config import NarrowingConfig as DigitsConfig
from trainables.model_files import load_model
from trainables.passport import read_passport
from trainables.protocol import Assignment, Measurement, Report
from trainables.storage import Folder, StorageError
from trainables.trial_log import TrialLog

HERE = Path(__file__).parent
TINY = dataclasses.asdict(CurriculumConfig.tiny())
ODD = "test_attempt:Odd"


def assign(folder, *, experiment="cmsp_curriculum", attempt=1, **config):
    Folder(folder).write("study.json", b"{}")
    return Assignment(
        experiment=experiment, config=TINY | config, trial=3, attempt=attempt, study_folder=str(folder), folder=str(folder),
        num_cpus=1, num_gpus=0, import_paths=[],
    )  # fmt: skip


def run(attempt):
    reports = [attempt.advance()]
    while not reports[-1].finished and reports[-1].failure is None:
        reports.append(attempt.advance())
    return reports


def measurements(reports):
    return [measurement for report in reports for measurement in report.measurements]


def test_every_step_is_reported_and_the_last_leaves_a_model(tmp_path):
    reports = run(Attempt(assign(tmp_path)))
    steps = measurements(reports)
    assert [m.step for m in steps] == list(range(1, len(steps) + 1))
    assert steps[-1].progress == 1.0
    assert len(load_model(tmp_path / "model")) == 2
    assert "trial 3, attempt 1" in (tmp_path / "log.txt").read_text()


def test_a_model_has_a_passport_with_the_last_metrics_and_the_inputs_that_it_was_made_from(tmp_path):
    config = dataclasses.asdict(DigitsConfig.tiny()) | {"method": "attribution", "num_seeds": 1}
    reports = run(Attempt(dataclasses.replace(assign(tmp_path), experiment="mnist_narrowing", config=config)))
    passport = read_passport(tmp_path / "model")
    assert passport["metrics"] == measurements(reports)[-1].metrics
    assert passport["removal"]["score"] == "sample_activation_attribution"
    (shared,) = (tmp_path / "shared").glob("teacher-*.safetensors")
    assert shared.name == f"{passport['inputs']['teacher0']['key']}-{passport['inputs']['teacher0']['digest']}.safetensors"


def test_another_attempt_writes_the_same_model_to_the_last_byte(tmp_path):
    for name in ("one", "other"):
        run(Attempt(assign(tmp_path / name)))
    contents = [{path.name: path.read_bytes() for path in (tmp_path / name / "model").iterdir()} for name in ("one", "other")]
    assert contents[0] == contents[1]


def test_a_closed_attempt_goes_on_in_the_next_one_with_the_same_numbers(tmp_path):
    straight = measurements(run(Attempt(assign(tmp_path / "straight"))))
    first = Attempt(assign(tmp_path / "cut"))
    first.advance()
    first.close()
    reports = run(Attempt(assign(tmp_path / "cut", attempt=2)))
    assert [m.step for m in reports[0].measurements] == [1, 2]  # the study may never have heard the first
    assert measurements(reports) == straight
    assert (tmp_path / "cut" / "log.txt").read_text().count("attempt") == 2


def test_a_checkpoint_of_another_config_is_not_gone_on_from(tmp_path):
    first = Attempt(assign(tmp_path / "s", seed=1))
    first.advance()
    first.close()
    anew = measurements(run(Attempt(assign(tmp_path / "s", seed=2))))  # a power loss took the record back, not the checkpoint
    assert anew == measurements(run(Attempt(assign(tmp_path / "other", seed=2))))
    assert "the checkpoint is of another config; begins anew" in (tmp_path / "s" / "log.txt").read_text()


def test_an_attempt_that_another_one_followed_writes_nothing_more(tmp_path):
    old = Attempt(assign(tmp_path))
    old.advance()
    new = Attempt(assign(tmp_path, attempt=2))
    new.advance()
    files = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    old.close()
    with pytest.raises(SupersededError, match="attempt 2 took over from attempt 1"):
        run(old)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == files


def test_a_finished_trial_that_nobody_heard_of_only_reports(tmp_path):
    before = measurements(run(Attempt(assign(tmp_path))))
    report = Attempt(assign(tmp_path, attempt=2)).advance()
    assert report.finished
    assert report.measurements == before


def test_a_killed_attempt_repeats_what_its_checkpoint_does_not_hold(tmp_path):
    straight = measurements(run(Attempt(assign(tmp_path / "straight"))))
    killed = Attempt(assign(tmp_path / "killed"))
    killed.advance()  # no close: nothing was saved yet
    assert measurements(run(Attempt(assign(tmp_path / "killed", attempt=2)))) == straight


@pytest.mark.parametrize(
    ("changes", "cause", "error"),
    [
        ({"width": 0}, "invalid_config", "width must be at least 1"),
        ({"wdth": 3}, "invalid_config", "unexpected keyword argument 'wdth'"),
        ({"learning_rate": 1e37}, "diverged", "must be finite"),
        ({"experiment": "no_such"}, "bug", "experiment must be one of"),
    ],
)
def test_a_failure_has_its_cause_error_and_traceback(tmp_path, changes, cause, error):
    failure = run(Attempt(assign(tmp_path, **changes)))[-1].failure
    assert failure.cause == cause
    assert error in failure.error
    assert "Traceback" in failure.traceback
    assert error in (tmp_path / "log.txt").read_text()


def test_a_storage_that_fails_is_not_the_trials_failure(tmp_path, monkeypatch):
    attempt = Attempt(assign(tmp_path))
    monkeypatch.setattr(Folder, "write", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(StorageError, match="disk full"):
        run(attempt)


def test_a_worker_that_does_not_see_the_studys_storage_says_so(tmp_path):
    assignment = assign(tmp_path)
    (tmp_path / "study.json").unlink()
    with pytest.raises(StorageError, match="seen by every node"):
        Attempt(assignment).advance()


@pytest.mark.parametrize("level", [logging.NOTSET, logging.WARNING, logging.INFO, logging.DEBUG])
def test_a_log_has_the_packages_lines_whatever_the_level_and_leaves_the_level_as_it_was(level, caplog):
    caplog.set_level(level, logger="trainables")
    log = TrialLog()
    with log.capture():
        logging.getLogger("trainables.attempt").info("told")
        print("printed")
    logging.getLogger("trainables.attempt").info("untold")
    assert log.text().endswith(" told\nprinted\n")
    assert logging.getLogger("trainables").level == level


class Odd(Experiment):
    """Reports what its config says."""

    METRICS = (Metric(name="loss", goal="min", unit="1", meaning="A number."),)

    @dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        progress: float = 0.5
        kind: str = "float"
        charts: tuple[str, ...] = ()
        candidates: tuple[int, ...] = ()
        candidate_loss: float = 0.25
        candidate_metric: str = "loss"

    def __init__(self, config, *, device):
        self.config, self.steps = config, 0

    def step(self):
        self.steps += 1
        return {"loss": {"float": 0.5, "numpy": np.float64(0.5), "tensor": torch.tensor(0.5)}[self.config.kind]}

    @property
    def progress(self):
        return min(1.0, self.steps * self.config.progress) if self.config.progress < 1 else self.steps * self.config.progress

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]

    def model_tensors(self):
        return {"x": torch.zeros(1)}

    @classmethod
    def rebuild(cls, config, tensors, files):
        return tensors

    def candidates(self):
        metrics = {self.config.candidate_metric: np.float64(self.config.candidate_loss)}
        return [
            Candidate(
                number=2 * (self.steps - 1) + number, metrics=metrics, tensors={"x": torch.tensor([float(self.steps), number])}
            )
            for number in self.config.candidates
        ]

    def charts(self):
        if "bug" in self.config.charts:
            raise ZeroDivisionError("no chart")
        return [chart(name, self.steps) for name in self.config.charts]


def chart(name, steps):
    series = Series(label="loss", x=(1.0, float(steps)), y=(0.5, 0.5), color="#3b528b")
    return Chart(name=name, title="Loss", panels=(Panel(title="", x_label="step", y_label="loss", series=(series,)),))


def assign_odd(folder, **config):
    return dataclasses.replace(assign(folder), experiment=ODD, config=config, import_paths=[str(HERE)])


@pytest.mark.parametrize("progress", [1.5, float("nan"), -0.5])
def test_progress_outside_its_range_fails_the_trial(tmp_path, progress):
    failure = run(Attempt(assign_odd(tmp_path, progress=progress)))[-1].failure
    assert "progress must not fall and must be in [0, 1]" in failure.error


@pytest.mark.parametrize("kind", ["float", "numpy", "tensor"])
def test_a_metric_may_be_any_number_and_travels_as_a_float(tmp_path, kind):
    first = Attempt(assign_odd(tmp_path, kind=kind))
    assert json.loads(first.advance().to_json())["measurements"][0]["metrics"] == {"loss": 0.5}
    first.close()
    assert len(measurements(run(Attempt(assign_odd(tmp_path, kind=kind))))) == 2


def test_a_finished_trial_leaves_its_charts_and_only_a_finished_one(tmp_path):
    attempt = Attempt(assign_odd(tmp_path, charts=["a", "b"]))
    assert not attempt.advance().finished
    assert not (tmp_path / "charts").exists()
    assert attempt.advance().finished
    assert sorted(path.name for path in (tmp_path / "charts").iterdir()) == ["a.json", "b.json"]
    assert Chart.from_json((tmp_path / "charts" / "b.json").read_text()) == chart("b", steps=2)


def test_a_trial_without_charts_leaves_no_folder_of_them(tmp_path):
    assert run(Attempt(assign_odd(tmp_path)))[-1].finished
    assert not (tmp_path / "charts").exists()


@pytest.mark.parametrize(("charts", "error"), [(["bug"], "ZeroDivisionError: no chart"), (["a", "a"], "charts must differ")])
def test_a_chart_that_raises_is_told_in_the_log_and_costs_the_trial_nothing(tmp_path, charts, error):
    assert run(Attempt(assign_odd(tmp_path, charts=charts)))[-1].finished
    assert (tmp_path / "model" / "model.safetensors").exists()
    assert not (tmp_path / "charts").exists()
    assert error in (tmp_path / "log.txt").read_text()


def test_a_storage_that_keeps_no_charts_is_not_the_trials_failure(tmp_path):
    (tmp_path / "charts").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="must keep charts"):
        run(Attempt(assign_odd(tmp_path, charts=["a"])))


def offers(report):
    return [offer for measurement in report.measurements for offer in measurement.candidates]


def test_a_candidate_is_a_model_on_disk_before_it_is_reported(tmp_path):
    attempt = Attempt(assign_odd(tmp_path, candidates=[0, 1]))
    first = attempt.advance()
    folders = [f"candidates/{number:05d}-1" for number in range(4)]
    assert offers(first) == [
        {"number": number, "metrics": {"loss": 0.25}, "folder": folder} for number, folder in enumerate(folders[:2])
    ]
    assert sorted(f"candidates/{path.name}" for path in (tmp_path / "candidates").iterdir()) == folders[:2]
    assert load_model(tmp_path / folders[1], trusted=[ODD])["x"].tolist() == [1, 1]
    assert [offer["folder"] for offer in offers(attempt.advance())] == folders[2:]
    assert load_model(tmp_path / folders[2], trusted=[ODD])["x"].tolist() == [2, 0]


def test_a_candidate_has_a_passport_with_its_own_metrics(tmp_path):
    Attempt(assign_odd(tmp_path, candidates=[0, 1])).advance()
    passport = read_passport(tmp_path / "candidates" / "00001-1")
    assert (passport["candidate"], passport["metrics"], passport["config"]["candidates"]) == (1, {"loss": 0.25}, [0, 1])


def test_candidates_are_told_again_by_the_next_attempt_and_counted_on(tmp_path):
    first = Attempt(assign_odd(tmp_path, candidates=[0, 1]))
    first.advance()
    first.close()
    report = Attempt(assign_odd(tmp_path, candidates=[0, 1])).advance()
    assert [offer["number"] for offer in offers(report)] == [0, 1, 2, 3]
    assert Report.from_json(report.to_json()) == report
    finished = Attempt(assign_odd(tmp_path, candidates=[0, 1])).advance()
    assert offers(finished) == offers(report)


def test_measurements_of_an_older_checkpoint_have_no_candidates():
    assert Measurement(**{"step": 1, "metrics": {}, "progress": 0.5}).candidates == []


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"candidates": [1]}, r"candidates must be numbered from 0, one by one, but got \[1\] where \[0\] should come"),
        ({"candidates": [0], "candidate_metric": "other"}, "candidate 0 must have exactly METRICS"),
        ({"candidates": [0], "candidate_loss": float("nan")}, "candidate 0 reported loss = nan"),
    ],
)
def test_a_candidate_that_breaks_a_law_fails_the_trial(tmp_path, changes, error):
    failure = run(Attempt(assign_odd(tmp_path, **changes)))[-1].failure
    assert re.search(error, failure.error)
    assert not (tmp_path / "candidates").exists()


def test_a_step_whose_candidates_could_not_be_kept_is_made_again(tmp_path):
    (tmp_path / "candidates").write_text("a file where the folder should be")
    attempt = Attempt(assign_odd(tmp_path, progress=0.25, candidates=[0, 1]))
    with pytest.raises(StorageError, match="must keep models"):
        attempt.advance()
    attempt.close()
    (tmp_path / "candidates").unlink()
    reports = run(Attempt(assign_odd(tmp_path, progress=0.25, candidates=[0, 1])))
    assert [m.step for m in measurements(reports)] == [1, 2, 3, 4]
    assert [offer["number"] for report in reports for offer in offers(report)] == list(range(8))


def test_reports_and_assignments_survive_the_way(tmp_path):
    assignment = assign(tmp_path)
    assert Assignment.from_json(assignment.to_json()) == assignment
    for report in (*run(Attempt(assignment)), *run(Attempt(assign(tmp_path / "bad", width=0)))):
        assert Report.from_json(report.to_json()) == report
