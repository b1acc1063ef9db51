"""What a study keeps: the rule, the writer that follows it, and its death at any instant of a clean-up."""

import contextlib
import math
import random
import sqlite3
import subprocess
import sys
import time
import uuid

import mlflow
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from retention_desk import Desk

from search_spaces.space import Constraint
from study.asking.registration import register_model
from study.asking.trials import TrialRow
from study.errors import UserError
from study.fronts.pareto import non_dominated
from study.keeping import artifacts, disk, settling
from study.keeping.retention import DROPPED, MODEL_TAG, REGISTERED_TAG, Model, Rule, Stock, refuse_dropped
from study.recording import tracking_writer
from study.recording.outbox import Outbox
from study.running.session import settle_ended
from trainables.model_files import load_model

FRONT = Rule(objectives={"loss": "min", "size": "min"}, keep="front", floor_bytes=1000, band=0.0)


class Died(BaseException):
    """SIGKILL, as nearly as one process can play it."""


def model(number, costs, num_bytes=100):
    return Model(number, None, f"run-{number}", num_bytes, costs)


def stock(rule, costs, num_bytes=100):
    return Stock(rule, [model(number, row, num_bytes) for number, row in enumerate(costs)])


def gone(rule, costs, num_bytes=100):
    return [model.trial for model in stock(rule, costs, num_bytes).take_excess()]


def test_costs_are_lower_better_and_those_of_no_place_on_the_front_are_none():
    rule = Rule(objectives={"accuracy": "max", "size": "min"}, constraints=(Constraint.parse("loss <= 1"),))
    assert rule.costs({"accuracy": 0.5, "size": 3.0, "loss": 1.0}) == (-0.5, 3.0)
    assert rule.costs({"accuracy": 0.5, "size": 3.0, "loss": 1.5}) is None
    assert rule.costs({"accuracy": 0.5, "size": 3.0, "loss": math.nan}) is None
    assert rule.costs({"accuracy": math.nan, "size": 3.0, "loss": 0.0}) is None
    assert rule.costs({"accuracy": 0.5, "loss": 0.0}) is None
    assert rule.costs({"accuracy": 0.5, "size": 3.0}) is None
    assert Rule().costs({"accuracy": 0.5}) is None


def test_nothing_goes_while_all_models_together_are_no_more_than_the_floor():
    costs = [(float(number), float(number)) for number in range(10)]
    assert gone(FRONT, costs) == []
    assert gone(FRONT, costs, num_bytes=101) == [1]


def test_the_oldest_of_the_dominated_go_first_and_only_as_many_as_needed():
    costs = [(9.0 - number, 9.0 - number) for number in range(13)]
    assert gone(FRONT, costs) == [0, 1, 2]


def test_what_can_never_be_on_the_front_goes_before_what_is_dominated():
    assert gone(FRONT, [(9.0, 9.0), (1.0, 1.0), None, None], num_bytes=300) == [2]
    assert gone(FRONT, [(9.0, 9.0), (1.0, 1.0), None, None], num_bytes=600) == [2, 3, 0]


def test_a_front_is_kept_however_large_it_is_and_so_are_equal_models():
    assert gone(FRONT, [(float(x), -float(x)) for x in range(40)]) == []
    assert gone(FRONT, [(1.0, 1.0)] * 40) == []


def test_what_is_near_the_front_in_every_objective_is_kept():
    near = Rule(objectives=FRONT.objectives, keep="front", floor_bytes=0, band=0.05)
    ends = [(0.0, 100.0)] * 8 + [(10.0, 0.0)]  # ranges of 10 and 100
    assert gone(near, [*ends, (0.4, 100.0), (0.6, 100.0), (0.4, 106.0), (10.4, 5.0), (99.0, 0.0)]) == [10, 11, 13]


def test_of_what_is_near_the_front_the_nearest_is_kept_as_long_as_it_is_little_beside_the_front():
    near = Rule(objectives=FRONT.objectives, keep="front", floor_bytes=0, band=0.05)
    front = [(float(x), 100.0 - x) for x in range(0, 101, 10)]
    assert gone(near, [*front, *((0.1 * step, 100.0) for step in range(1, 7))]) == [16, 15, 14, 13]


def test_with_keep_all_nothing_goes():
    assert gone(Rule(objectives=FRONT.objectives, keep="all", floor_bytes=0), [(1.0, 1.0), (2.0, 2.0), None]) == []


COST = st.sampled_from([0.0, 1.0, 2.0, 3.0, math.inf])


@settings(deadline=None, max_examples=300, derandomize=True)
@given(
    rows=st.lists(st.none() | st.tuples(COST, COST, COST), max_size=25),
    floor=st.sampled_from([0, 300, 1200]),
    band=st.sampled_from([0.0, 0.3]),
    asks=st.lists(st.booleans(), min_size=25, max_size=25),
)
def test_whenever_it_is_asked_the_front_of_all_models_is_among_those_that_are_kept(rows, floor, band, asks):
    rule = Rule(objectives=dict.fromkeys("abc", "min"), keep="front", floor_bytes=floor, band=band)
    kept, taken = Stock(rule), set()
    for number, row in enumerate(rows):
        kept.add(model(number, row))
        if asks[number]:
            before = kept.num_bytes
            now = kept.take_excess()
            taken |= {one.trial for one in now}
            assert len(now) == len({one.trial for one in now})
            assert not now or kept.num_bytes + 100 > floor
            assert before - kept.num_bytes == 100 * len(now)
        seen = [(n, r) for n, r in enumerate(rows[: number + 1]) if r is not None]
        mask = non_dominated(np.array([r for _, r in seen]).reshape(-1, 3))
        front = {n for (n, _), is_on in zip(seen, mask, strict=True) if is_on}
        assert not taken & front
        assert {one.trial for one in kept.front} == front


def test_what_was_dropped_is_refused_in_one_sentence_and_what_was_not_is_given():
    refuse_dropped({}, "trial 3")
    with pytest.raises(UserError, match="to be kept, but that of trial 3 was dropped; its metrics"):
        refuse_dropped({MODEL_TAG: DROPPED}, "trial 3")


# -- the writer


@pytest.fixture
def desks(tmp_path, store):
    """Make a desk in a home of its own; MLflow's tables are those of all tests."""
    with contextlib.ExitStack() as stack:

        def make(**options):
            name = f"kept-{uuid.uuid4().hex}"
            return stack.enter_context(contextlib.closing(Desk(tmp_path / name, name, uri=store, **options)))

        yield make


@pytest.fixture
def floor(monkeypatch):
    """A floor of 5 kB for studies of models of a kilobyte."""
    monkeypatch.setattr("study.keeping.retention.Rule.of", classmethod(lambda cls, spec: small_rule(spec)))


def small_rule(spec):
    constraints = tuple(Constraint.parse(text) for text in spec.description.constraints)
    return Rule(objectives=spec.description.objectives, constraints=constraints, keep=spec.keep, floor_bytes=5_000)


def check_front(desk):
    """Every model on the front of all that ended is in MLflow, and loads."""
    ended = [trial for trial in desk.record._study.trials if trial.state.name == "COMPLETE"]
    feasible = [trial for trial in ended if all(value <= 0 for value in trial.constraints.values())]
    mask = non_dominated(np.array([trial.values for trial in feasible]))
    front = {trial.number for trial, is_on in zip(feasible, mask, strict=True) if is_on}
    assert front <= desk.kept()
    root = desk.spec.artifacts(desk.folder.home.path)
    for number in front:
        folder = root / desk.outbox.runs()[number] / "artifacts" / "model"
        assert load_model(folder, trusted=["retention_desk:Sized"])[0] == number
    return front


def test_of_a_settled_trial_the_storage_keeps_the_log_and_mlflow_the_rest(desks):
    desk = desks()
    desk.end(1.0, 5.0)
    desk.end(2.0, 2.0, candidates=[(1.0, 2.0), (3.0, 3.0)])
    desk.end(9.0, 9.0, fails=True)
    desk.deliver()
    assert [desk.stored(number) for number in range(3)] == [["log.txt"]] * 3
    assert desk.kept() == {0, 1}
    assert [(m.trial, m.candidate, m.costs) for m in desk.outbox.models()] == [
        (0, None, (1.0, 5.0)), (1, None, None), (1, 0, (1.0, 2.0)), (1, 1, (3.0, 3.0)),
    ]  # fmt: skip
    found = disk.usage(desk.folder)
    assert (found.num_models, found.num_dropped) == (4, 0)


def test_a_trial_that_may_go_on_keeps_everything(desks):
    desk = desks()
    desk.end(1.0, 5.0, settled=False)
    desk.deliver()
    assert desk.stored(0) == ["charts", "checkpoints", "log.txt", "model"]
    assert desk.outbox.models() == []


def test_models_far_from_the_front_go_when_there_is_no_more_room_and_are_tagged(desks, floor):
    desk = desks()
    for number in range(10):
        desk.end(10.0 - number, 10.0 - number)
    desk.deliver()
    assert desk.kept() == {6, 7, 8, 9}
    client = mlflow.MlflowClient(desk.spec.tracking_uri)
    runs = [client.get_run(desk.outbox.runs()[number]).data for number in range(10)]
    assert [run.tags.get(MODEL_TAG) for run in runs] == [DROPPED] * 6 + [None] * 4
    assert [run.metrics["loss"] for run in runs] == [10.0 - number for number in range(10)]
    assert disk.usage(desk.folder).num_dropped == 6
    check_front(desk)


def test_a_registered_model_stays_and_one_that_is_dropped_cannot_be_registered(desks, floor):
    desk = desks()
    for number in range(5):
        desk.end(10.0 - number, 10.0 - number)
    desk.deliver()
    study = open_desk(desk)
    assert desk.kept() == {1, 2, 3, 4}
    assert register_model(study[1], desk.spec.tracking_uri, name=desk.spec.name) == 1
    with pytest.raises(UserError, match="but that of trial 0 was dropped"):
        register_model(study[0], desk.spec.tracking_uri, name=desk.spec.name)
    for number in range(5, 10):
        desk.end(10.0 - number, 10.0 - number)
    desk.deliver()
    assert desk.kept() == {1, 6, 7, 8, 9}


@pytest.mark.parametrize("of_candidate", [False, True])
def test_a_model_that_is_registered_while_it_is_tagged_as_going_stays(desks, floor, monkeypatch, of_candidate):
    desk = desks()
    desk.end(10.0, 10.0, candidates=[(10.0, 10.0)] if of_candidate else ())
    desk.deliver()
    client, before = mlflow.MlflowClient(desk.spec.tracking_uri), len(desk.model_files())
    place = next(m.place for m in desk.outbox.models() if (m.candidate is None) != of_candidate)

    def register_at(name):
        condemn = getattr(mlflow.MlflowClient, name)

        def tag(self, where, *rest):
            condemn(self, where, *rest)
            if where == place and MODEL_TAG in (rest[0] if rest else ()):
                tags = {REGISTERED_TAG: "mine"}
                client.set_logged_model_tags(place, tags) if of_candidate else client.set_tag(place, REGISTERED_TAG, "mine")

        monkeypatch.setattr(mlflow.MlflowClient, name, tag)

    register_at("set_logged_model_tags" if of_candidate else "set_tag")
    for number in range(8):
        desk.end(9.0 - number, 9.0 - number)
    desk.deliver()
    assert {m.place: m.state for m in desk.outbox.models()}[place] == "kept"
    assert len([path for path in desk.model_files() if place in path.parts]) == 1 <= before
    tags = client.get_logged_model(place).tags if of_candidate else client.get_run(place).data.tags
    assert REGISTERED_TAG in tags and MODEL_TAG not in tags


@pytest.mark.parametrize("of_candidate", [False, True])
def test_a_model_that_was_registered_in_mlflows_own_pages_stays(desks, floor, of_candidate):
    desk = desks()
    desk.end(10.0, 10.0, candidates=[(10.0, 10.0)] if of_candidate else ())
    desk.deliver()
    place = next(m.place for m in desk.outbox.models() if (m.candidate is None) != of_candidate)
    client, run_id = mlflow.MlflowClient(desk.spec.tracking_uri), desk.outbox.runs()[0]
    client.create_registered_model(desk.spec.name)
    source = client.get_logged_model(place).artifact_location if of_candidate else f"runs:/{place}/model"
    client.create_model_version(desk.spec.name, source, run_id=run_id)
    for number in range(8):
        desk.end(9.0 - number, 9.0 - number)
    desk.deliver()
    assert {m.place: m.state for m in desk.outbox.models()}[place] == "kept"
    assert [path for path in desk.model_files() if place in path.parts]


def test_a_registration_while_the_model_goes_is_refused_and_leaves_nothing(desks, monkeypatch):
    desk = desks()
    desk.end(1.0, 1.0)
    desk.deliver()
    client, set_tag = mlflow.MlflowClient(desk.spec.tracking_uri), mlflow.MlflowClient.set_tag

    def condemned_just_before(self, run_id, *rest):
        set_tag(self, run_id, MODEL_TAG, DROPPED)
        set_tag(self, run_id, *rest)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="but that of trial 0 was dropped"):
        patch.setattr(mlflow.MlflowClient, "set_tag", condemned_just_before)
        register_model(open_desk(desk)[0], desk.spec.tracking_uri, name=desk.spec.name)
    assert REGISTERED_TAG not in client.get_run(desk.outbox.runs()[0]).data.tags
    assert not client.search_registered_models(f"name = '{desk.spec.name}'")


def open_desk(desk):
    """The trials of a desk's study as rows, whose run ids alone matter here."""
    runs = desk.outbox.runs()
    empty = {"state": "finished", "params": {}, "metrics": {}, "attempts": 1, "host": None, "failure": None, "charts": ()}
    return [TrialRow(number=n, run_id=runs[n], start_ms=0, end_ms=1, **empty) for n in sorted(runs) if n >= 0]


def test_candidates_go_like_other_models_and_stay_rows_of_mlflow(desks, floor):
    desk = desks()
    desk.end(1.0, 1.0, candidates=[(5.0, 5.0), (1.0, 1.0), (1.0, 5000.0), (6.0, 6.0), (7.0, 7.0)])
    desk.deliver()
    states = {m.candidate: m.state for m in desk.outbox.models()}
    assert states == {None: "dropped", 0: "kept", 1: "kept", 2: "dropped", 3: "kept", 4: "kept"}
    client = mlflow.MlflowClient(desk.spec.tracking_uri)
    found = client.search_logged_models([client.get_experiment_by_name(desk.spec.name).experiment_id])
    tags = {int(m.tags["narrow_study.candidate"]): m.tags.get(MODEL_TAG) for m in found}
    assert tags == {0: None, 1: None, 2: DROPPED, 3: None, 4: None}
    assert all(len(m.metrics) == 2 for m in found)
    sizes = {int(m.tags["narrow_study.candidate"]): artifacts.num_bytes(m.artifact_location, "") for m in found}
    assert [number for number, num_bytes in sizes.items() if num_bytes == 0] == [2]


def test_with_keep_all_every_model_stays_and_copies_go_all_the_same(desks, floor):
    desk = desks(keep="all")
    for number in range(8):
        desk.end(10.0 - number, 10.0 - number)
    desk.deliver()
    assert desk.kept() == set(range(8))
    assert {tuple(desk.stored(number)) for number in range(8)} == {("log.txt",)}


def test_what_mlflow_did_not_take_stays_in_the_storage(desks, monkeypatch):
    desk = desks()
    desk.end(1.0, 1.0)

    def refuse(*_, **__):
        raise mlflow.exceptions.MlflowException("too long", error_code=mlflow.protos.databricks_pb2.INVALID_PARAMETER_VALUE)

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_artifacts", refuse)
        patch.setattr(artifacts, "log", refuse)
        desk.deliver()
    assert desk.outbox.num_pending() == 0
    assert desk.stored(0) == ["charts", "log.txt", "model"]


def test_a_candidate_that_mlflow_did_not_take_stays_in_the_storage(desks, monkeypatch):
    desk = desks()
    desk.end(1.0, 1.0, candidates=[(1.0, 1.0)])
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "finalize_logged_model", lambda *_: None)
        desk.deliver()
    assert desk.stored(0) == ["candidates", "log.txt"]


@pytest.mark.parametrize("place", ["trial clearing", "model going", "event delivered"])
def test_a_writer_that_dies_in_a_clean_up_is_finished_by_the_next_and_removes_nothing_else(desks, floor, monkeypatch, place):
    desk = desks()
    for number in range(8):
        desk.end(10.0 - number, 10.0 - number)
    visits = []

    def die(where, detail=""):
        visits.append((where, detail))
        if where == place and (place != "event delivered" or detail == "trial_settled"):
            raise Died

    deaths = 0
    with monkeypatch.context() as patch:
        patch.setattr(settling, "failpoint", die)
        patch.setattr(tracking_writer, "failpoint", die)
        for _ in range(20):
            try:
                desk.deliver()
            except Died:
                deaths += 1
                assert {m.trial for m in desk.outbox.models() if m.state == "kept"} <= desk.kept()
    assert deaths >= 4
    desk.deliver()
    assert desk.outbox.num_pending() == 0
    assert desk.kept() == {m.trial for m in desk.outbox.models() if m.state == "kept"} == {4, 5, 6, 7}
    assert {m.state for m in desk.outbox.models()} == {"kept", "dropped"}
    assert {tuple(desk.stored(number)) for number in range(8)} == {("log.txt",)}
    check_front(desk)


def test_files_that_may_not_be_deleted_are_said_once_and_stay_models(desks, floor, monkeypatch, caplog):
    desk = desks()
    for number in range(9):
        desk.end(10.0 - number, 10.0 - number)

    def refuse(*_):
        raise PermissionError("read-only")

    with monkeypatch.context() as patch:
        patch.setattr(LocalArtifactRepository, "delete_artifacts", refuse)
        desk.deliver()
    assert [record.message for record in caplog.records if "could not delete" in record.message] == [
        "could not delete the files of a model in MLflow: read-only; no more are dropped in this session"
    ]
    client = mlflow.MlflowClient(desk.spec.tracking_uri)
    assert all(MODEL_TAG not in client.get_run(run_id).data.tags for run_id in desk.outbox.runs().values())
    assert desk.kept() == set(range(9))
    desk.deliver()
    assert desk.kept() == {5, 6, 7, 8}


def test_trouble_with_files_is_tried_again_by_the_next_session(desks, floor, monkeypatch):
    desk = desks()
    for number in range(6):
        desk.end(10.0 - number, 10.0 - number)
    with monkeypatch.context() as patch:
        patch.setattr(settling.artifacts, "delete", lambda *_: 1 / 0)
        desk.deliver()
    assert desk.outbox.num_pending() == 0
    assert [m.state for m in desk.outbox.models()][:2] == ["condemned", "kept"]
    desk.deliver()
    assert desk.kept() == {2, 3, 4, 5}


def test_a_run_that_somebody_deleted_keeps_nobody_waiting(desks, floor):
    desk = desks()
    for number in range(4):
        desk.end(10.0 - number, 10.0 - number)
    desk.deliver()
    mlflow.MlflowClient(desk.spec.tracking_uri).delete_run(desk.outbox.runs()[0])
    for number in range(4, 7):
        desk.end(10.0 - number, 10.0 - number)
    desk.deliver()
    assert desk.outbox.num_pending() == 0
    check_front(desk)


def test_a_session_settles_what_one_before_it_could_not_and_writes_nothing_for_the_rest(desks):
    desk = desks()
    for number in range(3):
        desk.end(1.0, 1.0, settled=number != 1)
    desk.record.draw()
    again = type(desk.record)(desk.folder, desk.spec, desk.space)
    settle_ended(desk.spec, again, desk.outbox)
    assert desk.outbox.settled() == {0, 1, 2}
    before = desk.outbox.num_pending()
    settle_ended(desk.spec, again, desk.outbox)
    assert desk.outbox.num_pending() == before
    again._study._storage._backend.engine.dispose()
    desk.deliver()
    assert [desk.stored(number) for number in range(3)] == [["log.txt"]] * 3


def test_an_outbox_from_before_there_was_retention_opens(tmp_path):
    Outbox(tmp_path / "outbox.db").close()
    with contextlib.closing(sqlite3.connect(tmp_path / "outbox.db")) as connection, connection:
        connection.execute("DROP TABLE model")
    with contextlib.closing(Outbox(tmp_path / "outbox.db")) as outbox:
        assert outbox.models() == []


@pytest.mark.faults
def test_kills_at_any_instant_of_many_clean_ups_remove_nothing_that_is_on_the_front(desks):
    desk, dice, num_kills = desks(), random.Random(3), 0
    for _ in range(36):
        values = dice.random(), 10 * dice.random()
        desk.end(*values, kilobytes=900, candidates=[values] * dice.randrange(2))
    while desk.outbox.num_pending():
        command = [sys.executable, "-P", "-m", "study.recording.writer", str(desk.folder.path), "1"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
            assert b"ready" in writer.stdout.readline()
            deadline = time.monotonic() + dice.uniform(0.02, 0.5)
            while desk.outbox.num_pending() and time.monotonic() < deadline:
                time.sleep(0.001)
            writer.kill()
        num_kills += 1
        files = {path.parts[-4] for path in desk.model_files()} | {path.parts[-3] for path in desk.model_files()}
        assert {m.place for m in desk.outbox.models() if m.state == "kept"} <= files
    desk.deliver()
    assert num_kills >= 4
    assert {tuple(desk.stored(number)) for number in range(36)} == {("log.txt",)}
    noted = desk.outbox.models()
    assert {m.state for m in noted} == {"kept", "dropped"}
    assert len(desk.model_files()) == sum(m.state == "kept" for m in noted)
    assert {m.state for m in Stock(Rule.of(desk.spec), noted).front} == {"kept"}


@pytest.mark.slow
def test_200_trials_of_a_megabyte_keep_the_front_and_at_most_15_percent_of_what_keep_all_does(tmp_path, store):
    dice, peak = random.Random(5), 0
    with contextlib.closing(Desk(tmp_path, f"megabytes-{uuid.uuid4().hex}", uri=store)) as desk:
        writer = desk.writer()
        for _ in range(200):
            size = math.exp(dice.uniform(0, 6))
            desk.end(1 / size + dice.expovariate(3), size, kilobytes=1000)  # a trade-off, with luck
            writer.deliver()
            peak = max(peak, disk.usage(desk.folder).num_bytes[disk.FRONT] + disk.usage(desk.folder).num_bytes[disk.OTHERS])
        assert len(check_front(desk)) >= 5
        all_models = sum(m.num_bytes for m in desk.outbox.models())
    found = disk.usage(desk.folder)
    models = found.num_bytes[disk.FRONT] + found.num_bytes[disk.OTHERS]
    keep_all = found.total - models + all_models
    print(f"{found.total / keep_all:.1%} of {keep_all / 1e6:.0f} MB, never more than {peak / 1e6:.0f}; {dict(found.num_bytes)}")
    assert found.num_bytes[disk.CHECKPOINTS] == found.num_bytes[disk.COPIES] == 0
    assert keep_all >= 200e6
    assert found.total <= 0.15 * keep_all
    assert peak <= 30e6
