"""What may happen to a study at any instant, and a schedule of it drawn from a seed."""

import contextlib
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import psutil

from trainables.failpoints import VARIABLE, Place

Victim = Literal["driver", "writer", "worker", "raylet", "everything", "power"]
"""Whom SIGKILL hits: the process that was launched, the one that writes to MLflow, one that runs a trial, Ray's daemon on this
machine, or all of them; `power`: all of them, and the newest checkpoint is cut in half, as a power loss may leave it."""

_VICTIMS: tuple[Victim, ...] = get_args(Victim)
_PLACES: tuple[Place, ...] = tuple(place for place in get_args(Place) if place != "model going")
"""But that one: a small study drops no model."""
_LOSE_A_WORKER = ("worker", "file written", "work saved")
_WORKERS = ("ray::ExperimentTrainable", "ray::ImplicitFunc")
"""What processes that run a trial are called: ours, and Ray Tune's where the trainable is a function."""
_MAX_LOST_WORKERS_IN_A_ROW = 2
"""With one more, and no step between them, a study rightly gives up on a trial."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One death.

    Attributes:
        target: whom SIGKILL hits, or the place at which the next process that comes by dies.
        moment: in [0, 1): after which share of a span of time (`study.chaos.patient.Pace`).
    """

    target: Victim | Place
    moment: float

    @property
    def place(self) -> Place | None:
        """The place, if it is one."""
        return next((place for place in _PLACES if place == self.target), None)

    @property
    def pattern(self) -> str:
        """What must be there for a process to die: of files, a checkpoint."""
        return "step-*.pt" if self.target == "file written" else "*"

    def __str__(self) -> str:
        return f"death at {self.target!r}" if self.place else f"SIGKILL to {self.target}"


def draw_faults(num: int, seed: int) -> list[Fault]:
    """Draw a schedule: every kind of fault once before any comes again, at uniform moments."""
    generator, faults = random.Random(seed), list[Fault]()
    deck: list[Victim | Place] = []
    while len(faults) < num:
        if not deck:
            deck = [*_VICTIMS, *_PLACES]
            generator.shuffle(deck)
        recent = [fault.target for fault in faults[-_MAX_LOST_WORKERS_IN_A_ROW:]]
        spared = _LOSE_A_WORKER if len([kind for kind in recent if kind in _LOSE_A_WORKER]) == _MAX_LOST_WORKERS_IN_A_ROW else ()
        target: Victim | Place = next((kind for kind in deck if kind not in spared), "driver")
        if target in deck:
            deck.remove(target)
        faults.append(Fault(target, generator.random()))
    return faults


def processes_of(failpoints: Path) -> Iterator[psutil.Process]:
    """Every process whose failpoints are in a folder: all of a study's, wherever they were started."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(VARIABLE) == str(failpoints) and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def kill(target: str, failpoints: Path, driver: int) -> bool:
    """SIGKILL a victim; return whether there was anybody.

    Args:
        failpoints: folder of the study's.
        driver: process id of the launch.
    """
    found = False
    for process in processes_of(failpoints):
        with contextlib.suppress(psutil.Error, IndexError):  # it has ended meanwhile
            if _is_meant(process, target, driver):
                process.kill()
                found = True
    return found


def _is_meant(process: psutil.Process, target: str, driver: int) -> bool:
    command: list[str] = process.cmdline()
    name: str = process.name()
    match target:
        case "writer":
            return "study.recording.writer" in command
        case "worker":
            return command[0].startswith(_WORKERS)
        case "raylet":
            return name == "raylet"
        case "driver":
            return int(process.pid) == driver
        case _:
            return True


def newest_checkpoint(storage: Path) -> Path | None:
    """Of the trials that are not done."""
    files = storage.glob("trials/*/checkpoints/step-*.pt")
    return newest(file for file in files if not (file.parents[1] / "model").exists())


def newest(files: Iterable[Path]) -> Path | None:
    """The file that was written last, of those that are still there; None where none is."""
    ages = dict[Path, int]()
    for file in files:
        with contextlib.suppress(FileNotFoundError):  # a worker has pruned it meanwhile
            ages[file] = file.stat().st_mtime_ns
    return max(ages, key=ages.__getitem__, default=None)


def tear(file: Path) -> None:
    """Leave the first half of a file."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
