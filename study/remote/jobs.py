"""A command of `study` as a job: sent, followed to this terminal, left alone."""

import contextlib
import re
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from study.errors import UserError
from study.remote.driver import LIVES, begun_line
from study.remote.job_server import JobServer, LostServer
from study.remote.packing import pack_code

_OF_RAY = re.compile(r"\d{4}-\d\d-\d\d \S+\s+[A-Z]+ job_\w+\.py:\d+ -- |Running entrypoint for job ")
"""What Ray writes into a job's log before the command does."""
_LOST_SECONDS = 60.0
_BYTES_A_SECOND = 200_000
"""The whole log comes with each look at it: a long one is looked at less often."""


class Job:
    """A command that a cluster runs.

    Attributes:
        name: of its study.
        has_begun: it runs its study, so that Ctrl-C has something to stop.
    """

    def __init__(self, server: JobServer, name: str, job: str) -> None:
        self.server, self.name, self.id = server, name, job
        self.has_begun = False
        self._num_seen = 0
        self._info: Any = None

    @classmethod
    def send(cls, server: JobServer, name: str, words: Sequence[str], *, modules: Path | None, console: Console) -> "Job":
        """Submit `study WORDS` with the code of this machine.

        Args:
            modules: folder of the user's own modules; None for a command that needs none.
        """
        what = name if words[0] in LIVES else f"{name}-{words[0]}"
        job = f"{what}-{uuid.uuid4().hex[:8]}"
        with tempfile.TemporaryDirectory(prefix="narrow-study-") as folder:
            shipped = pack_code(Path(folder), modules=modules)
            metadata = {"narrow_study": name, "narrow_study_version": shipped.versions.get("narrow-study", "unknown")}
            entry = ["python", "-m", "study.remote.driver", name, job, *words]
            server.submit(job, entry, folder=Path(folder), metadata=metadata, say=console.print)
        return cls(server, name, job)

    def lines(self) -> Iterator[str]:
        """What the command prints from now on, line by line, until it is over; called again it goes on where it was."""
        while True:
            started = time.monotonic()
            self._info = self._patiently(self.server.info)
            is_over = self._info.status.is_terminal()
            log = self._patiently(self.server.log)
            *lines, unfinished = log.split("\n")
            if is_over and unfinished:
                lines.append(unfinished)
            for line in lines[self._num_seen :]:
                self._num_seen += 1
                self.has_begun = self.has_begun or line.startswith(begun_line(self.name))
                if not _OF_RAY.match(line):
                    yield line
            if is_over:
                return
            time.sleep(max(0.5, time.monotonic() - started, len(log) / _BYTES_A_SECOND))

    @classmethod
    def newest(cls, server: JobServer, name: str) -> "Job":
        """The driver that was started last for a study.

        Raises:
            UserError: if the cluster knows of none.
        """
        is_driver = re.compile(re.escape(name) + r"-[0-9a-f]{8}").fullmatch
        found = [job for job in server.jobs() if is_driver(job.submission_id or "") and _is_of(name, job)]
        if not found:
            raise UserError(
                f"a cluster must know a study's jobs, but {server.address} knows none of {name!r}: it was started anew, or the "
                f"study was launched elsewhere; go on with it: study resume {name} --address {server.address}"
            )
        newest = max(found, key=lambda job: job.start_time or 0)
        job = cls(server, name, newest.submission_id)
        job._info = newest
        return job

    @property
    def state(self) -> str:
        """As Ray calls it: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
        return str(self._info.status)

    @property
    def is_over(self) -> bool:
        return bool(self._info.status.is_terminal())

    def printed(self) -> list[str]:
        """What the command has printed so far."""
        return [line for line in self.server.log(self.id).splitlines() if not _OF_RAY.match(line)]

    @property
    def exit_code(self) -> int:
        """Of the command, when it is over; 130 if the job was stopped, 1 if it never ran."""
        code = self._info.driver_exit_code
        if self._info.status == "STOPPED":
            return 130
        if code is not None:
            return int(code)
        return 0 if self._info.status == "SUCCEEDED" else 1

    @property
    def trouble(self) -> str | None:
        """Why the cluster could not run the command, or lost it; None if it ran to an end of its own."""
        if self._info.status != "FAILED":
            return None
        if self._info.driver_exit_code == 127:
            return "there is no `python` on the PATH of its head; start Ray in the environment that has our packages"
        if self._info.driver_exit_code is None:
            return " ".join(str(self._info.message or "no reason given").split())[:500]
        return None

    def _patiently(self, ask: Any) -> Any:
        """Ask again while a connection comes and goes."""
        deadline = time.monotonic() + _LOST_SECONDS
        while True:
            try:
                return ask(self.id)
            except LostServer as error:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"a job's server must answer, but {self.server.address} has not for {_LOST_SECONDS:g} s; {self.name} "
                        f"goes on if the cluster does, see: study logs {self.name} -f"
                    ) from error
            time.sleep(2.0)


def _is_of(name: str, job: Any) -> bool:
    """Whether a job is a study's: `a-stop-0123abcd` stops `a`, or runs `a-stop`."""
    return bool((job.metadata or {}).get("narrow_study", name) == name)


def follow(job: Job, *, until_begun: bool = False) -> int | None:
    """Print what a job prints until it is over, a user's mistake where mistakes go.

    Args:
        until_begun: only until it runs its study.

    Returns:
        its exit status; None if it goes on.
    """
    for line in job.lines():
        print(line, file=sys.stderr if line.startswith("study: ") else sys.stdout, flush=True)
        if until_begun and job.has_begun:
            return None
    if job.trouble:
        print(f"study: a job must be run to its end, but {job.id} was not: {job.trouble}", file=sys.stderr)
    return job.exit_code


def follow_and_stop(job: Job, console: Console) -> int:
    """Follow a study; Ctrl-C asks it to stop gracefully, as on this machine, a second one leaves it running."""
    try:
        return _followed(job)
    except KeyboardInterrupt:
        console.print(f"stopping {job.name}: its trials save their work; Ctrl-C again leaves it running", highlight=False)
    try:
        _ask_to_stop(job, console)
        return _followed(job)
    except KeyboardInterrupt:
        console.print(f"{job.name} may still be running on {job.server.address}; see: study status {job.name}", highlight=False)
        return 130


def _followed(job: Job) -> int:
    code = follow(job)
    assert code is not None, "a job that is followed to its end has one"
    return code


def _ask_to_stop(job: Job, console: Console) -> None:
    if job.has_begun:
        Job.send(job.server, job.name, ["stop", job.name], modules=None, console=console)
    else:
        job.server.kill(job.id)


def ask(server: JobServer, name: str, words: Sequence[str], console: Console) -> int:
    """Run a command that looks at a study, or stops it, on the cluster, and print what it says."""
    job = Job.send(server, name, words, modules=None, console=console)
    try:
        return _followed(job)
    finally:
        with contextlib.suppress(UserError):
            server.forget(job.id)
