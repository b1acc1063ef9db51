"""Any interleaving of deaths, losses and late words leads to the record of a study that nothing happened to.

The driver's objects, the attempts and MLflow's writer are the real ones; Ray is played by calls in any order, MLflow's
server by a store, and SIGKILL by an error that nobody catches, after which all objects of the process are dropped.
"""

import contextlib
import dataclasses
import functools
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from optuna.storages._rdb import storage as rdb
from ray.exceptions import NodeDiedError, WorkerCrashedError
from survival_model import Died, Doom, Store, growing
from test_spec import spec

from search_spaces.space import Constraint
from study.home import Home
from study.keeping import settling
from study.keeping.retention import DROPPED, MODEL_TAG, Rule
from study.recording import outbox, run_files, tracking, tracking_writer
from study.recording.outbox import Outbox
from study.recording.tracking import PREFIX
from study.recording.tracking_writer import StudyWriter
from study.running import record, searcher
from study.running.errands import ErrandSize
from study.running.record import TrialRecord
from study.running.samplers import make_sampler
from study.running.searcher import StudySearcher
from study.running.session import settle_ended
from study.running.trial_storage import TrialStorage
from trainables import attempt, storage
from trainables.attempt import Attempt
from trainables.failures import SupersededError
from trainables.protocol import Assignment, Report

NUM_TRIALS = 6
CASES = [(sampler, lookahead) for sampler in ("tpe", "nsga2", "random") for lookahead in (None, 2, 3)]
SOME_CASES = [("tpe", None), ("tpe", 2), ("nsga2", None), ("nsga2", 3), ("random", 2), ("random", None)]
DRIVER, WORKER, WRITER = Doom(), Doom(), Doom()
OPTIONS = {"tpe": {"n_startup_trials": 2, "n_ei_candidates": 4}, "nsga2": {"population_size": 2}, "random": {}}
"""Samplers that soon look at the past."""
RECORD_WRITES = ("_create_new_trial", "_save", "_set_trial_param", "set_study_system_attr")
ARTIFACTS = SimpleNamespace(
    in_registry=lambda client: frozenset(),
    num_bytes=lambda uri, store: store.num_bytes(uri),
    delete=lambda uri, store: store.delete(uri),
    sync=lambda uri: WRITER.pass_by("sync"),
    log=lambda uri, folder, kind, store: store.log_artifacts(uri, folder, kind),
)
RULE = Rule(
    objectives={"cost": "min", "size": "max"}, constraints=(Constraint.parse("size >= 0.5"),), keep="front", floor_bytes=3_000
)
"""Some models are dropped, and not at once."""
LOSSES = {"crash": lambda: WorkerCrashedError(), "node": lambda: NodeDiedError("its node has died")}


@pytest.fixture(scope="module", autouse=True)
def world_of_deaths():
    """Deaths at every failpoint and before every write; a disk that need not sync."""
    with pytest.MonkeyPatch.context() as patch:
        for module, doom in (
            (record, DRIVER),
            (searcher, DRIVER),
            (attempt, WORKER),
            (storage, WORKER),
            (tracking_writer, WRITER),
            (settling, WRITER),
        ):
            patch.setattr(module, "failpoint", doom.pass_by)
        patch.setattr(tracking, "connect", lambda store: store)
        for module in (settling, run_files):
            patch.setattr(module, "artifacts", ARTIFACTS)
        patch.setattr(storage.Folder, "remove", WRITER.before(storage.Folder.remove, "remove"))
        for name in RECORD_WRITES:
            patch.setattr(TrialStorage, name, DRIVER.before(getattr(TrialStorage, name), name))
        patch.setattr(outbox.Outbox, "put", DRIVER.before(Outbox.put, "put"))
        patch.setattr(outbox.Outbox, "mark_delivered", WRITER.before(Outbox.mark_delivered, "mark_delivered"))
        patch.setattr(outbox.Outbox, "remember_run", WRITER.before(Outbox.remember_run, "remember_run"))
        patch.setattr(rdb._VersionManager, "check_table_schema_compatibility", lambda _: None)  # most of an opening's time
        patch.setattr(storage.os, "fsync", lambda _: None)
        patch.setattr(attempt, "MAX_CHECKPOINT_SHARE", float("inf"))
        patch.setattr(ErrandSize, "hear", lambda size, _: size._seconds.append(0.01))  # no example may depend on the clock
        yield


class Worker:
    """A worker that is sent for some trials, one after the other, and may report of several steps at once.

    Attributes:
        attempt: at the trial that it is at.
        unsent: reports that the driver has not got.
    """

    def __init__(self, assignments: list[Assignment]) -> None:
        self._later = assignments[1:]
        self.attempt = Attempt(assignments[0])
        self.unsent: list[Report] = []
        self.is_over = False

    @property
    def trial(self) -> int:
        return self.attempt.assignment.trial

    def advance(self, *, saves: bool) -> Report | None:
        """What it says of its next step; None if it dies in it."""
        attempt.MIN_SECONDS_BETWEEN_CHECKPOINTS = 0.0 if saves else float("inf")
        try:
            report = Report.from_json(self.attempt.advance().to_json())
        except Died:
            return None
        if report.finished or report.failure is not None:
            self.is_over = not self._later
            self.attempt = self.attempt if self.is_over else Attempt(self._later.pop(0))
        return report


class Session:
    """What a driver has in memory, as `study.run` makes it."""

    def __init__(self, world: "World") -> None:
        self.outbox = Outbox(world.folder.outbox_file)
        self.number = self.outbox.start_session({"space": "growing"})
        self.record = TrialRecord(world.folder, world.spec, world.space)
        settle_ended(world.spec, self.record, self.outbox)
        self.searcher = StudySearcher(world.spec, self.record, self.outbox, world, max_concurrent=lambda: world.num_workers)
        self.workers: dict[str, Worker] = {}
        self.losses = Counter[int]()


class World:
    """A study, its disk, its cluster and MLflow; it watches what is handed out."""

    def __init__(self, sampler: str, lookahead: int | None) -> None:
        for doom in (DRIVER, WORKER, WRITER):
            doom.coming, doom.died_at = [], []
        self._scratch = tempfile.TemporaryDirectory()
        home = Home(self._scratch.name)
        self.folder = home.study("s")
        self.folder.path.mkdir(parents=True)
        self.space = growing(NUM_TRIALS)
        self.spec = dataclasses.replace(
            description_once(),
            sampler=sampler,
            sampler_options=OPTIONS[sampler],
            lookahead=lookahead,
            storage=f"{self._scratch.name}/storage",
        )
        self.num_workers = lookahead or 1
        storage.Folder(f"{self.spec.storage}/s").write("study.json", b"{}")
        shutil.copyfile(empty_record(), self.folder.optuna_file)
        self.store = Store(WRITER)
        self.session: Session | None = None
        self.outlived: list[Worker] = []
        self.haunted = set[int]()
        self.draws: dict[int, tuple[Any, Any]] = {}
        self.attempts: set[tuple[int, int]] = set()
        self._num_asked = 0
        self.last_session = 0

    # -- the driver

    @contextmanager
    def as_driver(self) -> Iterator[None]:
        """Inside, the driver may die; its workers may outlive it."""
        try:
            yield
        except Died:
            self.driver_dies()

    def driver_dies(self) -> None:
        if self.session is not None:
            self.outlived += self.session.workers.values()
            self.close_files()

    def close_files(self) -> None:
        """As the kernel does; nothing is written."""
        assert self.session is not None
        self.session.outbox.close()
        self.session.record._study._storage._backend.engine.dispose()
        self.session = None

    def open_session(self) -> None:
        with self.as_driver():
            self.session = Session(self)
            self.last_session = self.session.number

    def ask(self) -> Any:
        """What Tune does when it has room for a trial."""
        assert self.session is not None
        self._num_asked += 1
        answer = None
        with self.as_driver():
            tag = f"t{self._num_asked}"
            answer = self.session.searcher.suggest(tag)
            if isinstance(answer, dict):
                assignments = [Assignment.from_json(text) for (text,) in answer["parcels"]]
                assert self.draws[assignments[0].trial][1] == assignments[0].config
                self.session.workers[tag] = Worker(assignments)
        self.raise_what_the_searcher_met()
        return answer

    def raise_what_the_searcher_met(self) -> None:
        if self.session is not None and self.session.searcher.error is not None:
            raise self.session.searcher.error

    def stop(self) -> None:
        """As Ctrl-C: workers keep their work, the session is closed."""
        assert self.session is not None
        session = self.session
        with self.as_driver():
            session.searcher.interrupted = True
            for worker in session.workers.values():
                worker.attempt.close()
            session.workers.clear()
            session.outbox.close_session(session.number)
            self.close_files()

    # -- its watcher

    def trial_started(self, draw: record.Draw) -> None:
        assert self.draws.setdefault(draw.number, (draw.params, draw.config)) == (draw.params, draw.config)
        assert draw.failure is not None or (draw.number, draw.attempt) not in self.attempts
        self.attempts.add((draw.number, draw.attempt))
        assert self.states()[draw.number] == "RUNNING", "a trial that was told is handed out again"

    def trial_measured(self, *_: Any) -> None: ...
    def trial_finished(self, *_: Any) -> None: ...
    def trial_failed(self, *_: Any) -> None: ...
    def trial_lost(self, *_: Any) -> None: ...

    # -- workers

    def step(self, tag: str, *, saves: bool = False, is_heard: bool = True, at_once: int = 1) -> None:
        """A worker makes a step, and dies in it or reports of as many at once; what it has not reported is lost with it."""
        assert self.session is not None
        worker = self.session.workers[tag]
        with contextlib.nullcontext() if self.may_lose(tag) else WORKER.spared():
            report = worker.advance(saves=saves)
        if report is None or not (is_heard or not self.may_lose(tag)):
            self.lose(tag, "crash", lives=False)
            return
        worker.unsent.append(report)
        if worker.is_over:
            del self.session.workers[tag]
        if worker.is_over or len(worker.unsent) >= at_once:
            reports, worker.unsent = worker.unsent, []
            self.hear(tag, reports, is_last=worker.is_over)

    def hear(self, tag: str, reports: list[Report], *, is_last: bool = False) -> None:
        assert self.session is not None
        result = {"reports": [report.to_json() for report in reports]}
        with self.as_driver():
            if is_last:
                self.session.searcher.on_trial_complete(tag, result)
            else:
                self.session.searcher.hear(tag, result)
        self.raise_what_the_searcher_met()

    def may_lose(self, tag: str) -> bool:
        """Whether another loss leaves the trial what it is: a trial that gets nowhere is given up in the end."""
        return self.session is not None and self.session.losses[self.blamed(tag)] < 2

    def blamed(self, tag: str) -> int:
        """The trial that a worker is at, as far as the driver knows."""
        assert self.session is not None
        (trial,) = self.session.searcher._errands.out(tag)
        return trial

    def lose(self, tag: str, cause: str, *, lives: bool) -> None:
        assert self.session is not None
        self.session.losses[self.blamed(tag)] += 1
        worker = self.session.workers.pop(tag)
        if lives:
            self.outlived.append(worker)
        with self.as_driver():
            self.session.searcher.lost(tag, LOSSES[cause]())
        self.raise_what_the_searcher_met()

    def outlived_steps(self, index: int, *, saves: bool) -> None:
        """A worker that nobody waits for goes on; what it says comes under the name of the attempt after it."""
        worker = self.outlived[index]
        self.haunted.add(worker.trial)
        try:
            report = worker.advance(saves=saves)
        except SupersededError:
            report = None
        if report is None or worker.is_over:
            del self.outlived[index]
        if report is None or self.session is None:
            return
        for tag, live in list(self.session.workers.items()):
            if self.session is not None and live.trial == report.trial:
                self.hear(tag, [report])

    # -- MLflow's writer

    def deliver(self, limit: int) -> None:
        """A writer is started, takes some events, and is gone."""
        box = Outbox(self.folder.outbox_file)
        try:
            StudyWriter(box, name="s", study_id="id", tracking_uri=self.store, artifacts=None, rule=RULE).deliver(limit)
        except Died:
            pass
        finally:
            box.close()
        self.check_what_may_be_on_the_front()

    def late_writer_closes(self, session: int) -> None:
        """The writer of a driver that died says so, perhaps long after."""
        box = Outbox(self.folder.outbox_file)
        with DRIVER.spared():
            box.close_session(session)
        box.close()

    # -- time passes

    def turn(self, *, saves: bool = False, last_first: bool = False, at_once: int = 1) -> bool:
        """Hand a trial out, or have every worker make a step where that cannot be; return whether nothing is left to do."""
        if self.session is None:
            self.open_session()
            return False
        answer = self.ask()
        if answer == "FINISHED":
            assert not self.session.workers
            return True
        if answer is None and self.session is not None:
            for tag in sorted(self.session.workers, reverse=last_first):
                if self.session is not None:
                    self.step(tag, saves=saves, at_once=at_once)
        return False

    def complete(self) -> None:
        """Nothing happens any more: what is left is done."""
        for doom in (DRIVER, WORKER, WRITER):
            doom.coming = []
        for _ in range(300):
            if self.turn():
                assert self.session is not None
                self.session.outbox.close_session(self.session.number, "FINISHED")
                self.deliver(10**6)
                self.close_files()
                self.check_the_storage()
                return
        raise AssertionError("the study never ends")

    def check_the_storage(self) -> None:
        """Only logs are left, but for what workers wrote of whom nobody knew any more."""
        for number in set(range(NUM_TRIALS)) - self.haunted:
            assert set(self.spec.trial_folder(number).sizes()) <= {"log.txt"}

    def check_what_may_be_on_the_front(self) -> None:
        """It is there at every instant: a model that was dropped is dominated by one that is kept, or no candidate at all."""
        front = [costs for costs, is_kept in self.comparable() if is_kept]
        for costs, is_kept in self.comparable():
            assert is_kept or any(other != costs and all(a <= b for a, b in zip(other, costs, strict=True)) for other in front)

    def comparable(self) -> Iterator[tuple[tuple[float, ...], bool]]:
        """Costs of each candidate or else trial that may be on the front, and whether MLflow has its files."""
        offering = {m.tags[PREFIX + "trial"] for m in self.store.models.values()}
        ended = {r.tags[PREFIX + "trial"]: r for r in self.store.runs.values() if r.status == "FINISHED"}
        for model in self.store.models.values():
            if model.tags[PREFIX + "trial"] in ended and model.status == "READY":
                metrics = {row.key.removeprefix("candidate/"): row.value for row in model.metrics}
                if costs := RULE.costs(metrics):
                    yield costs, "model.safetensors" in model.files
        for number, run in ended.items():
            latest = {key: value for key, _, _, value in sorted(run.rows, key=lambda row: row[1])}
            if number not in offering and int(number) >= 0 and (costs := RULE.costs(latest)):
                yield costs, "model/model.safetensors" in run.files

    def states(self) -> list[str]:
        with sqlite3.connect(self.folder.optuna_file) as connection:
            rows = connection.execute("SELECT number, state FROM trials ORDER BY number").fetchall()
        connection.close()
        assert [number for number, _ in rows] == list(range(len(rows)))
        return [state for _, state in rows]

    def outcome(self) -> dict[str, Any]:
        """All that the study found, as the record and MLflow have it, without times and numbers of attempts."""
        url = f"sqlite:///{self.folder.optuna_file}"
        database = optuna.storages.RDBStorage(url, skip_compatibility_check=True, skip_table_creation=True)
        trials = optuna.load_study(study_name="s", storage=database).trials
        database.engine.dispose()
        runs = {int(run.tags[PREFIX + "trial"]): run for run in self.store.runs.values()}
        assert len(runs) == len(self.store.runs)
        return {
            "trials": [
                (t.number, t.state.name, t.params, t.values, t.constraints, t.user_attrs.get("candidate")) for t in trials
            ],
            "failures": [t.user_attrs.get("failure") for t in trials],
            "runs": {number: run_without_times(run) for number, run in sorted(runs.items())},
            "models": sorted(
                (m.tags[PREFIX + "trial"], m.tags[PREFIX + "candidate"], m.status, is_dropped(m), sorted(m.files.items()))
                for m in self.store.models.values()
            ),
        }  # fmt: skip

    def remove(self) -> None:
        if self.session is not None:
            self.close_files()
        self._scratch.cleanup()


def is_dropped(thing: Any) -> bool:
    return bool(thing.tags.get(MODEL_TAG) == DROPPED)


def run_without_times(run: Any) -> dict[str, Any]:
    rows = sorted((key, step, value) for key, step, _, value in run.rows)
    return {"status": run.status, "params": run.params, "tags": kept_tags(run), "rows": rows, "files": run.files}


def kept_tags(run: Any) -> dict[str, str]:
    """What a run's tags say of the trial, not of its attempts."""
    kept = {key: value for key, value in run.tags.items() if key.startswith(PREFIX)}
    for name in (
        "attempts",
        "last_loss",
        "repeated_steps",
        "repeated_seconds",
        "ledger",
        "failure.traceback",
        "pid",
        "hostname",
        "spec_hash",
    ):
        kept.pop(PREFIX + name, None)
    return kept


@functools.cache
def description_once() -> Any:
    """The spec, probed once."""
    return spec(growing(NUM_TRIALS, refused_below=0.0), num_trials=NUM_TRIALS)  # a probe takes no refusal


@functools.cache
def empty_record() -> Path:
    """A database with the study and no trial; making its tables takes long."""
    folder = Path(tempfile.mkdtemp())
    database = optuna.storages.RDBStorage(f"sqlite:///{folder / 'optuna.db'}")
    directions = [optuna.study.StudyDirection.MINIMIZE, optuna.study.StudyDirection.MAXIMIZE]
    optuna.create_study(study_name="s", storage=database, directions=directions)
    database.engine.dispose()
    return folder / "optuna.db"


@functools.cache
def undisturbed(sampler: str, lookahead: int | None) -> dict[str, Any]:
    world = World(sampler, lookahead)
    world.complete()
    found = world.outcome()
    gone = [is_dropped(thing) for thing in (*world.store.models.values(), *world.store.runs.values())]
    assert any(gone), "the floor must be so low that models are dropped"
    assert not all(gone)
    world.remove()
    return found


def deaths(max_instants: int) -> st.SearchStrategy[list[int]]:
    """How long each process lives, the next one beginning when one has died."""
    return st.lists(st.integers(0, max_instants), max_size=4)


class AnyInterleaving(RuleBasedStateMachine):
    """What may happen to a study; whatever did, it is completed in the end and compared."""

    cases: list[tuple[str, int | None]]

    @initialize(data=st.data())
    def a_study_is_launched(self, data: st.DataObject) -> None:
        self.case = data.draw(st.sampled_from(self.cases))
        self.world = World(*self.case)

    @property
    def tags(self) -> list[str]:
        return sorted(self.world.session.workers) if self.world.session else []

    def has_driver(self) -> bool:
        return self.world.session is not None

    def has_worker(self) -> bool:
        return bool(self.tags)

    def has_outlived(self) -> bool:
        return bool(self.world.outlived)

    @rule(
        turns=st.integers(1, 12), drivers=deaths(40), workers=deaths(12), saves=st.booleans(), last_first=st.booleans(),
        at_once=st.integers(1, 4),
    )  # fmt: skip
    def time_passes(
        self, turns: int, drivers: list[int], workers: list[int], saves: bool, last_first: bool, at_once: int
    ) -> None:
        DRIVER.coming, WORKER.coming = drivers, workers
        for _ in range(turns):
            self.world.turn(saves=saves, last_first=last_first, at_once=at_once)
        DRIVER.coming, WORKER.coming = [], []

    @precondition(has_driver)
    @rule()
    def the_driver_dies_between_calls(self) -> None:
        self.world.driver_dies()

    @precondition(has_driver)
    @rule()
    def somebody_stops_it(self) -> None:
        self.world.stop()

    @precondition(has_worker)
    @rule(data=st.data(), saves=st.booleans(), is_heard=st.booleans())
    def one_worker_makes_a_step(self, data: st.DataObject, saves: bool, is_heard: bool) -> None:
        self.world.step(data.draw(st.sampled_from(self.tags)), saves=saves, is_heard=is_heard)

    @precondition(has_worker)
    @rule(data=st.data(), cause=st.sampled_from(sorted(LOSSES)), lives=st.booleans())
    def a_worker_is_lost(self, data: st.DataObject, cause: str, lives: bool) -> None:
        tag = data.draw(st.sampled_from(self.tags))
        if self.world.may_lose(tag):
            self.world.lose(tag, cause, lives=lives)

    @precondition(has_outlived)
    @rule(data=st.data(), saves=st.booleans())
    def a_worker_that_was_given_up_goes_on(self, data: st.DataObject, saves: bool) -> None:
        self.world.outlived_steps(data.draw(st.integers(0, len(self.world.outlived) - 1)), saves=saves)

    @rule(limit=st.integers(1, 30), writers=deaths(20), late=st.integers(0, 1))
    def writers_deliver(self, limit: int, writers: list[int], late: int) -> None:
        """What the driver left; one that died is noticed now, perhaps long after another came."""
        session = self.world.last_session - late
        if session > 0 and (late or not self.has_driver()):
            self.world.late_writer_closes(session)
        WRITER.coming = writers
        self.world.deliver(limit)
        WRITER.coming = []

    @invariant()
    def no_more_trials_than_asked_for(self) -> None:
        assert len(self.world.states()) <= NUM_TRIALS

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        for doom in (DRIVER, WORKER, WRITER):
            for place in doom.died_at:
                event(f"died at {place}")
        try:
            self.world.complete()
            check_against(self.world.outcome(), undisturbed(*self.case))
        finally:
            self.world.remove()


def check_against(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert [state for _, state, *_ in found["trials"]].count("RUNNING") == 0
    for part in expected:
        assert found[part] == expected[part]
    for number in range(NUM_TRIALS):
        steps = [step for key, step, _ in found["runs"][number]["rows"] if key == "progress"]
        assert steps == list(range(1, len(steps) + 1))


def survive(cases: list[tuple[str, int | None]], **options: Any) -> None:
    for case in cases:
        undisturbed(*case)
    machine = type("AnyInterleaving", (AnyInterleaving,), {"cases": cases})
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    run_state_machine_as_test(machine, settings=settings(deadline=None, suppress_health_check=checks, database=None, **options))


def test_any_interleaving_of_deaths_leads_to_the_record_of_an_undisturbed_study():
    survive(SOME_CASES, max_examples=12, stateful_step_count=15, derandomize=True)


@pytest.mark.faults
@pytest.mark.parametrize("case", CASES, ids=str)
def test_many_interleavings_lead_to_the_record_of_an_undisturbed_study(case):
    survive([case], max_examples=8, stateful_step_count=25, print_blob=True)


def draw_all(sampler, cut_trial=None, num_writes=0):
    """What six trials draw when one is cut short after so many writes and drawn to the end from what was written."""
    memory = optuna.storages.InMemoryStorage()
    drawn_by = optuna.create_study(directions=["minimize", "minimize"], storage=memory)
    doom, drawn = Doom(), []
    options = {"population_size": 4} if sampler.startswith("nsga") else {}
    for name in ("set_trial_param", "set_trial_system_attr", "set_study_system_attr"):
        setattr(memory, name, doom.before(getattr(memory, name), name))
    for number in range(6):
        drawn_by.sampler = make_sampler(sampler, 1, number, options)
        trial = drawn_by.ask()
        doom.coming = [num_writes] if number == cut_trial else []
        try:
            values = [trial.suggest_float(name, 0, 1) for name in "abc"]
        except Died:
            drawn_by.sampler = make_sampler(sampler, 1, number, options)
            trial = optuna.Trial(drawn_by, trial._trial_id)
            values = [trial.suggest_float(name, 0, 1) for name in "abc"]
        doom.coming = []
        drawn.append(values)
        drawn_by.tell(number, [values[0] + values[1], values[2] - values[0]])
    return drawn


@pytest.mark.parametrize(
    "sampler",
    [
        "tpe",
        "random",
        "nsga2",
        "nsga3",
        "qmc",
    ],
)
def test_a_draw_that_is_cut_short_at_any_write_comes_out_as_it_would_have(sampler):
    undisturbed_draws = draw_all(sampler)
    for cut_trial in (1, 4):  # the fifth trial of nsga2 and nsga3 opens a generation
        for num_writes in range(4):
            assert draw_all(sampler, cut_trial, num_writes) == undisturbed_draws, (cut_trial, num_writes)
