"""Launch a study, or go on with one: the two are the same."""

import contextlib
import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from study.errors import UserError, disk_errors
from study.home import Home, StudyFolder
from study.launch_checks import (
    absolute_storage,
    check_early_stopping,
    check_gpus,
    check_limits,
    check_numbers,
    check_positive,
    check_storage,
    with_given,
)
from study.probe import check_inputs, describe_space
from study.provenance import (
    describe_changes,
    describe_fork,
    installed_versions,
    refuse_drift,
    refuse_other_parents,
)
from study.remote.shipped import folder_now, modules_now, shipped_code
from study.running.cluster import check_address
from study.running.lease import StorageLease, Tenant
from study.running.replicates import check_replicates
from study.running.samplers import check_sampler
from study.running.session import Outcome, notify, run_session
from study.settings import RECORD, STORAGE, TRACKING_URI, check_record, refuse_secrets, setting
from study.spec import KEEPS, Limits, StudySpec, load_space
from trainables.passport import commit_of

if TYPE_CHECKING:
    pass


def launch(
    space: str,
    *,
    name: str,
    arguments: Mapping[str, Any] | None = None,
    trials: int | None = None,
    time_budget_s: float | None = None,
    seed: int = 0,
    sampler: str = "tpe",
    sampler_options: Mapping[str, Any] | None = None,
    replicates: int = 1,
    early_stopping: str = "none",
    given_trials: Sequence[Mapping[str, Any]] = (),
    warm_start: Sequence[str] = (),
    limits: Limits | None = None,
    until_flat: bool = False,
    pack: int | None = None,
    max_concurrent: int | None = None,
    deterministic: bool = False,
    cpus_per_trial: float | None = None,
    gpus_per_trial: float | None = None,
    address: str | None = None,
    storage: str | None = None,
    tracking_uri: str | None = None,
    record: str | None = None,
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
        sampler: one of `study.running.samplers.SAMPLERS`, or `module:Class`.
        sampler_options: what the sampler is made with, beside its seed.
        replicates: trials of every parameter set, each with a seed of its own.
        early_stopping: which trials end before their end, as `study.running.rungs.StopRule.parse` reads it.
        given_trials: parameters of the first trials, before those of the space.
        warm_start: names of studies whose trials the sampler is to know from the start.
        limits: what the study may spend beside its trials; None for what it had, or no limit.
        until_flat: end when the front has stopped growing (`study.running.flatness`).
        pack: trials of one shape that a worker may run as one program, where that pays; None for what it was, or 1.
        max_concurrent: trials, or packs of them, at once; None for as many as fit.
        deterministic: draw and tell in one fixed order, whichever of `max_concurrent` workers is faster, so that the same
            study launched again, or interrupted, comes to the same trials.
        cpus_per_trial, gpus_per_trial: None for what the space says.
        address: of a Ray cluster; None for an embedded one on this machine.
        storage: folder or URI for checkpoints, models and logs; None for `$STUDY_STORAGE`, or the study home.
        tracking_uri: of MLflow; None for `$STUDY_TRACKING_URI`, or the study home's database.
        record: PostgreSQL database for Optuna's record; None for `$STUDY_RECORD`, or a file in the study home.
        keep: which models stay in MLflow: front, those on the front and near it (`study.keeping.retention`), or all; None for
            what the study, or its parent, keeps, and front for a new one.
        home: None for `$STUDY_HOME`.
        modules: folder of the user's own modules; None for the current directory.
        parent: the study that this one is forked from (`study.life.fork`), of which it takes budget, resources and places
            unless they are given; None for no fork, or one that exists.
        console: where to show progress; None for the terminal.

    Raises:
        UserError: for every mistake that the caller can mend, before any trial is touched.
    """
    check_numbers(trials=trials, max_concurrent=max_concurrent, replicates=replicates, pack=pack)
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
    check_positive(**({} if limits is None else dataclasses.asdict(limits)))
    console = console or Console()
    folder = Home(home).study(name)
    study_space, import_paths, notice = load_space(space, arguments=arguments, folder=Path(modules) if modules else None)
    notify(console, notice)
    study_space = with_given(study_space, given_trials)
    description = describe_space(study_space)
    stopping = check_early_stopping(early_stopping, description, lookahead=max_concurrent if deterministic else None)
    check_inputs(study_space)
    notice = check_sampler(
        sampler,
        sampler_options or {},
        description.parameters,
        num_objectives=len(description.objectives),
        constraints=description.constraints,
    )
    notify(console, notice)
    check_replicates(replicates, study_space.experiment)
    folder.home.prepare()
    if address is not None:
        check_address(address)
    with disk_errors(folder.home.path), folder.lease():
        shipped = shipped_code()
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
            sampler_options=dict(sampler_options or {}),
            replicates=replicates,
            early_stopping=stopping,
            given_trials=tuple(dict(given) for given in given_trials),
            pack=pack or (base.pack if base else 1),
            warm_start=tuple(warm_start),
            warm_start_digest=old.warm_start_digest if old else "",
            limits=(base.limits if base else Limits()).with_those_of(limits),
            until_flat=until_flat,
            seed=seed,
            num_trials=trials or (base or study_space).num_trials,
            num_cpus=(base or study_space).num_cpus if cpus_per_trial is None else cpus_per_trial,
            num_gpus=(base or study_space).num_gpus if gpus_per_trial is None else gpus_per_trial,
            **_places(base, folder.home, storage=storage, tracking_uri=tracking_uri, record=record),
            gpu_memory_gib=study_space.gpu_memory_gib,
            resources=dict(study_space.resources),
            log_scale=list(study_space.log_scale),
            color_by=study_space.color_by,
            versions=installed_versions() | ({"narrow-study": shipped.versions["narrow-study"]} if shipped else {}),
            commit=shipped.commit if shipped else commit_of(inspect.getfile(study_space.suggest)),
            lookahead=max_concurrent if deterministic else None,
            parents=old.parents if old else parent.as_parents() if parent else (),
            keep=keep or (base.keep if base else "front"),
        )
        if warm_start and old is None:
            spec = _started_warm(spec, folder)
        if old:
            refuse_drift(old, spec)
            notify(console, describe_changes(old, spec))
        elif parent:
            notify(console, describe_fork(parent, spec))
        check_gpus(spec)
        check_limits(spec)
        check_storage(spec)
        with _storage_lease(folder, spec, console):
            check_storage(spec, home=folder.home)
            return run_session(
                folder,
                spec,
                study_space,
                address=address,
                max_concurrent=max_concurrent,
                time_budget_s=time_budget_s,
                console=console,
            )


def _places(
    base: StudySpec | None, home: Home, *, storage: str | None, tracking_uri: str | None, record: str | None
) -> dict[str, Any]:
    """Where a study keeps its things: as the launch says, else as the study or its parent does, else as the settings say."""
    storage = storage or (base.storage if base else setting(STORAGE) or str(home.path / "storage"))
    tracking_uri = tracking_uri or (base.tracking_uri if base else setting(TRACKING_URI) or home.tracking_uri)
    record = record or (base.record if base else setting(RECORD))
    refuse_secrets("--storage", storage, "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    refuse_secrets("--tracking-uri", tracking_uri, "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
    return {
        "storage": absolute_storage(storage),
        "tracking_uri": tracking_uri,
        "record": check_record(record) if record else None,
    }


def _storage_lease(folder: StudyFolder, spec: StudySpec, console: Console) -> StorageLease:
    """Say in the storage who runs the study; stop gracefully should another host run it all the same."""

    def stop(other: Tenant) -> None:
        folder.ask_to_stop()
        notify(console, f"stopping: {spec.name} is being run by {other}, too")

    return StorageLease(spec.study_folder, name=spec.name, study_id=spec.study_id, home=str(folder.home.path), on_lost=stop)


def _started_warm(spec: StudySpec, folder: StudyFolder) -> StudySpec:
    """Gather what other studies found, and keep it with the study."""
    from study.running import warm_start

    known = warm_start.gather(spec.warm_start, spec.description, home=folder.home.path)
    return dataclasses.replace(spec, warm_start_digest=warm_start.save(folder.warm_start_file, known))


def resume(
    name: str,
    *,
    trials: int | None = None,
    time_budget_s: float | None = None,
    limits: Limits | None = None,
    until_flat: bool | None = None,
    pack: int | None = None,
    max_concurrent: int | None = None,
    address: str | None = None,
    home: str | Path | None = None,
    console: Console | None = None,
) -> Outcome:
    """Go on with a study as it was launched. Arguments as in `launch`; None for what it had.

    Raises:
        UserError: if there is no such study, or its space has changed.
    """
    home = Home(home).path  # absolute, before the current folder changes
    old = StudySpec.load(Home(home).study(name).require().spec_file)
    with contextlib.chdir(folder_now(old.folder)):  # so that a relative path among the space's arguments means what it meant
        return launch(
            old.space,
            name=name,
            arguments=old.space_arguments,
            trials=trials,
            time_budget_s=time_budget_s,
            seed=old.seed,
            sampler=old.sampler,
            sampler_options=old.sampler_options,
            replicates=old.replicates,
            early_stopping=old.early_stopping,
            given_trials=old.given_trials,
            warm_start=old.warm_start,
            pack=pack,
            limits=limits,
            until_flat=old.until_flat if until_flat is None else until_flat,
            max_concurrent=old.lookahead if max_concurrent is None else max_concurrent,
            deterministic=old.lookahead is not None,
            cpus_per_trial=old.num_cpus,
            gpus_per_trial=old.num_gpus,
            address=address,
            home=home,
            modules=modules_now(old.import_paths),
            console=console,
        )
