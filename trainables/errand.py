"""What a worker is sent for: parcels, one after the other, and how much of them it does before it reports.

Plain Python, as `trainables.attempt`: what runs here under Ray runs the same without it.
"""

import dataclasses
import time
from collections import deque
from collections.abc import Collection, Sequence

from trainables.failures import FATAL_TO_THE_WORKER
from trainables.parcel import Parcel
from trainables.protocol import Assignment, Report
from trainables.storage import StorageError


class Errand:
    """Runs parcels one after the other: a worker with many tiny trials comes back for more less often.

    Args:
        parcels: the assignments of each, at least one.
        slice_s: seconds for which it makes steps before it reports; one step of each trial of a parcel at least. 0 where
            somebody decides upon each step whether there is another.
    """

    def __init__(self, parcels: Sequence[Sequence[Assignment]], *, slice_s: float = 0.0) -> None:
        self._later = deque(parcels)
        self._slice_s = slice_s
        self._parcel = Parcel(self._later.popleft())
        self._error: Exception | None = None

    @property
    def trials(self) -> list[int]:
        """Numbers of the trials that are under way."""
        return self._parcel.trials

    @property
    def is_over(self) -> bool:
        """Whether every trial of every parcel is."""
        return not self.trials and not self._later and self._error is None

    def advance(self, stopped: Collection[int] = ()) -> list[Report]:
        """Make steps for a while, and report of them in their order, each with its age.

        Args:
            stopped: as `Parcel.advance` takes it.

        Raises:
            StorageError, Exception: as `Parcel.advance` does, once what was made before it is reported.
        """
        start, made = time.monotonic(), list[tuple[float, Report]]()
        while self._error is None and not self.is_over:
            try:
                reports = self._parcel.advance(stopped)
            except (*FATAL_TO_THE_WORKER, StorageError) as error:
                self._error = error
                break
            now = time.monotonic()
            made += ((now, report) for report in reports)
            if not self.trials and self._later:
                self._parcel = Parcel(self._later.popleft())
            if now - start >= self._slice_s:
                break
        if self._error is not None and not made:
            raise self._error
        end = time.monotonic()
        return [dataclasses.replace(report, age_seconds=end - when) for when, report in made]

    def close(self) -> None:
        """Keep the work of what is under way: the errand ends here, its trials may go on elsewhere.

        Raises:
            StorageError: if the storage did not take all of it.
        """
        self._later.clear()
        self._parcel.close()
