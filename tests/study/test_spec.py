import dataclasses
import json
from pathlib import Path

import pytest

from search_spaces import cmsp_curriculum
from search_spaces.space import Constraint, StudySpace
from study.errors import UserError
from study.probe import describe_space
from study.provenance import describe_changes, differences, refuse_drift
from study.spec import StudySpec, accepted_arguments, load_space


def spec(space=None, **changes):
    space = space or cmsp_curriculum.tiny()
    fields = {
        "name": "s", "study_id": "id", "space": "cmsp_curriculum:tiny", "import_paths": [], "description": describe_space(space),
        "sampler": "tpe", "seed": 0, "num_trials": 6, "num_cpus": 1, "num_gpus": 0, "storage": "/s", "tracking_uri": "sqlite:///m",
        "log_scale": [], "color_by": None, "versions": {"torch": "2"}, "commit": None,
    }  # fmt: skip
    return StudySpec(**(fields | changes))


def tiny_with(**changes):
    """The tiny space with other values in every config."""
    original = cmsp_curriculum.tiny()
    return dataclasses.replace(original, suggest=lambda trial: dict(original.suggest(trial)) | changes)


def test_a_spec_survives_its_file(tmp_path):
    space = dataclasses.replace(cmsp_curriculum.cpu())
    spec(space).save(tmp_path / "spec.json")
    assert StudySpec.load(tmp_path / "spec.json") == spec(space)
    assert [path.name for path in tmp_path.iterdir()] == ["spec.json"]


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "t"}, {"num_trials": 60}, {"num_cpus": 2}, {"num_gpus": 1}, {"storage": "s3://b"}, {"tracking_uri": "http://m"},
        {"commit": "abc"}, {"versions": {"torch": "3"}}, {"color_by": "width"}, {"study_id": "other"},
    ],
)  # fmt: skip
def test_name_budget_resources_places_and_versions_are_not_part_of_the_identity(changes):
    assert spec(**changes).hash == spec().hash


@pytest.mark.parametrize("changes", [{"sampler": "random"}, {"seed": 1}])
def test_sampler_and_seed_are(changes):
    assert spec(**changes).hash != spec().hash


def test_a_fixed_value_a_range_an_objective_and_a_constraint_are_part_of_the_identity():
    original = cmsp_curriculum.tiny()
    changed = [
        tiny_with(samples_per_update=128),
        dataclasses.replace(original, objectives=("composite_loss_bits",)),
        dataclasses.replace(original, constraints=()),
        dataclasses.replace(original, suggest=lambda trial: original.suggest(trial) | {"width": trial.suggest_int("w", 8, 9)}),
    ]
    assert len({spec(space).hash for space in [original, *changed]}) == 5


def test_a_representative_is_part_of_the_identity_and_its_absence_is_none(tmp_path):
    chosen = spec(dataclasses.replace(cmsp_curriculum.tiny(), representative="parameters"))
    assert chosen.identity["representative"] == {"parameters": "min"}
    assert "representative" not in spec().identity
    assert chosen.hash != spec().hash
    file = tmp_path / "spec.json"
    chosen.save(file)
    assert StudySpec.load(file) == chosen


def test_a_spec_from_before_there_was_a_representative_loads_as_the_same_study(tmp_path):
    file = tmp_path / "spec.json"
    spec().save(file)
    fields = json.loads(file.read_text())
    del fields["description"]["representative"]
    file.write_text(json.dumps(fields))
    assert StudySpec.load(file) == spec()


def test_parents_are_kept_and_are_no_part_of_the_identity(tmp_path):
    child = spec(name="t", study_id="t-id", parents=spec().as_parents())
    file = tmp_path / "spec.json"
    child.save(file)
    (parent,) = json.loads(file.read_text())["parents"]
    assert parent == {"study": "s", "study_id": "id", "spec_hash": spec().hash, "num_trials": 6}
    assert StudySpec.load(file) == child
    assert child.hash == spec().hash


def test_a_spec_from_before_there_were_forks_has_no_parents(tmp_path):
    file = tmp_path / "spec.json"
    spec().save(file)
    fields = json.loads(file.read_text())
    del fields["parents"]
    file.write_text(json.dumps(fields))
    assert StudySpec.load(file) == spec()


def test_the_same_space_written_otherwise_has_the_same_identity():
    original = cmsp_curriculum.tiny()
    rewritten = dataclasses.replace(original, suggest=lambda trial: dict(sorted(original.suggest(trial).items())))
    assert spec(rewritten).hash == spec().hash


def test_a_difference_is_shown_by_its_name():
    assert "fixed.samples_per_update: 64 -> 128" in differences(spec().identity, spec(tiny_with(samples_per_update=128)).identity)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": ("accuracy",)}, r"an objective must be a metric of cmsp_curriculum that has a goal, but got 'accuracy'"),
        ({"constraints": ("accuracy >= 1",)}, "a constraint must bound a metric of cmsp_curriculum"),
        ({"representative": "accuracy"}, "a representative must be a metric of cmsp_curriculum that has a goal"),
        ({"representative": "updates_per_second"}, "a representative must be a metric of cmsp_curriculum that has a goal"),
        ({"experiment": "cmsp"}, "experiment must be one of cmsp_curriculum"),
        ({"experiment": "nowhere:Thing"}, "must be importable"),
        ({"experiment": "json:JSONDecoder"}, "must be a subclass"),
        ({"suggest": lambda trial: None}, "must return the config's arguments as a dict"),
        ({"suggest": lambda trial: {"width": trial.suggest_int("width", -4, 4)}}, "every draw of a space must be a valid config"),
        ({"suggest": lambda trial: {"wdth": 3}}, "every draw of a space must be a valid config"),
        ({"first_trials": ({"width": 16},)}, "a first trial must give exactly the parameters"),
        (
            {"first_trials": ({"related_atoms": 0, "width": 17, "learning_rate": 2e-3},)},
            "width must be in 16 .. 48",
        ),
        ({"suggest": lambda trial: 1 / 0}, r"raised ZeroDivisionError: division by zero at .*test_spec.py"),
        ({"suggest": lambda trial: {"width": trial.suggest_int("w[0]", 1, 2)}}, "a parameter's name must be letters"),
    ],
)
def test_a_broken_space_is_refused_before_any_trial(changes, message):
    with pytest.raises(UserError, match=message):
        describe_space(dataclasses.replace(cmsp_curriculum.tiny(), **changes))


def test_constraints_are_sentences():
    assert Constraint.parse("loss<=0.5").violation({"loss": 0.75}) == 0.25
    assert Constraint.parse("accuracy >= 0.9").violation({"accuracy": 0.95}) < 0
    with pytest.raises(ValueError, match="a constraint must read"):
        Constraint.parse("loss < 0.5")
    with pytest.raises(ValueError, match="at least one objective"):
        StudySpace(experiment="x", suggest=dict, objectives=())


def test_of_some_arguments_a_space_accepts_those_it_takes(tmp_path: Path):
    (tmp_path / "picky.py").write_text("def some(a, *, b=1): ...\ndef every(**rest): ...\n")
    given = {"a": 1, "b": 2, "c": 3}
    assert accepted_arguments("picky:some", given, folder=tmp_path) == {"a": 1, "b": 2}
    assert accepted_arguments("picky:every", given, folder=tmp_path) == given
    with pytest.raises(UserError, match="no function 'none'"):
        accepted_arguments("picky:none", given, folder=tmp_path)


SPACE = """
from search_spaces.space import StudySpace
def mine():
    return StudySpace(experiment="cmsp_curriculum", suggest=lambda trial: {}, objectives=("parameters",))
def number():
    return 3
def empty():
    return StudySpace(experiment="x", suggest=dict, objectives=())
"""


def test_a_local_module_is_found_and_named_to_the_workers(tmp_path: Path):
    (tmp_path / "my_local_spaces.py").write_text(SPACE)
    space, paths, notice = load_space("my_local_spaces:mine", folder=tmp_path)
    assert (space.objectives, paths, notice) == (("parameters",), [str(tmp_path)], None)


def test_a_local_module_that_hides_one_of_ours_is_said_aloud(tmp_path: Path):
    (tmp_path / "cmsp_curriculum.py").write_text(SPACE)
    space, _, notice = load_space("cmsp_curriculum:mine", folder=tmp_path)
    assert space.objectives == ("parameters",)
    assert "hides search_spaces.cmsp_curriculum" in notice


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("cmsp_curriculum", "must be given as module:function"),
        ("nowhere:tiny", r"there is no module 'nowhere'"),
        ("cmsp_curriculum:huge", "no function 'huge'; use cmsp_curriculum:cpu or"),
        ("cmsp_curriculum:_suggest_breadth", "no function"),
        ("bad_spaces:number", "must return a search_spaces.space.StudySpace"),
        ("json:tiny", "a local space's name must be its own"),
        ("needy:tiny", "needs no_such_package"),
        ("broken:tiny", "raised SyntaxError"),
        ("empty_space:empty", "raised ValueError: a space must have at least one objective"),
    ],
)
def test_a_space_that_cannot_be_loaded_is_the_users_mistake(tmp_path: Path, reference, message):
    sources = {"bad_spaces": SPACE, "empty_space": SPACE, "json": SPACE, "broken": "def", "needy": "import no_such_package"}
    module = reference.partition(":")[0]
    if module in sources:
        (tmp_path / f"{module}.py").write_text(sources[module])
    with pytest.raises(UserError, match=message):
        load_space(reference, folder=tmp_path)


def test_other_code_is_worth_a_word_and_another_mlflow_is_refused():
    assert describe_changes(spec(), spec()) is None
    assert "torch: 2 -> 3" in describe_changes(spec(), spec(versions={"torch": "3"}))
    assert "commit: None -> abc" in describe_changes(spec(), spec(commit="abc"))
    refuse_drift(spec(), spec(commit="abc"))
    refuse_drift(spec(), spec(num_trials=60))
    with pytest.raises(UserError, match=r"'s' differs now \(seed: 0 -> 1\); fork it: study fork s s-2 --seed 1, or undo the"):
        refuse_drift(spec(), spec(seed=1))
    with pytest.raises(UserError, match="budget only grows, from 6 trials"):
        refuse_drift(spec(), spec(num_trials=3))
    with pytest.raises(UserError, match="stay in one MLflow"):
        refuse_drift(spec(), spec(tracking_uri="http://elsewhere"))
