"""What is known of each study now, asked no oftener than is good for MLflow and for the trials that share the machine."""

import asyncio
import itertools
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from study import settings
from study.asking.query import Study, open_study
from study.errors import UserError
from study.home import Home, StudyFolder
from study.service.flights import Flights, SlowError
from study.service.standing import Standing, is_known, stamp, standing
from study.spec import StudySpec

_log = logging.getLogger(__name__)
_LOOK_S = 0.5
_READ_S = 1.0
_SHARE = 5.0
"""A study is read again at the earliest after so many times what its last reading took: at most a sixth of a core is spent."""
_LIST_S = 1.0
_IDLE_S = 60.0


class UnknownStudyError(UserError):
    """There is no such study."""


@dataclass(frozen=True, slots=True)
class Look:
    """A study at one moment.

    Attributes:
        spec: of a study that this home launched.
        study: as MLflow has it; None before its first trial is there, and where MLflow does not answer.
        complaint: why there is none.
        version: the same as long as nothing is known to have changed.
        stamp: of its files.
        made: when; seconds by the monotonic clock.
    """

    name: str
    standing: Standing
    spec: StudySpec | None
    study: Study | None
    complaint: str | None
    version: int
    stamp: str
    made: float


@dataclass(frozen=True, slots=True)
class _Reading:
    study: Study | None
    complaint: str | None
    number: int
    again_at: float
    is_running: bool


class Desk:
    """Looks at the studies of a home.

    Args:
        workers: threads that read.
    """

    def __init__(self, home: Home, workers: ThreadPoolExecutor) -> None:
        self.home = home
        self._looks: Flights[Look] = Flights(workers, lifetime_s=_LOOK_S)
        self._lists: Flights[list[tuple[str, str]]] = Flights(workers, lifetime_s=_LOOK_S)
        self._last: dict[str, Look] = {}
        self._readings: dict[str, _Reading] = {}
        self._numbers = itertools.count(1)

    async def look(self, name: str) -> Look:
        """A study as it is now, or was a moment ago.

        Raises:
            UnknownStudyError: if there is none of that name.
        """
        return await self._looks.get((name,), partial(self._look, name))

    async def study(self, name: str) -> tuple[Study, int]:
        """A study as MLflow has it, and the version of that.

        Raises:
            UserError: if MLflow does not have it.
        """
        look = await self.look(name)
        if look.study is None:
            law = f"a study must have begun to be asked, but {name!r} is {look.standing.state}"
            raise UserError(look.standing.sentence or look.complaint or f"{law}; try again in a few seconds")
        return look.study, look.version

    async def every(self) -> list[tuple[str, Look | None]]:
        """Every study of the home by name; None for one that is long in reading: it will be there soon."""
        stamps = await self._lists.get(("",), self._stamps)
        looks = dict(await asyncio.gather(*(self._recent(name, found) for name, found in stamps)))
        return [(name, looks[name]) for name, _ in stamps]

    def forget(self, name: str) -> None:
        """Look again at once: somebody changed the study."""
        self._looks.forget(name)
        self._lists.forget("")
        self._readings.pop(name, None)
        self._last.pop(name, None)

    async def _recent(self, name: str, now: str) -> tuple[str, Look | None]:
        """A study that nobody runs is not read again while its files are as they were."""
        last = self._last.get(name)
        is_idle = last is not None and last.standing.state in ("idle", "imported", "refused")
        if last is not None and is_idle and last.stamp == now and time.monotonic() - last.made < _IDLE_S:
            return name, last
        try:
            return name, await asyncio.wait_for(self.look(name), _LIST_S)
        except (UserError, SlowError, TimeoutError):
            return name, last
        except Exception:  # a file of one study that is broken hides no other
            _log.exception("%s cannot be looked at", name)
            return name, last

    def _stamps(self) -> list[tuple[str, str]]:
        names = {file.parent.name for file in (self.home.path / "studies").glob("*/*.json") if file.stem in _NOTES}
        folders = (StudyFolder(self.home, name) for name in sorted(names))
        return [(folder.name, stamp(folder)) for folder in folders if is_known(folder)]

    def _look(self, name: str) -> Look:
        folder = self.home.study(name)
        seen, stands = stamp(folder), standing(folder)
        if not is_known(folder) and not os.environ.get(settings.TRACKING_URI):
            raise _unknown(name)
        spec = StudySpec.load(folder.spec_file) if folder.exists() else None
        reading = self._read(folder, stands)
        if reading.study is None and not is_known(folder):
            self._readings.pop(name, None)  # anybody may ask for any name: no more of them are kept than `Flights` does
            raise _unknown(name)
        look = Look(name, stands, spec, reading.study, reading.complaint, reading.number, seen, time.monotonic())
        self._last[name] = look
        return look

    def _read(self, folder: StudyFolder, stands: Standing) -> _Reading:
        """What MLflow says, or said when it was asked not long ago."""
        begun, is_running = time.monotonic(), stands.state == "running"
        last = self._readings.get(folder.name)
        if last is not None and begun < last.again_at and last.is_running == is_running:
            return last
        study, complaint = None, None
        if folder.exists() or stands.state not in ("starting", "refused"):
            try:
                study = open_study(folder.name, home=self.home.path)
            except UserError as error:
                complaint = str(error)
        took = time.monotonic() - begun
        reading = _Reading(study, complaint, next(self._numbers), begun + max(_READ_S, (1 + _SHARE) * took), is_running)
        self._readings[folder.name] = reading
        return reading


_NOTES = ("spec", "imported", "driver")


def _unknown(name: str) -> UnknownStudyError:
    return UnknownStudyError(f"a study must be one of this home, but there is no {name!r}; see the list of studies")
