"""The life of a study between its launches: stop the one that runs, give one that ended more trials, fork one."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from study.errors import UserError
from study.home import Home
from study.launch_checks import absolute_storage
from study.provenance import next_name
from study.remote.shipped import folder_now, modules_now
from study.run import launch
from study.running.session import Outcome
from study.spec import Limits, StudySpec, accepted_arguments

_POLL_S = 0.2


def stop(name: str, *, home: str | Path | None = None, timeout_s: float = 300.0) -> bool:
    """Have whoever runs a study keep what is done and end, and wait for it.

    Args:
        home: None for `$STUDY_HOME`.
        timeout_s: how long to wait.

    Returns:
        whether anybody ran it.

    Raises:
        UserError: if there is no such study, or it does not end in time; it was asked all the same.
    """
    folder = Home(home).study(name).require()
    holder = folder.holder()
    if holder is None:
        return False
    deadline = time.monotonic() + timeout_s
    while _is_same(folder.holder(), holder):
        folder.ask_to_stop()  # again and again: a session that has just begun clears what was asked before it
        if time.monotonic() > deadline:
            raise UserError(
                f"a study must end within {timeout_s:g} s of being asked, but {name!r} is still being run by process "
                f"{holder['pid']} on {holder['host']}; wait longer, or kill it: `study resume {name}` loses nothing"
            )
        time.sleep(_POLL_S)
    return True


def _is_same(holder: dict[str, str | int] | None, other: dict[str, str | int]) -> bool:
    return holder is not None and (holder["host"], holder["pid"]) == (other["host"], other["pid"])


def check_extension(name: str, trials: int, *, home: str | Path | None = None) -> None:
    """Refuse an extension that is none.

    Raises:
        UserError: if the study has that many trials already.
    """
    spec = StudySpec.load(Home(home).study(name).require().spec_file)
    if trials <= spec.num_trials:
        raise UserError(
            f"an extension must be of more than the {spec.num_trials} trials of {name!r}, but got {trials}; "
            f"use --trials {2 * spec.num_trials}, or `study resume {name}` for those that are left"
        )


def fork(
    name: str,
    new: str,
    *,
    space: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    trials: int | None = None,
    time_budget_s: float | None = None,
    seed: int | None = None,
    sampler: str | None = None,
    sampler_options: Mapping[str, Any] | None = None,
    replicates: int | None = None,
    early_stopping: str | None = None,
    given_trials: Sequence[Mapping[str, Any]] | None = None,
    warm_start: Sequence[str] | None = None,
    limits: Limits | None = None,
    until_flat: bool | None = None,
    pack: int | None = None,
    max_concurrent: int | None = None,
    deterministic: bool | None = None,
    cpus_per_trial: float | None = None,
    gpus_per_trial: float | None = None,
    address: str | None = None,
    storage: str | None = None,
    keep: str | None = None,
    home: str | Path | None = None,
    modules: str | Path | None = None,
    console: Console | None = None,
) -> Outcome:
    """Begin a study where another's search stands, with something changed, and remember which it came from.

    What is not given is the parent's, its MLflow too; its space is taken as its code is now. The fork has a record of its
    own and begins with no trials: the parent's are not taken over, and the parent is left as it is. The same call again goes
    on with the fork.

    Args:
        name: of the parent, which may be running.
        new: name of the fork.
        arguments: merged over the parent's, or over those of them that another `space` takes. Relative paths among them lead
            from where the parent was launched, as its own do.
        deterministic: None for what the parent is; its number of trials at once comes with it.
        modules: folder of the user's own modules, for a `space` that is given; None for the current directory.

    The other arguments as in `study.run.launch`.

    Raises:
        UserError: if there is no such parent, if `new` is another study already, or for what `launch` refuses.
    """
    if new == name:
        raise UserError(
            f"a fork must have a name of its own, but got {name!r} for both; try: study fork {name} {next_name(name)}"
        )
    studies = Home(home)
    parent = StudySpec.load(studies.study(name).require().spec_file)
    studies.study(new)  # its name, before anything slow
    storage = absolute_storage(storage) if storage else None
    inherited = parent.space_arguments
    if space is None:
        modules = modules_now(parent.import_paths)
    else:
        modules = Path(modules or ".").absolute()
        inherited = accepted_arguments(space, inherited, folder=modules)
    if deterministic is None:
        deterministic = parent.lookahead is not None
    if deterministic and max_concurrent is None:
        max_concurrent = parent.lookahead
    console = console or Console()
    _say_where_paths_lead(parent, arguments or {}, console)
    with contextlib.chdir(folder_now(parent.folder)):
        return launch(
            space or parent.space,
            name=new,
            arguments={**inherited, **(arguments or {})},
            trials=trials,
            time_budget_s=time_budget_s,
            seed=parent.seed if seed is None else seed,
            sampler=parent.sampler if sampler is None else sampler,
            sampler_options=_own_options(parent, sampler) if sampler_options is None else sampler_options,
            replicates=parent.replicates if replicates is None else replicates,
            early_stopping=parent.early_stopping if early_stopping is None else early_stopping,
            given_trials=parent.given_trials if given_trials is None else given_trials,
            warm_start=parent.warm_start if warm_start is None else warm_start,
            limits=limits,
            pack=pack,
            until_flat=parent.until_flat if until_flat is None else until_flat,
            max_concurrent=max_concurrent,
            deterministic=deterministic,
            cpus_per_trial=cpus_per_trial,
            gpus_per_trial=gpus_per_trial,
            address=address,
            storage=storage,
            keep=keep,
            home=studies.path,
            modules=modules,
            parent=parent,
            console=console,
        )


def _own_options(parent: StudySpec, sampler: str | None) -> Mapping[str, Any]:
    """The parent's options of its sampler, for a fork that has the same."""
    return parent.sampler_options if sampler in (None, parent.sampler) else {}


def _say_where_paths_lead(parent: StudySpec, arguments: Mapping[str, Any], console: Console) -> None:
    folder = Path(folder_now(parent.folder)).absolute()
    if folder != Path.cwd() and any(isinstance(value, str) for value in arguments.values()):
        console.print(
            f"note: a relative path among the arguments leads from {folder}, where {parent.name} was launched",
            markup=False, highlight=False,
        )  # fmt: skip
