"""Launch a study, or go on with one: the two are the same."""

import contextlib
import inspect
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from search_spaces.space import StudySpace
from study.cluster import check_address, concurrency, ray_session
from study.delivery import Delivery
from study.errors import UserError, disk_errors
from study.home import Home, StudyFolder
from study.launch_checks import absolute_storage, check_gpus, check_numbers, check_positive, check_storage
from study.lease import StorageLease, Tenant
from study.outbox import Outbox
from study.probe import check_inputs, describe_space
from study.provenance import (
    describe_changes,
    describe_fork,
    installed_versions,
    refuse_drift,
    refuse_other_parents,
    session_tags,
)
from study.samplers import check_sampler
from study.spec import KEEPS, StudySpec, load_space
from trainables.passport import commit_of

if TYPE_CHECKING:
    from study.record import TrialRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a session ended.

    Attributes:
        num_finished, num_failed: trials of the whole study, earlier sessions included.
        num_unfinished: trials that were started and wait to go on.
        interrupted: somebody stopped it.
        time_is_up: the time budget stopped it.
    """

    name: str
    num_trials: int
    num_finished: int
    num_failed: int
    num_unfinished: int
    interrupted: bool
    time_is_up: bool

    @property
    def is_complete(self) -> bool:
        """The budget is spent."""
        return not self.interrupted and not self.time_is_up

    @property
    def exit_code(self) -> int:
        """0 done, 1 with failed trials, 130 interrupted."""
        if self.interrupted:
            return 130
        return 1 if self.num_failed else 0


def launch(
    space: str,
    *,
    name: str,
    arguments: Mapping[str, Any] | None = None,
    trials: int | None = None,
    time_budget_s: float | None = None,
    seed: int = 0,
    sampler: str = "tpe",
    max_concurrent: int | None = None,
    deterministic: bool = False,
    cpus_per_trial: float | None = None,
    gpus_per_trial: float | None = None,
    address: str | None = None,
    storage: str | None = None,
    tracking_uri: str | None = None,
    keep: str | None = None,
    home: str | Path | None = None,
    modules: str | Path | None = None,
    parent: StudySpec | None = None,
    console: Console | None = None,
) -> Outcome:
    """Run a study until its budget of trials is spent; a study of this name that exists goes on.

    Args:
        space: `module:function` that returns a `search_spaces.space.StudySpace`.
        name: of the study: letters, digits, '.', '_' and '-'.
        arguments: JSON values that the space's function is called with, such as a `data_dir`.
        trials: finished, stopped and failed trials in all; None for the space's own number.
        time_budget_s: stop after this many seconds, to be resumed; None for no limit.
        seed: of the search.
        sampler: one of `study.samplers.SAMPLERS`.
        max_concurrent: trials at once; None for as many as fit.
        deterministic: draw and tell in one fixed order, whichever of `max_concurrent` workers is faster, so that the same
            study launched again, or interrupted, comes to the same trials.
        cpus_per_trial, gpus_per_trial: None for what the space says.
        address: of a Ray cluster; None for an embedded one on this machine.
        storage: folder or URI for checkpoints, models and logs; None for the study home.
        tracking_uri: of MLflow; None for the study home's database.
        keep: which models stay in MLflow: front, those on the front and near it (`study.retention`), or all; None for what
            the study, or its parent, keeps, and front for a new one.
        home: None for `$STUDY_HOME`.
        modules: folder of the user's own modules; None for the current directory.
        parent: the study that this one is forked from (`study.life.fork`), of which it takes budget, resources and places
            unless they are given; None for no fork, or one that exists.
        console: where to show progress; None for the terminal.

    Raises:
        UserError: for every mistake that the caller can mend, before any trial is touched.
    """
    check_numbers(trials=trials, max_concurrent=max_concurrent)
    if deterministic and max_concurrent is None:
        raise UserError(
            "--deterministic needs --max-concurrent, since what a trial can know depends on it, but got none; use "
            "--max-concurrent 2, or more where more trials fit at once"
        )
    check_positive(time_budget=time_budget_s, cpus_per_trial=cpus_per_trial)
    if gpus_per_trial is not None and not 0 <= gpus_per_trial < float("inf"):
        raise UserError(f"--gpus-per-trial must be at least 0, but got {gpus_per_trial:g}; leave it out for the default")
    if keep not in (None, *KEEPS):
        raise UserError(f"--keep must be {' or '.join(KEEPS)}, but got {keep!r}; leave it out for the default")
    console = console or Console()
    folder = Home(home).study(name)
    study_space, import_paths, notice = load_space(space, arguments=arguments, folder=Path(modules) if modules else None)
    _notify(console, notice)
    description = describe_space(study_space)
    check_inputs(study_space)
    _notify(console, check_sampler(sampler, description.parameters))
    folder.home.prepare()
    if address is not None:
        check_address(address)
    with disk_errors(folder.home.path), folder.lease():
        old = StudySpec.load(folder.spec_file) if folder.exists() else None
        if old and parent:
            refuse_other_parents(old, parent)
        base = old or parent
        spec = StudySpec(
            name=name,
            study_id=folder.study_id(),
            space=space,
            space_arguments=dict(arguments or {}),
            launched_from=old.launched_from if old else str(Path.cwd()),
            import_paths=import_paths,
            description=description,
            sampler=sampler,
            seed=seed,
            num_trials=trials or (base or study_space).num_trials,
            num_cpus=(base or study_space).num_cpus if cpus_per_trial is None else cpus_per_trial,
            num_gpus=(base or study_space).num_gpus if gpus_per_trial is None else gpus_per_trial,
            storage=absolute_storage(storage) if storage else base.storage if base else str(folder.home.path / "storage"),
            tracking_uri=tracking_uri or (base or folder.home).tracking_uri,
            log_scale=list(study_space.log_scale),
            color_by=study_space.color_by,
            versions=installed_versions(),
            commit=commit_of(inspect.getfile(study_space.suggest)),
            lookahead=max_concurrent if deterministic else None,
            parents=old.parents if old else parent.as_parents() if parent else (),
            keep=keep or (base.keep if base else "front"),
        )
        if old:
            refuse_drift(old, spec)
            _notify(console, describe_changes(old, spec))
        elif parent:
            _notify(console, describe_fork(parent, spec))
        check_gpus(spec)
        check_storage(spec)
        with _storage_lease(folder, spec, console):
            check_storage(spec, home=folder.home)
            return _run(folder, spec, study_space, address, max_concurrent, time_budget_s, console)


def _storage_lease(folder: StudyFolder, spec: StudySpec, console: Console) -> StorageLease:
    """Say in the storage who runs the study; stop gracefully should another host run it all the same."""

    def stop(other: Tenant) -> None:
        folder.ask_to_stop()
        _notify(console, f"stopping: {spec.name} is being run by {other}, too")

    return StorageLease(spec.study_folder, name=spec.name, study_id=spec.study_id, home=str(folder.home.path), on_lost=stop)


def resume(
    name: str,
    *,
    trials: int | None = None,
    time_budget_s: float | None = None,
    max_concurrent: int | None = None,
    address: str | None = None,
    home: str | Path | None = None,
    console: Console | None = None,
) -> Outcome:
    """Go on with a study as it was launched. Arguments as in `launch`.

    Raises:
        UserError: if there is no such study, or its space has changed.
    """
    home = Home(home).path  # absolute, before the current folder changes
    old = StudySpec.load(Home(home).study(name).require().spec_file)
    with contextlib.chdir(old.folder):  # so that a relative path among the space's arguments means what it meant
        return launch(
            old.space,
            name=name,
            arguments=old.space_arguments,
            trials=trials,
            time_budget_s=time_budget_s,
            seed=old.seed,
            sampler=old.sampler,
            max_concurrent=old.lookahead if max_concurrent is None else max_concurrent,
            deterministic=old.lookahead is not None,
            cpus_per_trial=old.num_cpus,
            gpus_per_trial=old.num_gpus,
            address=address,
            home=home,
            modules=old.import_paths[0] if old.import_paths else None,
            console=console,
        )


def _run(
    folder: StudyFolder,
    spec: StudySpec,
    space: StudySpace,
    address: str | None,
    max_concurrent: int | None,
    time_budget_s: float | None,
    console: Console,
) -> Outcome:
    with ExitStack() as stack:
        spec.save(folder.spec_file)
        outbox = stack.enter_context(contextlib.closing(Outbox(folder.outbox_file)))
        session = outbox.start_session(session_tags(spec))
        delivery = stack.enter_context(Delivery(folder, outbox, session, console))
        with console.status("starting Ray and MLflow") if console.is_terminal else contextlib.nullcontext():
            from study.record import TrialRecord  # Optuna, while the writer imports MLflow

            record = TrialRecord(folder, spec, space) if folder.exists() else None
            if record is None or not record.is_spent:
                stack.enter_context(ray_session(address))
                allowed = concurrency(spec.num_cpus, spec.num_gpus, max_concurrent)
            delivery.require_ready()
            if record is None:  # when everything else stands: a first launch that fails leaves its name free
                record = TrialRecord(folder, spec, space)
            settle_ended(spec, record, outbox)
        if record.is_spent:  # MLflow hears what it has not, and that is all
            outcome = _outcome(spec, record)
        else:
            outcome = _tune(folder, spec, record, outbox, allowed, time_budget_s, console, is_embedded=address is None)
        delivery.final_status = "FINISHED" if outcome.is_complete else "KILLED"
    return outcome


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
    allowed: Any,
    time_budget_s: float | None,
    console: Console,
    *,
    is_embedded: bool,
) -> Outcome:
    """Run a fresh Tuner until the searcher has nothing left to hand out."""
    from ray import tune

    from study.board import Board
    from study.ray_watch import ray_watch
    from study.searcher import StudySearcher
    from study.tuner_hooks import (
        LossCallback,
        StopWhenAsked,
        every_loss_is_heard,
        graceful_interrupt,
        what_the_searcher_knows_first,
    )
    from trainables.ray_trainable import ExperimentTrainable

    with Board(spec, record.past, record.num_failed, console) as board, tempfile.TemporaryDirectory() as scratch:
        searcher = StudySearcher(spec, record, outbox, board, max_concurrent=allowed)
        stopper = StopWhenAsked(searcher, time_budget_s, folder.is_asked_to_stop)
        with (
            graceful_interrupt(searcher, console),
            ray_watch(searcher, spec.name, console, is_embedded=is_embedded),
            what_the_searcher_knows_first(searcher),
            every_loss_is_heard(),
        ):
            tune.Tuner(
                tune.with_resources(ExperimentTrainable, {"cpu": spec.num_cpus, "gpu": spec.num_gpus}),
                tune_config=tune.TuneConfig(search_alg=searcher, num_samples=-1, reuse_actors=True),
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
        interrupted=searcher.interrupted and not stopper.time_is_up,
        time_is_up=stopper.time_is_up,
    )


def _outcome(
    spec: StudySpec, record: "TrialRecord", *, num_unfinished: int = 0, interrupted: bool = False, time_is_up: bool = False
) -> Outcome:
    return Outcome(
        name=spec.name,
        num_trials=spec.num_trials,
        num_finished=record.num_finished,
        num_failed=record.num_failed,
        num_unfinished=num_unfinished,
        interrupted=interrupted,
        time_is_up=time_is_up,
    )


def _notify(console: Console, sentence: str | None) -> None:
    if sentence:
        console.print(sentence, markup=False, highlight=False)
