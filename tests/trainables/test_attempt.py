"""An attempt without Ray: build, advance, save, go on, fail."""

import dataclasses

import pytest

from trainables.attempt import Attempt
from trainables.cmsp.curriculum import CurriculumConfig
from trainables.model_files import load_model
from trainables.protocol import Assignment, Report

TINY = dataclasses.asdict(CurriculumConfig.tiny())


def assign(folder, *, experiment="cmsp_curriculum", attempt=1, **config):
    return Assignment(
        experiment=experiment, config=TINY | config, trial=3, attempt=attempt, folder=str(folder),
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


def test_a_closed_attempt_goes_on_in_the_next_one_with_the_same_numbers(tmp_path):
    straight = measurements(run(Attempt(assign(tmp_path / "straight"))))
    first = Attempt(assign(tmp_path / "cut"))
    first.advance()
    first.close()
    reports = run(Attempt(assign(tmp_path / "cut", attempt=2)))
    assert [m.step for m in reports[0].measurements] == [1, 2]  # the study may never have heard the first
    assert measurements(reports) == straight
    assert (tmp_path / "cut" / "log.txt").read_text().count("attempt") == 2


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


def test_reports_and_assignments_survive_the_way(tmp_path):
    assignment = assign(tmp_path)
    assert Assignment.from_json(assignment.to_json()) == assignment
    for report in (*run(Attempt(assignment)), *run(Attempt(assign(tmp_path / "bad", width=0)))):
        assert Report.from_json(report.to_json()) == report
