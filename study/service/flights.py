"""Answers that many wait for and one computes: each in a thread, so that nothing slow holds up the others."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from study.errors import UserError

T = TypeVar("T")
Key = tuple[Hashable, ...]
_WAIT_S = 20.0
_USABLE_S = 10.0


class SlowError(Exception):
    """An answer takes longer than a client should wait."""


@dataclass(frozen=True, slots=True)
class _Landed(Generic[T]):
    value: T | UserError
    made: float

    def get(self) -> T:
        if isinstance(self.value, UserError):
            raise self.value
        return self.value


class Flights(Generic[T]):
    """Answers by key, of which the last ones are kept.

    Whoever asks first for one that is not there, or too old, waits for it. Those that ask meanwhile get the old one, unless it
    is far too old. A user's mistake is an answer, too.

    Args:
        workers: that compute.
        lifetime_s: how old an answer may be; infinite for one that never changes.
        num_kept: answers.
    """

    def __init__(self, workers: ThreadPoolExecutor, *, lifetime_s: float, num_kept: int = 256) -> None:
        self._workers, self._lifetime_s, self._num_kept = workers, lifetime_s, num_kept
        self._landed: OrderedDict[Key, _Landed[T]] = OrderedDict()
        self._under_way: dict[Key, asyncio.Task[_Landed[T]]] = {}

    async def get(self, key: Key, compute: Callable[[], T]) -> T:
        """The answer of a key.

        Raises:
            SlowError: if it is long in coming, and there is no old one.
            UserError: what `compute` raises.
        """
        found = self._landed.get(key)
        age = float("inf") if found is None else time.monotonic() - found.made
        if found is not None and age < self._lifetime_s:
            self._landed.move_to_end(key)
            return found.get()
        flight = self._under_way.get(key)
        if flight is None:
            flight = self._start(key, compute)
        elif found is not None and age < _USABLE_S:
            return found.get()
        done, _ = await asyncio.wait([flight], timeout=_WAIT_S)
        if not done:
            raise SlowError
        return flight.result().get()

    def glance(self, key: Key, compute: Callable[[], T]) -> T | None:
        """The answer if it is there, be it old; else None, and it is begun.

        Raises:
            UserError: what `compute` raised.
        """
        found = self._landed.get(key)
        is_old = found is None or time.monotonic() - found.made >= self._lifetime_s
        if is_old and key not in self._under_way:
            self._start(key, compute)
        return None if found is None else found.get()

    def _start(self, key: Key, compute: Callable[[], T]) -> "asyncio.Task[_Landed[T]]":
        flight = self._under_way[key] = asyncio.ensure_future(self._fly(key, compute))
        return flight

    def forget(self, first: Hashable) -> None:
        """Compute anew all answers whose key begins so, those under way included."""
        for answers in (self._landed, self._under_way):
            for key in [key for key in answers if key[0] == first]:
                del answers[key]

    async def _fly(self, key: Key, compute: Callable[[], T]) -> _Landed[T]:
        try:
            value: T | UserError = await asyncio.get_running_loop().run_in_executor(self._workers, _mistakes_as_values, compute)
            landed = _Landed(value, time.monotonic())
            if self._under_way.get(key) is asyncio.current_task():
                self._landed[key] = landed
                self._landed.move_to_end(key)
                while len(self._landed) > self._num_kept:
                    self._landed.popitem(last=False)
            return landed
        finally:
            if self._under_way.get(key) is asyncio.current_task():
                del self._under_way[key]


def _mistakes_as_values(compute: Callable[[], T]) -> T | UserError:
    try:
        return compute()
    except UserError as error:
        return error
