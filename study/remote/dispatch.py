"""Where a command runs: in this process, in the background of this machine, or on a cluster."""

import dataclasses
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from study.errors import UserError
from study.home import Home, StudyFolder, check_name
from study.remote.job_server import JobServer, is_job_server
from study.remote.jobs import Job, ask, follow, follow_and_stop
from study.remote.packing import own_modules
from study.remote.remembered import RemoteStudy, refuse_taken_name
from study.remote.words import words_of
from study.running.background import await_start, log_file, start_driver
from study.settings import refuse_secrets

_START_SECONDS = 300.0
_PLACES = {"storage": "--storage", "tracking_uri": "--tracking-uri", "record": "--record"}


def run_elsewhere(context: typer.Context, name: str, console: Console, *, parent: str | None = None) -> int | None:
    """Run a command of a study's life where its options and what is remembered say.

    Args:
        context: of `launch`, `fork`, `resume` or `extend`.
        name: of the study that it runs.
        parent: of a fork.

    Returns:
        the command's exit status; None if it is this process that must run it.

    Raises:
        UserError: if there is no such place, or the command is refused there.
    """
    folder, address = Home().study(name), context.params["address"]
    is_launch = context.info_name == "launch"
    there = None if is_launch and address is None else find_remote(parent or name, address)
    if is_launch or parent:
        refuse_taken_name(folder, is_remote=there is not None)
    if there is not None:
        return _on_cluster(context, _as_sent(context, name, there), folder.home, console)
    return _in_background(context, folder, console) if context.params["detach"] else None


def find_remote(name: str, address: str | None) -> RemoteStudy | None:
    """The study on a cluster that a name means: one at an address of a job server, or a remembered one; None for one here."""
    home = Home()
    if not is_job_server(address) or address is None:
        folder = home.study(name)
        is_here = folder.exists() or folder.is_imported
        return None if address is not None or is_here else RemoteStudy.load(name, home)
    known = RemoteStudy.load(name, home)
    return dataclasses.replace(known, address=address) if known else RemoteStudy(name=name, address=address)


def find_asked(name: str, address: str | None) -> RemoteStudy | None:
    """As `find_remote`, for a command that runs no study.

    Raises:
        UserError: if the address is not a job server's.
    """
    if address is not None and not is_job_server(address):
        raise UserError(
            f"a study on a cluster is asked through its job server, http://head:8265, but got {address!r}; leave --address out "
            "for a study whose driver was started on this machine"
        )
    try:
        check_name(name)
    except UserError:
        return None  # an experiment in MLflow may have any name
    return find_remote(name, address)


def ask_there(context: typer.Context, remote: RemoteStudy, console: Console) -> int:
    """Run a command that looks at a study, or stops it, where the study is; returns its exit status."""
    return ask(JobServer(remote.address), remote.name, words_of(context, without={"address"}), console)


def job_state(remote: RemoteStudy) -> str:
    """What became of the newest driver of a study on a cluster, in one line."""
    try:
        job = Job.newest(JobServer(remote.address), remote.name)
    except UserError as error:
        return f"its cluster says nothing of it: {error}"
    return f"job {job.id} on {remote.address}: {job.state}"


def _as_sent(context: typer.Context, name: str, there: RemoteStudy) -> RemoteStudy:
    """What is to be remembered of a study that a command begins or goes on with.

    Args:
        there: the study, or the parent of a fork.
    """
    params = context.params
    _check_places(params)
    space, folder = params.get("space"), there.folder
    if space:
        folder = str(own_modules(space, Path.cwd()) or "")
    elif not there.space:  # launched from another machine
        folder = str(Path.cwd())
    uri = params.get("tracking_uri") or there.tracking_uri or ""
    return RemoteStudy(
        name=name,
        address=there.address,
        space=space or there.space,
        folder=folder,
        tracking_uri=uri if uri.startswith(("http://", "https://")) else None,
    )


def _check_places(params: dict[str, Any]) -> None:
    for key, option in _PLACES.items():
        place = params.get(key)
        if place is None:
            continue
        refuse_secrets(option, place, "give the nodes of the cluster the secret in their environment")
        if "://" not in place and not Path(place).is_absolute():
            raise UserError(
                f"{option} of a study on a cluster must be a URI, or a whole path there, but got {place!r}; a job's folder is "
                "deleted after it"
            )


def _on_cluster(context: typer.Context, remote: RemoteStudy, home: Home, console: Console) -> int:
    server, known = JobServer(remote.address), RemoteStudy.load(remote.name, home)
    words = [*words_of(context, without={"address", "detach"}), "--address=auto"]
    job = Job.send(server, remote.name, words, modules=Path(remote.folder) if remote.folder else None, console=console)
    remote.save(home)
    if not context.params["detach"]:
        console.print(f"{remote.name} is sent to {server.address} as job {job.id}", highlight=False)
        code: int | None = follow_and_stop(job, console)
    else:
        code = _await_begin(job)
    if code == 2 and not job.has_begun:  # refused: the name is free, or means what it meant
        known.save(home) if known else remote.forget(home)
    if code is None:
        _say_how_to_go_on(remote.name, f"job {job.id} on {server.address}", console)
    return code or 0


def _await_begin(job: Job) -> int | None:
    try:
        return follow(job, until_begun=True)
    except KeyboardInterrupt:
        job.server.kill(job.id)
        raise


def _in_background(context: typer.Context, folder: StudyFolder, console: Console) -> int:
    """Start the command in the background of this machine; returns when it has refused nothing, or is over."""
    start_driver(folder, words_of(context, without={"detach"}))
    with console.status(f"starting {folder.name}"):
        driver = await_start(folder, timeout_s=_START_SECONDS)
    if driver.is_alive:
        _say_how_to_go_on(folder.name, f"process {driver.pid}, which prints to {log_file(folder)}", console)
        return 0
    console.print(f"{folder.name} has ended already; see: study logs {folder.name}", highlight=False)
    return 1 if driver.exit_code is None else driver.exit_code


def _say_how_to_go_on(name: str, where: str, console: Console) -> None:
    console.print(f"{name} runs on without this terminal: {where}", highlight=False, soft_wrap=True)
    for command in (f"study logs {name} -f", f"study status {name}", f"study stop {name}"):
        console.print(f"  {command}", highlight=False)
