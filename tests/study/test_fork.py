"""A study that begins where another's search stands, and remembers it."""

import dataclasses
import io
import json
import os
from pathlib import Path

import commands
import pytest
from rich.console import Console
from test_spec import spec
from typer.testing import CliRunner

from study import launch, open_study, resume, run
from study.cli import app
from study.errors import UserError
from study.home import Home
from study.life import fork
from study.provenance import next_name, refuse_drift, session_tags
from study.running.cluster import ray_session
from study.spec import StudySpec
from trainables.experiment import Experiment, Metric


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    x: float
    folder: str


class Sized(Experiment):
    """Never runs here."""

    Config = Config
    METRICS = (Metric(name="size", goal="min", unit="1", meaning="of x"),)
    progress = 1.0
    step = state_dict = load_state_dict = model_tensors = rebuild = None


SPACES = """
import json
from pathlib import Path
from search_spaces.space import StudySpace

def fine(low=0.0, data="."):
    high = json.loads((Path(__file__).parent / "high.json").read_text())
    config = {"folder": str(Path(data).absolute())}
    return StudySpace(
        experiment="test_fork:Sized", suggest=lambda trial: config | {"x": trial.suggest_float("x", low, high)},
        objectives=("size",), num_trials=4, num_cpus=2,
    )

def plain(data="."):
    return fine(0.5, data)
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder of the user's with a space whose range is in a file, and the user in it."""
    folder = tmp_path / "work"
    folder.mkdir()
    module = f"spaces_of_{abs(hash(str(tmp_path)))}"  # of this test alone: a module is imported once
    (folder / f"{module}.py").write_text(SPACES)
    (folder / "high.json").write_text("1.0")
    monkeypatch.chdir(folder)
    return folder, module


def begin(folder, spec, *_, **__):
    """Get as far as a session's first trial."""
    spec.save(folder.spec_file)
    folder.optuna_file.touch()
    return spec


@pytest.fixture
def sessions(home, monkeypatch):
    """What sessions would have run, and from which folder."""
    seen = []

    def look(folder, spec, *_, **__):
        seen.append((Path.cwd(), spec))
        return begin(folder, spec)

    monkeypatch.setattr(run, "run_session", look)
    return seen


@pytest.fixture
def l1(work, sessions):
    """A study of the user's space."""
    return launch(
        f"{work[1]}:fine", name="l1", arguments={"low": 0.25, "data": "here"}, trials=3, seed=5, sampler="random",
        max_concurrent=2, deterministic=True, cpus_per_trial=0.5, storage="store", tracking_uri="sqlite:///elsewhere.db",
    )  # fmt: skip


def forking(*arguments, **options):
    """Fork, and return the fork's spec and what was printed."""
    told = io.StringIO()
    made = fork(*arguments, console=Console(file=told, width=400), **options)
    return made, told.getvalue()


def changed(one, other):
    names = [field.name for field in dataclasses.fields(one)]
    return {name for name in names if getattr(one, name) != getattr(other, name)}


def test_what_is_not_given_is_the_parents(l1):
    made, told = forking("l1", "l1-2")
    assert changed(l1, made) == {"name", "study_id", "parents"}
    assert made.hash == l1.hash
    assert told.splitlines() == [
        f"l1-2 is forked from l1 ({l1.hash}) and begins with no trials of its own; what differs:",
        "  nothing but its name",
    ]


def test_what_is_given_differs_and_is_printed(l1, work, tmp_path):
    made, told = forking(
        "l1", "l1-2", arguments={"low": 0.5}, trials=7, seed=6, sampler="tpe", deterministic=False, cpus_per_trial=1,
        storage=str(tmp_path / "other"),
    )  # fmt: skip
    assert (made.space_arguments, made.num_trials, made.seed) == ({"low": 0.5, "data": "here"}, 7, 6)
    assert (made.sampler, made.lookahead, made.num_cpus) == ("tpe", None, 1)
    lines = [line.strip() for line in told.splitlines()[1:]]
    assert {
        "deterministic lookahead: 2 -> (absent)", "num_cpus: 0.5 -> 1", "num_trials: 3 -> 7", "seed: 5 -> 6",
        "parameters.x: 0.25 .. 1 -> 0.5 .. 1", "sampler: random -> tpe", "space_arguments.low: 0.25 -> 0.5",
        f"storage: {work[0]}/store -> {tmp_path}/other",
    } <= set(lines)  # fmt: skip


def test_more_trials_at_once_keep_the_parents_deterministic_mode(l1):
    assert forking("l1", "l1-2", max_concurrent=3)[0].lookahead == 3


def test_the_parent_is_left_as_it_is(l1, home):
    files = {path: path.read_bytes() for path in Home().study("l1").path.iterdir()}
    forking("l1", "l1-2", seed=6)
    assert {path: path.read_bytes() for path in Home().study("l1").path.iterdir()} == files


def test_a_fork_of_a_running_study_waits_for_nothing(l1):
    with Home().study("l1").lease():
        assert forking("l1", "l1-2")[0].parents[-1].study == "l1"


def test_a_line_of_forks_keeps_all_its_parents_oldest_first(l1):
    second, _ = forking("l1", "l2", seed=6)
    third, told = forking("l2", "l3", trials=9)
    assert [dataclasses.astuple(parent) for parent in third.parents] == [
        ("l1", l1.study_id, l1.hash, 3),
        ("l2", second.study_id, second.hash, 3),
    ]
    assert StudySpec.load(Home().study("l3").spec_file) == third
    assert f"l3 is forked from l2 ({second.hash})" in told


def test_the_same_command_again_goes_on_with_the_fork(l1, work):
    first, _ = forking("l1", "l1-2", seed=6, trials=7)
    launch(f"{work[1]}:fine", name="l1", arguments=l1.space_arguments, trials=30, seed=5, sampler="random", max_concurrent=2,
           deterministic=True)  # fmt: skip
    again, told = forking("l1", "l1-2", seed=6)
    assert again == first  # its own budget, and its parent as it was
    assert told == ""


def test_a_resume_and_a_launch_of_a_fork_keep_its_parents(l1, work, sessions):
    made, _ = forking("l1", "l1-2", seed=6)
    assert resume("l1-2") == made
    options = {"seed": 6, "sampler": "random", "max_concurrent": 2, "deterministic": True}
    assert launch(f"{work[1]}:fine", name="l1-2", arguments=l1.space_arguments, **options) == made


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("l1", "l1"), r"a fork must have a name of its own, but got 'l1' for both; try: study fork l1 l1-2"),
        (("none", "l1-2"), r"there is no 'none' \(there: l1, other\)"),
        (("l1", "a/b"), "a study's name must be"),
        (("l1", "other"), r"a fork's name must be free, but 'other' is no fork and not of 'l1' as it is; .* study resume other"),
    ],
)
def test_a_fork_that_is_none_is_refused(l1, sessions, arguments, message):
    launch("cmsp_curriculum:tiny", name="other")
    with pytest.raises(UserError, match=message):
        fork(*arguments)
    assert len(sessions) == 2


def test_a_fork_of_another_study_is_no_place_for_this_one(l1):
    launch("cmsp_curriculum:tiny", name="other")
    fork("other", "child")
    with pytest.raises(UserError, match=r"'child' is forked from other \(.*\) and not of 'l1'"):
        fork("l1", "child")


def test_a_fork_that_would_be_another_than_before_is_refused_with_the_way_on(l1):
    fork("l1", "l1-2", seed=6)
    with pytest.raises(UserError, match=r"'l1-2' differs now \(seed: 6 -> 5\); fork it: study fork l1-2 l1-3 --seed 5, or"):
        fork("l1", "l1-2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arguments": {"wide": 1}}, "a space's function takes its own arguments"),
        ({"sampler": "best"}, "sampler must be one of"),
        ({"max_concurrent": 0}, "--max-concurrent must be at least 1, but got 0"),
        ({"space": "nowhere:tiny"}, "there is no module 'nowhere'"),
    ],
)
def test_a_mistake_leaves_no_study(l1, options, message):
    with pytest.raises(UserError, match=message):
        fork("l1", "l1-2", **options)
    assert [folder.name for folder in Home().studies()] == ["l1"]


def test_a_fork_that_fails_before_its_first_trial_leaves_its_name_free(l1, work, monkeypatch):
    def fail(folder, spec, *_, **__):
        spec.save(folder.spec_file)
        raise UserError("a trial must fit the cluster")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="must fit"):
        patch.setattr(run, "run_session", fail)
        fork("l1", "l1-2", seed=6)
    assert [folder.name for folder in Home().studies()] == ["l1"]
    assert launch("cmsp_curriculum:tiny", name="l1-2").parents == ()


def test_a_study_whose_space_has_changed_goes_on_as_a_fork(l1, work):
    (work[0] / "high.json").write_text("2.0")
    command = r"fork it: study fork l1 l1-2, or undo the change"
    with pytest.raises(UserError, match=rf"'l1' differs now \(.*parameters.x: 0.25 .. 1 -> 0.25 .. 2\); {command}"):
        resume("l1")
    made, told = forking("l1", "l1-2")
    assert "parameters.x: 0.25 .. 1 -> 0.25 .. 2" in told
    assert made.hash != l1.hash == made.parents[-1].spec_hash
    assert resume("l1-2") == made


def test_paths_among_the_arguments_lead_from_where_the_parent_was_launched(l1, work, tmp_path, sessions, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("STUDY_HOME", os.path.relpath(Home().path))
    made, told = forking("l1", "l1-2", arguments={"data": "there"}, storage="mine")
    assert made.description.fixed["folder"] == str(work[0] / "there")
    assert f"note: a relative path among the arguments leads from {work[0]}, where l1 was launched" in told
    assert (made.launched_from, made.storage) == (str(work[0]), str(elsewhere / "mine"))
    assert sessions[-1][0] == work[0]
    assert Path.cwd() == elsewhere
    assert resume("l1-2") == made  # the home's path is relative, too
    assert "note" not in forking("l1", "l1-3", arguments={"low": 0.75})[1]


def test_another_space_is_looked_for_here_and_takes_the_arguments_that_it_knows(l1, work, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(f"from {work[1]} import plain as _plain\ndef space(data):\n    return _plain(data)\n")
    monkeypatch.chdir(tmp_path)
    made, _ = forking("l1", "l1-2", space="mine:space")
    assert (made.space, made.space_arguments, made.import_paths) == ("mine:space", {"data": "here"}, [str(tmp_path)])
    assert made.description.fixed["folder"] == str(work[0] / "here")


def test_the_refusal_names_the_fork_that_does_what_was_asked(l1, work):
    def command(**changes):
        with pytest.raises(UserError) as refused:
            refuse_drift(l1, dataclasses.replace(l1, seed=6, **changes))
        return str(refused.value).rpartition("fork it: ")[2]

    assert command(sampler="tpe") == "study fork l1 l1-2 --sampler tpe --seed 6, or undo the change"
    assert command(lookahead=4) == "study fork l1 l1-2 --seed 6 --deterministic --max-concurrent 4, or undo the change"
    assert command(lookahead=None) == "study fork l1 l1-2 --seed 6 --no-deterministic, or undo the change"
    arguments = {"low": [1, 2], "data": "my data"}
    assert command(space="a:b", space_arguments=arguments).startswith(
        "study fork l1 l1-2 --space a:b --set 'low=[1, 2]' --set 'data=my data' --seed 6, or"
    )


def test_a_forks_name_counts_on_and_stays_a_name():
    assert [next_name(name) for name in ("l1", "l1-2", "l1-9", "py-narrow")] == ["l1-2", "l1-3", "l1-10", "py-narrow-2"]
    assert Home().study(next_name("x" * 80)).name == "x" * 78 + "-2"


def test_mlflow_hears_of_the_parents_and_of_a_very_long_line_of_the_last():
    line = spec()
    for number in range(40):
        line = spec(name=f"{'x' * 76}-{number}", study_id="f" * 32, parents=line.as_parents())
    told = session_tags(line)["parents"]
    assert len(json.dumps(told)) < 7900
    assert told[-1] == {"study": f"{'x' * 76}-38", "study_id": "f" * 32, "spec_hash": spec().hash, "num_trials": 6}
    assert session_tags(spec())["parents"] == []


@pytest.mark.slow
def test_a_fork_runs_and_tells_of_its_parent(home, monkeypatch):
    with monkeypatch.context() as patch:  # nobody asks what the parent found
        patch.setattr(run, "run_session", begin)
        parent = launch("cmsp_curriculum:tiny", name="l1", trials=1)
    with ray_session(None):
        assert fork("l1", "l1-2", seed=1, console=Console(quiet=True)).num_finished == 1
    origin = dataclasses.asdict(parent.as_parents()[0])
    assert [dataclasses.asdict(known) for known in open_study("l1-2").parents] == [origin]
    tags = commands.mlflow_runs(home, "l1-2").query("`tags.narrow_study.trial` == '-1'")["tags.narrow_study.parents"]
    assert [json.loads(text) for text in tags] == [[origin]]
    assert [row["parents"] for row in commands.run_json("list", home=home)] == [[], [origin]]
    assert commands.run_json("status", "l1-2", home=home)["parents"] == [origin]
    shown = f"l1 ({parent.hash})"
    assert f"forked from {shown}" in CliRunner().invoke(app, ["status", "l1-2"]).stdout
    assert shown in CliRunner().invoke(app, ["list"]).stdout
