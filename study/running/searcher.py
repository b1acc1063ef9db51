"""Optuna behind Ray Tune's Searcher: hands trials out, hears their reports, keeps the record.

Tune is the executor and holds no truth: every start is a fresh Tuner whose searcher first hands out the trials that an
earlier session left unfinished, then draws new ones until the budget is drawn.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

from ray.tune.search import Searcher

from search_spaces.space import Constraint, choose_representative
from study.errors import UserError
from study.recording.outbox import Outbox
from study.running.early_stopping import Judge
from study.running.errands import Errands, ErrandSize
from study.running.flatness import Flatness
from study.running.ledger import Spent
from study.running.packing import Packer
from study.running.record import Draw, TrialRecord
from study.running.retries import EqualBugs, Losses, loss_of
from study.running.rungs import Stop
from study.running.tell_order import TellOrder
from study.running.trial_events import LiveTrial, TrialEvents
from study.spec import StudySpec
from trainables.failpoints import failpoint
from trainables.protocol import STOPPED_FILE, Assignment, Failure, Report


class Watcher(Protocol):
    """Somebody who looks on: the live view."""

    def trial_started(self, draw: Draw) -> None: ...
    def trial_measured(self, number: int, progress: float) -> None: ...
    def trial_finished(self, draw: Draw, metrics: Mapping[str, float], candidate: int | None) -> None: ...
    def trial_stopped(self, draw: Draw, why: str) -> None: ...
    def trial_failed(self, draw: Draw, failure: Failure) -> None: ...
    def trial_lost(self, draw: Draw, failure: Failure) -> None: ...


class Stops(Protocol):
    """Tells workers which trials are stopped early."""

    name: str

    def add(self, number: int) -> None: ...


class StudySearcher(Searcher):
    """Draws, hands out, records.

    Args:
        max_concurrent: workers that may be out at once; asked at every draw, since a cluster may grow.
        stops: where workers with several trials look who of them is stopped; None where no worker has several, or none stops.

    Attributes:
        interrupted: set it to end the session; what is out is left unfinished.
        error: what broke the record or the outbox, if anything; the session ended for it.
    """

    def __init__(
        self,
        spec: StudySpec,
        record: TrialRecord,
        outbox: Outbox,
        watcher: Watcher,
        *,
        max_concurrent: Callable[[], int],
        stops: "Stops | None" = None,
    ) -> None:
        super().__init__()
        self._spec = spec
        self._record = record
        self._outbox = outbox
        self._watcher = watcher
        self._max_concurrent = max_concurrent
        self._stops = stops
        self._waiting = deque(record.unfinished)
        self._drawn: deque[Draw] = deque()  # and not handed out yet
        self._live: dict[int, LiveTrial] = {}
        self._errands = Errands()
        self._size = ErrandSize(spec)
        self._alone: set[int] = set()
        self._packer = Packer(spec)
        self._judge = Judge(spec, outbox, record.unfinished)
        self._flatness = Flatness(spec.description.objectives)
        self._constraints = [Constraint.parse(text) for text in spec.description.constraints]
        self._losses, self._bugs = Losses(), EqualBugs(spec.name)
        self._events = TrialEvents(spec, outbox)
        num_told = record.num_finished + record.num_stopped + record.num_failed
        self._order = TellOrder(spec.lookahead, num_drawn=len(record), num_told=num_told, num_trials=spec.num_trials)
        self.interrupted = False
        self.error: Exception | None = None
        for past in record.past:
            self._flatness.add(past.values if past.feasible else None)
        self._keep_to_stops()

    def _keep_to_stops(self) -> None:
        """Tell the record of trials that an earlier session stopped and could not tell: who was stopped stays so."""
        for number in list(self._waiting):
            if (end := self._outbox.stop_of(number)) is not None:
                self._waiting.remove(number)
                self._tell(number, partial(self._record.stop, number, end["stop"], end["metrics"]))

    @property
    def spent(self) -> Spent:
        """What the study has spent of its limits."""
        return self._events.spent

    @property
    def is_flat(self) -> bool:
        """Whether the study ends because its front has stopped growing."""
        return self._spec.until_flat and self._flatness.is_flat

    def suggest(self, trial_id: str) -> Any:
        """Give Tune the next trial, nothing for now (None), or nothing for ever (FINISHED)."""
        waits = bool(self._waiting or self._drawn)
        nothing_left = not waits and (len(self._record) >= self._spec.num_trials or self.is_flat)
        if self.interrupted or (nothing_left and not self._errands):
            return Searcher.FINISHED
        if nothing_left or len(self._errands) >= self._max_concurrent() or not (waits or self._order.may_draw()):
            return None
        with self._ours():
            return self._hand_out(trial_id)
        return Searcher.FINISHED

    def _hand_out(self, trial_id: str) -> dict[str, Any] | None:
        if not self._drawn:
            self._draw()
        parcels = self._packer.parcels(self._drawn, self._alone, self._size.num_parcels)
        self._errands.begin(trial_id, parcels, _now_ms())
        self._begin_next(trial_id)
        runnable = [[self._assignment(draw).to_json() for draw in parcel if draw.failure is None] for parcel in parcels]
        stops = self._stops and self._stops.name
        config = {"parcels": [parcel for parcel in runnable if parcel], "slice_s": self._size.slice_s, "stops": stops}
        return config if config["parcels"] else None

    def _draw(self) -> None:
        """Draw as many as a worker may have at once, and no more than leave the others something to do."""
        left = len(self._waiting) or self._spec.num_trials - len(self._record)
        for _ in range(self._size.num_trials(left, self._max_concurrent())):
            if self._waiting:
                self._drawn.append(self._record.draw_again(self._waiting.popleft()))
            elif not self._drawn or self._order.may_draw():
                self._drawn.append(self._record.draw())
                self._order.drawn()
        failpoint("trial committed")

    def _begin_next(self, trial_id: str) -> None:
        """Note which trials a worker is at, if it has come to others."""
        while parcel := self._errands.next_parcel(trial_id):
            for draw in parcel:
                self._begin(draw, share=1 / len(parcel))
            for draw in parcel:
                if draw.failure is not None:
                    self._fail(draw.number, draw.failure)

    def _begin(self, draw: Draw, *, share: float) -> None:
        """Note that a worker gets a trial, and with it a share of what the worker holds."""
        self._live[draw.number] = LiveTrial(draw)
        self._events.begin(draw, share=share)
        failpoint("trial noted")
        self._watcher.trial_started(draw)

    @contextmanager
    def _ours(self) -> Iterator[None]:
        """Inside, an error is ours and ends the session; Tune would call it a trial's and go on."""
        try:
            yield
        except Exception as error:
            self.error, self.interrupted = error, True

    def _assignment(self, draw: Draw) -> Assignment:
        return Assignment(
            experiment=self._spec.description.experiment,
            config=draw.config,
            trial=draw.number,
            attempt=draw.attempt,
            study_folder=self._spec.study_folder.address,
            folder=self._spec.trial_folder(draw.number).address,
            num_cpus=self._spec.num_cpus,
            num_gpus=self._spec.num_gpus,
            import_paths=self._spec.import_paths,
        )

    def hear(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Hear a worker's report that is not its last one; return whether none of its trials goes on."""
        was_out = trial_id in self._errands
        self._hear(trial_id, result)
        return was_out and trial_id not in self._errands

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing more: Tune tells its scheduler first, and that one us (`hear`)."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Hear the last report of an attempt. Of an error, `LossCallback` tells more than Tune tells us here."""
        self._hear(trial_id, result or {})

    def _hear(self, trial_id: str, result: dict[str, Any]) -> None:
        now_ms, before = _now_ms(), self._errands.out(trial_id)
        for text in result.get("reports", ()):
            report = Report.from_json(text)
            if report.trial in self._errands.out(trial_id) and self.error is None:
                self._events.at_ms = self._errands.date(trial_id, now_ms - round(1000 * report.age_seconds))
                with self._ours():
                    self._note(self._live[report.trial], report)
                    self._begin_next(trial_id)
        self._events.at_ms = None
        stay = self._errands.out(trial_id)
        if stay < before and self.error is None:
            with self._ours():
                for number in sorted(stay):
                    self._events.share(self._live[number], len(stay))

    def _note(self, live: LiveTrial, report: Report) -> None:
        number = live.draw.number
        if report.attempt != live.draw.attempt:  # of a worker that was given up and lives
            return
        live.hear(report)
        stop = None
        for measurement in report.measurements:
            self._events.measure(live, measurement, report)
            stop = self._judge.hear(number, measurement) or stop
            self._watcher.trial_measured(number, measurement.progress)
        if report.failure is not None:
            self._fail(number, report.failure)
        elif report.finished:
            self._finish(number)
        elif stop is not None:
            self._stop(number, stop)

    def _leave(self, number: int) -> LiveTrial:
        """Take a trial back from its worker."""
        self._errands.leave(number)
        self._size.hear(self._live[number].seconds)
        return self._live.pop(number)

    def _finish(self, number: int) -> None:
        """Outbox first, record second: a crash between the two hands the trial out again, already finished."""
        live = self._leave(number)
        folder = self._spec.trial_folder(live.draw.number)
        results = {"model": folder.child("model").address, "charts": folder.child("charts").address}
        self._events.end(live, {"state": "finished", "tags": live.worker_tags} | results)
        candidate = self._representative(live)
        metrics = live.last_metrics if candidate is None else live.candidates[candidate]
        failpoint("end noted")
        self._tell(live.draw.number, partial(self._record.finish, live.draw.number, metrics, candidate))
        is_feasible = all(constraint.violation(metrics) <= 0 for constraint in self._constraints)
        self._flatness.add([metrics[name] for name in self._spec.description.objectives] if is_feasible else None)
        self._watcher.trial_finished(live.draw, metrics, candidate)

    def _stop(self, number: int, stop: Stop) -> None:
        """End a trial whose values at a rung are not worth its going on."""
        live, told = self._leave(number), stop.to_json()
        tags = live.worker_tags | {"stopped.rung": str(stop.rung), "stopped.why": stop.why}
        with contextlib.suppress(OSError):  # then a worker may leave a checkpoint that nobody needs
            self._spec.trial_folder(number).write(STOPPED_FILE, stop.why.encode())
        end = {"state": "stopped", "tags": tags, "model": None, "charts": None, "stop": told, "metrics": live.last_metrics}
        self._events.end(live, end)
        if self._stops is not None:
            self._stops.add(number)
        failpoint("end noted")
        self._tell(number, partial(self._record.stop, number, told, live.last_metrics))
        self._flatness.add(None)
        self._watcher.trial_stopped(live.draw, stop.why)

    def _tell(self, number: int, told: Callable[[], None]) -> None:
        """Tell the record now or when its turn comes; from then on nobody needs the trial's files any more."""

        def tell() -> None:
            told()
            failpoint("trial told")
            self._outbox.settle({number: self._spec.trial_folder(number).address})

        self._order.end(number, tell)

    def _representative(self, live: LiveTrial) -> int | None:
        """The candidate that stands for its trial; None where the trial has none and stands for itself."""
        if not live.candidates:
            return None
        description = self._spec.description
        metric, goal = next(iter((description.representative or description.objectives).items()))
        return choose_representative(live.candidates, self._constraints, metric, goal)

    def _fail(self, number: int, failure: Failure) -> None:
        live = self._leave(number)
        why = {"failure.cause": failure.cause, "failure.error": failure.error, "failure.traceback": failure.traceback}
        self._events.end(live, {"state": "failed", "tags": live.worker_tags | why, "model": None, "charts": None})
        failpoint("end noted")
        self._tell(live.draw.number, partial(self._record.fail, live.draw.number, failure))
        self._watcher.trial_failed(live.draw, failure)
        if failure.cause == "bug" and not self._record.num_finished:
            self._bugs.add(failure)

    def lost(self, trial_id: str, error: Exception) -> None:
        """A worker broke down: hand its trials out again, each alone, unless one breaks down ever again without getting on.

        Those whose turn had not come may have been begun, unheard of.
        """
        for draw in self._errands.take_back(trial_id):
            self._alone.add(draw.number)
            self._waiting.append(draw.number)
        for number in sorted(self._errands.out(trial_id)):
            with self._ours():
                self._lose(number, loss_of(error))

    def _lose(self, number: int, failure: Failure) -> None:
        live = self._live[number]
        if self._losses.is_last(number, failure.cause, live.last_step):
            if failure.cause == "storage":
                raise UserError(failure.error.partition(": ")[2] or failure.error)
            self._fail(number, failure)
            return
        self._leave(number)
        self._alone.add(number)
        self._waiting.append(number)
        data = {"tags": live.worker_tags | {"last_loss": f"{failure.cause}: {failure.error}"}}
        self._events.interrupt(live, data)
        self._watcher.trial_lost(live.draw, failure)

    @property
    def num_unfinished(self) -> int:
        """Trials that are out, wait to go out again, or whose end waits for that of an earlier one."""
        given = len(self._live) + self._errands.num_waiting
        return given + len(self._drawn) + len(self._waiting) + self._order.num_waiting

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher into snapshots that nobody here reads: the record is on disk already."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: a resume starts a fresh Tuner."""


def _now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000
