"""Several studies asked as one: by name, pattern, tag; with experiments that no study made; over seeds; by the command."""

import json

import pytest
from made_runs import MadeStudy, copy_of_store, foreign_run
from made_trials import record, trials_of

from study import open_studies
from study.asking.query import Study
from study.cli import main
from study.errors import UserError
from study.fronts.front import Objective, make_front
from study.fronts.seeds import front_over_seeds
from study.home import Home
from study.recording.tracking import STUDY_TAG, connect


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A home with three studies, one of them of other objectives, and an experiment of somebody else's."""
    home = tmp_path_factory.mktemp("home")
    uri = f"sqlite:///{home}/mlflow.db"
    first = MadeStudy(uri, "lasso-1", study_id="1")
    first.trial(0, params={"strength": 1.0, "seed": 0}, loss=1.0, size=9.0)
    first.trial(1, params={"strength": 1.0, "seed": 1}, loss=2.0, size=9.0)
    first.trial(2, params={"strength": 3.0, "seed": 0}, loss=4.0, size=2.0)
    first.trial(3, "failed")
    second = MadeStudy(uri, "lasso-2", study_id="2", tags={"constraints": ["loss <= 3"]})
    run_id = second.trial(0, params={"strength": 1.0, "seed": 0}, loss=1.5, size=8.0)
    second.candidate(0, run_id, 0, loss=1.5, size=3.0)
    second.candidate(0, run_id, 1, loss=3.5, size=0.5)
    other = MadeStudy(uri, "other", study_id="3", tags={"objectives": [{"metric": "loss", "goal": "max", "unit": ""}]})
    other.trial(0, loss=0.0, size=1.0)
    other.client.set_experiment_tag(other.experiment_id, "team", "alice")
    experiment = first.client.create_experiment("theirs")
    foreign_run(first.client, experiment, params={"lr": 0.1, "kind": "a"}, val=0.5, size=30.0)
    foreign_run(first.client, experiment, end="KILLED", val=0.1, size=1.0)
    return home


def labels(rows):
    return [row.label for row in rows]


def test_studies_merge_into_one_front_with_each_ones_own_constraints(place):
    front = open_studies(["lasso-1", "lasso-2"], home=place).front()
    assert front.study == "lasso-1+lasso-2"
    assert labels(front.rows) == ["lasso-1/0", "lasso-2/0.0", "lasso-1/2"]
    assert labels(front.infeasible) == ["lasso-2/0.1"]
    assert front.left_out == {"failed": 1, "infeasible": 1}


def test_one_study_comes_as_itself(place):
    assert isinstance(open_studies(["lasso-1"], home=place), Study)
    assert labels(open_studies(["lasso-1"], home=place).front().rows) == ["0", "2"]


def test_a_pattern_finds_studies(place):
    assert open_studies(["lasso-*"], home=place).name == "lasso-1+lasso-2"
    with pytest.raises(UserError, match=r"a pattern must fit a study, but 'x\*' fits none of .*lasso-1, lasso-2, "):
        open_studies(["x*"], home=place)


def test_a_tag_of_the_experiment_finds_studies(place):
    assert open_studies(tags=["team=alice"], home=place).name == "other"
    with pytest.raises(UserError, match="--tag must be KEY=VALUE, but got 'team'"):
        open_studies(tags=["team"], home=place)
    with pytest.raises(UserError, match="none has 'team=bob'"):
        open_studies(tags=["team=bob"], home=place)


def test_nothing_named_is_a_mistake(place):
    with pytest.raises(UserError, match="some study must be named, but got none"):
        open_studies(home=place)


def test_studies_without_common_objectives_must_be_asked_for_some(place):
    both = open_studies(["lasso-1", "other"], home=place)
    with pytest.raises(UserError, match="several studies must have the same objectives"):
        both.front()
    assert labels(both.front(["loss:max"]).rows) == ["lasso-1/2"]


def test_an_experiment_of_somebody_elses_takes_part_under_our_names(place):
    studies = open_studies(["lasso-1", "theirs"], metrics={"val": "loss"}, home=place)
    front = studies.front()
    assert labels(front.rows) == ["theirs/0", "lasso-1/0", "lasso-1/2"]
    assert front.rows[0].params == {"lr": 0.1, "kind": "a"}
    assert front.left_out == {"failed": 1, "interrupted": 1}
    alone = open_studies(["theirs"], home=place)
    assert labels(alone.front(["val:max", "size:min"]).rows) == ["0"]


def test_models_that_differ_in_their_seed_are_one_row_with_a_band(place):
    front = open_studies(["lasso-1"], home=place).front()
    over_seeds = front_over_seeds(front, "seed")
    first, second = over_seeds.rows
    assert (first.params, first.labels, first.means) == ({"strength": 1.0}, ("0", "1"), {"loss": 1.5, "size": 9.0})
    assert first.intervals["loss"] == (1.0, 2.0)
    assert (second.params, second.intervals["loss"], second.front_share) == ({"strength": 3.0}, None, 1.0)
    assert over_seeds.hypervolume_interval is not None
    assert over_seeds == front_over_seeds(front, "seed")


def test_a_seed_must_be_a_parameter(place):
    front = open_studies(["lasso-1"], home=place).front()
    with pytest.raises(
        UserError, match=r"--seeds must name a parameter, 'study' or 'replicate', but got 'sed' \(parameters: strength, seed\)"
    ):
        front_over_seeds(front, "sed")


def seeds_of(*records, seed, **options):
    """Labels of each row."""
    front = make_front("s", trials_of(*records, **options), trials_of(), [Objective(metric="loss", goal="min")], constraints={})
    return sorted(row.labels for row in front_over_seeds(front, seed).rows)


def test_models_of_two_studies_are_no_repeats_where_a_parameter_is_the_seed():
    records = [record(n, {"loss": 1.0}, params={"seed": n}, study=study) for study in "ab" for n in (0, 1)]
    assert seeds_of(*records, seed="seed", is_merged=True) == [("a/0", "a/1"), ("b/0", "b/1")]


def test_replicates_are_trials_with_the_same_parameters():
    records = [record(n, {"loss": 1.0 + n}, params={"width": n // 2}) for n in range(5)]
    assert seeds_of(*records, seed="replicate") == [("0", "1"), ("2", "3"), ("4",)]


def test_a_seed_that_was_drawn_twice_counts_once_with_the_first_trial():
    records = [record(n, {"loss": -float(n)}, params={"seed": seed}) for n, seed in enumerate([0, 1, 0, 1, 0])]
    assert seeds_of(*records, seed="seed") == [("0", "1")]
    doubles = [record(n, {"loss": -float(n)}, study=study) for study in "ab" for n in (0, 1)]
    assert seeds_of(*doubles, seed="study", is_merged=True) == [("a/0", "b/0")]


def test_over_the_seeds_of_an_empty_front_there_is_nothing():
    front = make_front("s", trials_of(), trials_of(), [Objective(metric="loss", goal="min")], constraints={})
    over_seeds = front_over_seeds(front, "seed")
    assert (over_seeds.rows, over_seeds.hypervolume_median, over_seeds.reference) == ((), 0.0, {})


@pytest.mark.parametrize(
    ("names", "metrics", "told"),
    [
        (["theirs"], {"val": "size"}, "two metrics must not become one, but got size twice"),
        (["theirs"], {"vall": "loss"}, "must be there to be renamed, but got vall; there are size, val; did you mean 'val'"),
        (["theirs"], {"val": ""}, "must be renamed as THEIRS=OURS, but got val="),
        (["lasso-1"], {"loss": "val"}, "must be there to be renamed, but got loss; there are no metrics"),
    ],
)
def test_metrics_that_cannot_be_renamed_are_refused(place, names, metrics, told):
    with pytest.raises(UserError, match=told):
        open_studies(names, metrics=metrics, home=place)


@pytest.fixture
def own(store, tmp_path):
    """A home with a database of its own."""
    return copy_of_store(store, tmp_path / "home")


def test_a_study_that_has_not_begun_is_an_error_only_if_it_is_named(own, tmp_path):
    MadeStudy(own, "first-1").client.create_experiment("first-2", tags={STUDY_TAG: "first-2", "team": "carol"})
    home = tmp_path / "home"
    assert open_studies(["first*"], home=home).name == "first-1"
    for question in ({"names": ["first-2", "first*"]}, {"tags": ["team=carol"]}):
        with pytest.raises(UserError, match="'first-2' has none yet"):
            open_studies(**question, home=home)


def test_the_very_name_of_an_experiment_comes_before_a_pattern(own, tmp_path):
    experiment = MadeStudy(own, "runs-1").client.create_experiment("runs*")
    foreign_run(connect(own), experiment, loss=1.0)
    assert open_studies(["runs*"], home=tmp_path / "home").name == "runs*"


def test_a_study_with_a_tag_is_asked_where_it_was_found(own, store, tmp_path):
    server = copy_of_store(store, tmp_path / "server")
    for name in ("launched", "of-somebody"):
        made = MadeStudy(server, name)
        made.client.set_experiment_tag(made.experiment_id, "team", "dave")
    folder = Home(tmp_path / "home").study("launched")
    folder.path.mkdir(parents=True)
    folder.spec_file.write_text(json.dumps({"tracking_uri": server}))
    folder.optuna_file.touch()
    assert open_studies(tags=["team=dave"], home=tmp_path / "home").name == "launched+of-somebody"


def ask(capsys, monkeypatch, home, *options):
    """What the command prints, and its exit status."""
    monkeypatch.setattr("sys.argv", ["study", "pareto", *options])
    monkeypatch.setenv("STUDY_HOME", str(home))
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr()
    return printed.out + printed.err, end.value.code


def test_the_command_answers_for_scripts(capsys, monkeypatch, place):
    asked = "lasso-1 lasso-2 --json --dominated --hypervolume --seeds study --reference loss=5 --reference size=10"
    fields = json.loads(ask(capsys, monkeypatch, place, *asked.split())[0])
    assert [row["label"] for row in fields["front"]] == ["lasso-1/0", "lasso-2/0.0", "lasso-1/2"]
    assert fields["knee"] == "lasso-2/0.0"
    assert fields["hypervolume"] == pytest.approx(4 * 1 + 3.5 * 6 + 1 * 1)
    assert fields["dominated"] == [{"label": "lasso-1/1", "by": "lasso-2/0.0", "gaps": {"loss": 0.5, "size": 6.0}}]
    assert {row["labels"][0] for row in fields["over_seeds"]["rows"]} >= {"lasso-1/0", "lasso-2/0.0"}
    times, volumes = zip(*fields["hypervolume_over_time"], strict=True)
    assert list(times) == sorted(times)
    assert list(volumes) == sorted(volumes)
    assert volumes[-1] == pytest.approx(fields["hypervolume"])
    knee = json.loads(ask(capsys, monkeypatch, place, "lasso-*", "--knee", "--json")[0])
    assert (knee["study"], knee["trial"], knee["candidate"]) == ("lasso-2", 0, 0)


def test_the_command_answers_for_people(capsys, monkeypatch, place):
    told, status = ask(capsys, monkeypatch, place, "lasso-1", "--hypervolume", "--dominated", "--seeds", "seed")
    assert status == 0
    assert "its hypervolume is 4.06 [3.71, 4.41]" in told
    assert "hypervolume: " not in told  # that of the single models would be another
    assert "means over seed" in told
    assert "1.5 [1, 2]" in told
    told, _ = ask(capsys, monkeypatch, place, "lasso-1", "lasso-2", "--knee", "--hypervolume")
    assert "hypervolume: " in told
    assert "knee, the best compromise: lasso-2/0.0" in told
    assert "lasso-1/2" not in told
    told, _ = ask(capsys, monkeypatch, place, "lasso-1", "--constraint", "loss <= 0")
    assert "the front of lasso-1 is empty" in told
    assert "3 infeasible" in told


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["lasso-1", "--objective", "los:min"], "must be a metric of lasso-1, but got 'los'"),
        (["lasso-1", "--objective", "size"], None),
        (["lasso-1", "--objective", "strength"], "an objective must be metric:min or metric:max, but got 'strength'"),
        (["lasso-1", "--reference", "loss=x"], "--reference must be METRIC=NUMBER, but got 'loss=x'"),
        (["lasso-1", "--reference", "loss=1"], "a reference must have a value for each objective (loss, size)"),
        (["lasso-1", "--reference", "loss=nan", "--reference", "size=1"], "a reference must have finite values"),
        (["lasso-1", "--constraint", "loss"], "a constraint must read 'metric >= number'"),
        (["lasso-1", "--constraint", "loss <= nan"], "a constraint must read 'metric >= number'"),
        (["lasso-1", "--constraint", "los <= 3"], "a constraint must bound a metric of lasso-1, but got 'los'"),
        (["lasso-3"], "has no 'lasso-3' (there: "),
    ],
)
def test_a_mistake_is_one_sentence(capsys, monkeypatch, place, options, sentence):
    told, status = ask(capsys, monkeypatch, place, *options)
    assert status == (0 if sentence is None else 2)
    assert sentence is None or (sentence in told and told.startswith("study: ") and told.count("\n") == 1)
