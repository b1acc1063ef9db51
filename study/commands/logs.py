"""The command `logs`: what the driver of a detached study prints. Imports late, as `study.cli` does."""

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from study.commands.life import app
from study.commands.options import JobServerAddress, Name
from study.errors import UserError

if TYPE_CHECKING:
    from study.home import StudyFolder
    from study.remote.remembered import RemoteStudy

_POLL_S = 0.5
_ENDS = {
    0: "all trials are done",
    1: "all trials are done, and some have failed",
    2: "it was refused, or could not go on: its last line says why",
    130: "it was interrupted; go on with: study resume {name}",
}


@app.command()
def logs(
    name: Name,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the driver ends, and say how.")] = False,
    address: JobServerAddress = None,
) -> None:
    """Show what the driver of a study prints that runs in the background (--detach) or on a cluster."""
    from study.home import Home
    from study.remote.dispatch import find_asked

    remote = find_asked(name, address)
    if remote is not None:
        _show_job(remote, follow=follow)
    else:
        _show_file(Home().study(name), follow=follow)


def _show_job(remote: "RemoteStudy", *, follow: bool) -> None:
    from study.remote.job_server import JobServer
    from study.remote.jobs import Job

    job = Job.newest(JobServer(remote.address), remote.name)
    for line in job.lines() if follow else job.printed():
        print(line, flush=follow)
    if job.is_over:
        _say_end(remote.name, None if job.trouble else job.exit_code, job.trouble)


def _show_file(folder: "StudyFolder", *, follow: bool) -> None:
    from study.running.background import last_driver, log_file

    driver = last_driver(folder)
    if driver is None:
        folder.require()
        raise UserError(
            f"a log is kept of a driver in the background (--detach), but that of {folder.name!r} was started in a terminal; "
            f"look there, or at a trial: study trial {folder.name} 0"
        )
    with log_file(folder).open(errors="replace") as file:
        while True:
            is_over = not driver.is_alive
            sys.stdout.write(file.read())
            sys.stdout.flush()
            if is_over or not follow:
                break
            time.sleep(_POLL_S)
    if is_over:
        ended = last_driver(folder) or driver
        _say_end(folder.name, ended.exit_code)


def _say_end(name: str, code: int | None, trouble: str | None = None) -> None:
    """In words, beside the log: on the error stream."""
    if code is None:
        words = f"it was killed or lost{f' ({trouble})' if trouble else ''}; go on with: study resume {{name}}"
    else:
        words = _ENDS.get(code, f"exit status {code}, which is a fault of ours or of the machine")
    print(f"the driver of {name} has ended: {words.format(name=name)}", file=sys.stderr)
