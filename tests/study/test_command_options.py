"""Options that are more than a word: first trials of a file or as JSON, options of a sampler, limits."""

import json

import pytest
import typer
from typer.testing import CliRunner

from study.commands.options import GivenTrials, read_given, read_limits, read_sampler_options
from study.errors import UserError
from study.spec import Limits


def given(*words):
    """What --first comes to."""
    app, heard = typer.Typer(), []

    @app.command()
    def command(first: GivenTrials = None):
        heard.append(first)

    result = CliRunner().invoke(app, words, catch_exceptions=False, standalone_mode=False)
    assert result.exit_code == 0
    return read_given(heard[0])


def test_first_trials_come_from_json_a_json_file_or_a_front_as_csv(tmp_path):
    trials = [{"width": 32, "method": "mask"}, {"width": 64, "rate": 0.001}]
    file = tmp_path / "trials.json"
    file.write_text(json.dumps(trials))
    table = tmp_path / "front.csv"
    table.write_text("width,method,rate\n32,mask,\n64,,0.001\n")
    assert given("--first", json.dumps(trials)) == given("--first", str(file)) == given("--first", str(table)) == trials
    assert given() == []


@pytest.mark.parametrize("text", ['{"width": 3}', "[3]", "[{}]", "[oops"])
def test_what_is_no_list_of_parameter_sets_is_refused(text):
    with pytest.raises(UserError, match="--first must be a list of parameter sets"):
        read_given(text)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="--first must be a file of trials"):
        given("--first", str(tmp_path / "none.json"))


def test_options_of_a_sampler_are_json_where_they_can_be():
    read = read_sampler_options(["n_startup_trials=20", "constant_liar=false", "name=x"])
    assert read == {"n_startup_trials": 20, "constant_liar": False, "name": "x"}
    with pytest.raises(UserError, match="--sampler-set must be KEY=VALUE"):
        read_sampler_options(["seed"])


def test_limits_that_are_given_take_the_place_of_their_own_kind_alone():
    assert read_limits(None, None, None) is None
    before = Limits(cpu_hours=1.0, flops=1e12)
    assert before.with_those_of(None) == before
    assert before.with_those_of(read_limits(2.0, None, None)) == Limits(cpu_hours=2.0, flops=1e12)
