"""One session of a study: from a Ray that is raised or joined to the last event that MLflow takes."""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console

from search_spaces.space import StudySpace
from study.home import StudyFolder
from study.provenance import session_tags
from study.recording.delivery import Delivery
from study.recording.outbox import Outbox
from study.running.cluster import ray_session
from study.running.placement import concurrency, free_slots, nodes_now, place
from study.running.storage_probe import check_nodes_see_storage
from study.spec import StudySpec

if TYPE_CHECKING:
    from study.running.ledger import Spent
    from study.running.placement import Placement
    from study.running.record import TrialRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a session ended.

    Attributes:
        num_finished, num_stopped, num_failed: trials of the whole study, earlier sessions included; stopped are those that
            early stopping ended.
        num_unfinished: trials that were started and wait to go on.
        interrupted: somebody stopped it.
        time_is_up: the time budget stopped it.
        limit: of what it may spend, the one that is spent, as a sentence; None for none.
        is_flat: it ended before its budget, because its front had stopped growing.
    """

    name: str
    num_trials: int
    num_finished: int
    num_failed: int
    num_unfinished: int
    interrupted: bool
    time_is_up: bool
    num_stopped: int = 0
    limit: str | None = None
    is_flat: bool = False

    @property
    def is_complete(self) -> bool:
        """Nothing is left to do: the budget is spent, or the front is flat and that is enough."""
        return not self.interrupted and not self.time_is_up and self.limit is None

    @property
    def exit_code(self) -> int:
        """0 done, 1 with failed trials, 130 interrupted."""
        if self.interrupted:
            return 130
        return 1 if self.num_failed else 0


def run_session(
    folder: StudyFolder,
    spec: StudySpec,
    space: StudySpace,
    *,
    address: str | None,
    max_concurrent: int | None,
    time_budget_s: float | None,
    console: Console,
) -> Outcome:
    """Run a study until its budget is spent, its time is up or somebody stops it. Arguments as in `study.run.launch`.

    Args:
        folder: of the study; the caller holds its leases.

    Raises:
        UserError: if Ray, MLflow, the storage or the record cannot be had.
    """
    with ExitStack() as stack:
        spec.save(folder.spec_file)
        outbox = stack.enter_context(contextlib.closing(Outbox(folder.outbox_file)))
        session = outbox.start_session(session_tags(spec))
        delivery = stack.enter_context(Delivery(folder, outbox, session, console))
        with console.status("starting Ray and MLflow") if console.is_terminal else contextlib.nullcontext():
            from study.running.record import TrialRecord  # Optuna, while the writer imports MLflow
            from study.running.record_place import RecordPlace

            stack.enter_context(RecordPlace.of(spec, folder).errors())
            record = TrialRecord(folder, spec, space) if folder.exists() else None
            if record is None or not record.is_spent:
                stack.enter_context(ray_session(address))
                placement, allowed = _find_room(spec, max_concurrent, console, is_embedded=address is None)
            delivery.require_ready()
            if record is None:  # when everything else stands: a first launch that fails leaves its name free
                record = TrialRecord(folder, spec, space)
            settle_ended(spec, record, outbox)
        folder.say_begun()
        if record.is_spent:  # MLflow hears what it has not, and that is all
            outcome = _outcome(spec, record)
        else:
            room = placement, allowed
            outcome = _tune(folder, spec, record, outbox, room, time_budget_s, console, session, is_embedded=address is None)
        delivery.final_status = "FINISHED" if outcome.is_complete else "KILLED"
        delivery.workers_ended_ms = time.time_ns() // 1_000_000  # before Ray does: that holds no trial's slot
    return outcome


def _find_room(
    spec: StudySpec, max_concurrent: int | None, console: Console, *, is_embedded: bool
) -> "tuple[Placement, Callable[[], int]]":
    """What a trial asks of Ray, and how many may be out at once."""
    nodes = nodes_now(gpu_memory=spec.gpu_memory_gib > 0)
    placement = place(spec, nodes)
    allowed = concurrency(placement, max_concurrent, may_wait=not is_embedded)
    is_demand = max_concurrent is not None and not is_embedded
    starting = max_concurrent if is_demand else max(1, min(allowed(), free_slots(placement)))
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(starting)  # else Tune starts one worker after the other
    if placement.num_slots(nodes) < 1:
        notify(console, f"no node has room for a trial now ({placement}); trials wait for the cluster to grow")
    if not is_embedded:
        check_nodes_see_storage(spec, nodes, placement)
    return placement, allowed


def settle_ended(spec: StudySpec, record: "TrialRecord", outbox: Outbox) -> None:
    """Note what a session before this one could not: it died between the record and the outbox, or knew nothing of it."""
    settled = outbox.settled()
    if missing := [number for number in record.ended if number not in settled]:
        outbox.settle({number: spec.trial_folder(number).address for number in missing})


def _tune(
    folder: StudyFolder,
    spec: StudySpec,
    record: "TrialRecord",
    outbox: Outbox,
    room: "tuple[Placement, Callable[[], int]]",
    time_budget_s: float | None,
    console: Console,
    session: int,
    *,
    is_embedded: bool,
) -> Outcome:
    """Run a fresh Tuner until the searcher has nothing left to hand out."""
    from ray import tune

    from study.running.board import Board
    from study.running.early_stopping import EarlyStopping
    from study.running.ray_watch import ray_watch
    from study.running.searcher import StudySearcher
    from study.running.tuner_hooks import (
        LossCallback,
        StopWhenAsked,
        every_loss_is_heard,
        graceful_interrupt,
        starting_workers_keep_their_trials,
        what_the_searcher_knows_first,
    )
    from trainables.ray_trainable import ExperimentTrainable, StopBoard

    placement, allowed = room
    counts = {"num_failed": record.num_failed, "num_stopped": record.num_stopped}
    with Board(spec, record.past, console, **counts) as board, tempfile.TemporaryDirectory() as scratch:
        stops = StopBoard(f"stops-{spec.study_id}-{session}") if spec.pack > 1 and spec.early_stopping != "none" else None
        searcher = StudySearcher(spec, record, outbox, board, max_concurrent=allowed, stops=stops)
        stopper = StopWhenAsked(searcher, time_budget_s, folder.is_asked_to_stop, lambda: limit_spent(spec, searcher.spent))
        stopper.stop_all()  # what is spent already draws no trial
        with (
            graceful_interrupt(searcher, console),
            ray_watch(searcher, spec.name, console, is_embedded=is_embedded),
            what_the_searcher_knows_first(searcher),
            every_loss_is_heard(),
            starting_workers_keep_their_trials(),
        ):
            tune.Tuner(
                tune.with_resources(ExperimentTrainable, placement.request()),
                tune_config=tune.TuneConfig(
                    search_alg=searcher, scheduler=EarlyStopping(searcher.hear), num_samples=-1, reuse_actors=True
                ),
                run_config=tune.RunConfig(
                    name="tune",
                    storage_path=scratch,
                    verbose=0,
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                    stop=stopper,
                    callbacks=[LossCallback(searcher)],
                ),
            ).fit()
    return _outcome(
        spec,
        record,
        num_unfinished=searcher.num_unfinished,
        interrupted=searcher.interrupted and not stopper.time_is_up and stopper.limit is None,
        time_is_up=stopper.time_is_up,
        limit=stopper.limit,
        is_flat=searcher.is_flat and len(record) < spec.num_trials,
    )


_LIMITS = {"cpu_hours": "CPU-hours", "gpu_hours": "GPU-hours", "flops": "FLOP"}


def limit_spent(spec: StudySpec, spent: "Spent") -> str | None:
    """Which limit of a study is spent, and how to go on; None while there is something left of each."""
    for name, unit in _LIMITS.items():
        limit = getattr(spec.limits, name)
        if limit is not None and getattr(spent, name) >= limit:
            option = f"--{name.replace('_', '-')} {2 * limit:g}"
            return f"its {limit:g} {unit} are spent; give it more: study resume {spec.name} {option}"
    return None


def _outcome(
    spec: StudySpec,
    record: "TrialRecord",
    *,
    num_unfinished: int = 0,
    interrupted: bool = False,
    time_is_up: bool = False,
    limit: str | None = None,
    is_flat: bool = False,
) -> Outcome:
    return Outcome(
        name=spec.name,
        num_trials=spec.num_trials,
        num_finished=record.num_finished,
        num_failed=record.num_failed,
        num_stopped=record.num_stopped,
        num_unfinished=num_unfinished,
        interrupted=interrupted,
        time_is_up=time_is_up,
        limit=limit,
        is_flat=is_flat,
    )


def notify(console: Console, sentence: str | None) -> None:
    """Say something to the user, if there is anything to say."""
    if sentence:
        console.print(sentence, markup=False, highlight=False)
