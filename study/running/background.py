"""A study's driver in a process of its own, which outlives whoever started it: a terminal, a service.

    python -m study.running.background NAME ARGUMENT...

Runs `study ARGUMENT...`. What it prints goes to `driver.log` in the study's folder, how it stands to `driver.json`.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from study.errors import UserError
from study.home import Home, StudyFolder, write_whole

_MISTAKE = 2
_started: list[subprocess.Popen[bytes]] = []
"""Of this process, which may be a service for months."""


@dataclass(frozen=True, slots=True)
class Driver:
    """The last process that was started in the background for a study.

    Attributes:
        arguments: of `study`.
        started: when its process was, seconds since 1970 by the kernel: tells it from a later one with its number.
        exit_code: None while it runs, or if it was killed.
    """

    pid: int
    started: float
    arguments: tuple[str, ...]
    exit_code: int | None = None

    @property
    def is_alive(self) -> bool:
        """Whether it still runs, on this machine."""
        try:
            process = psutil.Process(self.pid)
            return bool(abs(process.create_time() - self.started) < 1 and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False


def start_driver(folder: StudyFolder, arguments: Sequence[str]) -> int:
    """Start `study ARGUMENTS` for a study, in a session of its own; returns its process number when it has begun to load.

    Args:
        arguments: words, never read by a shell: `["resume", "first"]`.

    Raises:
        UserError: if somebody runs the study already or is about to, if the home cannot be written, or if the process ends
            before it has begun to load.
    """
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            _refuse_second(folder)
            return _start(folder, arguments)
    except OSError as error:
        raise UserError(
            f"the study home must be a folder that can be written, but {folder.path} is not ({error}); make room there, or set "
            "STUDY_HOME to one that is"
        ) from error


@contextlib.contextmanager
def _alone(folder: StudyFolder) -> Iterator[None]:
    """One at a time, of all processes: whoever starts a driver, or notes a driver's end."""
    with log_file(folder).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _refuse_second(folder: StudyFolder) -> None:
    if holder := folder.holder():
        raise UserError(
            f"a study must be run by one process at a time, but {folder.name!r} is being run by process {holder['pid']} on "
            f"{holder['host']}; end it first: study stop {folder.name}"
        )
    driver = last_driver(folder)
    if driver is not None and driver.is_alive and nobody_ran_since(folder):
        raise UserError(
            f"a study must be run by one process at a time, but {folder.name!r} is being started by process {driver.pid}; wait "
            f"for it: study logs {folder.name} -f"
        )


def _start(folder: StudyFolder, arguments: Sequence[str]) -> int:
    before = last_driver(folder)
    with log_file(folder).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "study.running.background", folder.name, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"STUDY_HOME": str(folder.home.path), "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
    _started[:] = [started for started in _started if started.poll() is None]  # those that have ended are reaped
    _started.append(process)
    while True:
        code, driver = process.poll(), last_driver(folder)  # in this order: one that has ended has noted all that it will
        if driver is not None and driver.pid == process.pid and driver != before:
            return process.pid
        if code is not None:
            raise UserError(
                f"a driver must load, but that of {folder.name!r} ended with status {code} before it did ({last_words(folder)}); "
                f"see {log_file(folder)}"
            )
        time.sleep(0.01)


def nobody_ran_since(folder: StudyFolder) -> bool:
    """Whether nobody has run the study since its last driver in the background began to load, or ended."""
    try:
        noted = (folder.path / "driver.json").stat().st_mtime_ns
    except OSError:
        return False
    with contextlib.suppress(OSError):
        return (folder.path / "lock").stat().st_mtime_ns <= noted
    return True


def log_file(folder: StudyFolder) -> Path:
    """What drivers in the background printed, one after the other."""
    return folder.path / "driver.log"


def last_driver(folder: StudyFolder) -> Driver | None:
    """The last one that was started for a study, or None."""
    try:
        fields = json.loads((folder.path / "driver.json").read_text())
    except FileNotFoundError:
        return None
    return Driver(**fields | {"arguments": tuple(fields["arguments"])})


def last_words(folder: StudyFolder) -> str:
    """The last line that a driver in the background printed: of one that was refused, why."""
    with contextlib.suppress(OSError), log_file(folder).open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        lines = file.read().decode(errors="replace").strip().splitlines()
        return lines[-1].removeprefix("study: ") if lines else ""
    return ""


def refusal(folder: StudyFolder) -> str | None:
    """Why the last driver refused to begin: the user's mistake, in one sentence; None if it did not."""
    driver = last_driver(folder)
    return last_words(folder) if driver is not None and driver.exit_code == _MISTAKE else None


def await_start(folder: StudyFolder, *, timeout_s: float) -> Driver:
    """Wait until the driver that was started last runs its study, or has ended.

    Raises:
        UserError: if it refused to begin, or does neither in time.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        driver = last_driver(folder)
        assert driver is not None, "start one first"
        if not driver.is_alive:
            driver = last_driver(folder) or driver  # what it said at its end
            if driver.exit_code == _MISTAKE:
                raise UserError(last_words(folder))
            return driver
        holder = folder.holder()
        if holder is not None and holder["pid"] == driver.pid and holder.get("begun"):
            return driver
        time.sleep(0.1)
    raise UserError(
        f"a study must begin within {timeout_s:g} s, but {folder.name!r} has not; see {log_file(folder)}, or wait longer"
    )


def main(name: str, arguments: Sequence[str]) -> int:
    """Run `study ARGUMENTS` in this process and note how it ended."""
    folder = Home().study(name)
    driver = Driver(os.getpid(), float(psutil.Process().create_time()), tuple(arguments))
    _save(folder, driver)
    from study.cli import main as command

    sys.argv = ["study", *arguments]
    code = 1
    try:
        command()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    finally:
        _note_end(folder, driver, code)
    return code


def _note_end(folder: StudyFolder, driver: Driver, code: int) -> None:
    """Unless another was started meanwhile: a study may be free some seconds before its driver is gone."""
    with _alone(folder):
        if last_driver(folder) == driver:
            _save(folder, dataclasses.replace(driver, exit_code=code))


def _save(folder: StudyFolder, driver: Driver) -> None:
    write_whole(folder.path / "driver.json", json.dumps(dataclasses.asdict(driver)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
