"""Tables of a front, of spaces with few parameters and with many; what interruptions cost."""

import commands
import pytest
from typer.testing import CliRunner

from study.asking.trials import TrialRow
from study.cli import app
from study.fronts.front import Front, Objective
from study.recording.outbox import Outbox
from study.recording.tracking_writer import StudyWriter
from study.reporting.report import front_table


def row(number, **params):
    empty = {"run_id": "r", "state": "finished", "attempts": 1, "host": None, "failure": None, "start_ms": 0, "end_ms": 1}
    return TrialRow(number=number, params=params, metrics={"loss": float(number)}, charts=(), **empty)


def table(*rows):
    objective = Objective(metric="loss", goal="min", unit="nats")
    made = front_table(Front(study="s", objectives=(objective,), rows=rows, dominated=(), infeasible=(), left_out={}))
    return [column.header for column in made.columns], list(zip(*(column.cells for column in made.columns), strict=True))


def test_few_parameters_have_a_column_each():
    assert table(row(0, a=1, b=2), row(1, a=3)) == (["trial", "loss ↓", "a", "b"], [("0", "0", "1", "2"), ("1", "1", "3", "-")])


def test_of_many_parameters_those_that_only_some_rows_have_share_a_column():
    shared = {f"p{number}": number for number in range(9)}
    headers, cells = table(row(0, **shared, x=0.12345, y="way"), row(1, **shared))
    assert headers == ["trial", "loss ↓", *shared, "of its own"]
    assert [line[-1] for line in cells] == ["x 0.1235, y way", ""]


def test_many_parameters_that_all_rows_have_keep_their_columns():
    shared = {f"p{number}": number for number in range(12)}
    assert table(row(0, **shared))[0] == ["trial", "loss ↓", *shared]


@pytest.fixture
def broken_study(store, tmp_path, home):
    """(name, options) of a study whose trial 0 was interrupted and whose trial 1 was not."""
    outbox, name = Outbox(tmp_path / "outbox.db"), "report-broken"
    study = {
        "objectives": [], "constraints": [], "log_scale": [], "color_by": "null", "num_trials": "2", "space": "m:f",
        "storage": str(tmp_path),
    }  # fmt: skip
    outbox.put("session_start", "session/1/start", {"tags": study})
    for trial, repeated in ((0, {"repeated_steps": "3", "repeated_seconds": "4.196"}), (1, {})):
        outbox.put("trial_start", f"trial/{trial}/start/1", {"params": {}, "tags": {"params": {}}}, trial=trial)
        end = {"state": "finished", "tags": repeated, "model": None, "charts": None}
        outbox.put("trial_end", f"trial/{trial}/end/1", end, trial=trial)
    StudyWriter(outbox, name=name, study_id="id", tracking_uri=store, artifacts=None).deliver()
    outbox.close()
    return name, ("--tracking-uri", store)


def told(*arguments):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def test_work_that_was_repeated_is_told_of_a_trial_and_summed_over_a_study(broken_study, home):
    name, options = broken_study
    repeated = "repeated 3 steps (4.2 s) after interruptions"
    assert repeated in told("trial", name, "0", *options)
    assert repeated not in told("trial", name, "1", *options)
    assert f"{name} (m:f, unknown): 2 finished; budget 2 trials; {repeated}" in told("status", name, *options)
    trials = commands.run_json("status", name, *options, home=home)["trials"]
    assert [(row["repeated_steps"], row["repeated_seconds"]) for row in trials] == [(3, 4.196), (0, 0.0)]
