"""Answers that many wait for: computed once, kept while they are fresh, forgotten when something changed."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from study.errors import UserError
from study.service import flights
from study.service.flights import Flights, SlowError


def flying(run, **options):
    """Run a coroutine over flights of its own."""
    with ThreadPoolExecutor(4) as workers:
        return asyncio.run(run(Flights(workers, **{"lifetime_s": 60.0, **options})))


class Counted:
    """Something slow that counts how often it was done."""

    def __init__(self, seconds=0.05):
        self.seconds, self.num = seconds, 0

    def __call__(self):
        self.num = number = self.num + 1
        time.sleep(self.seconds)
        return number


def test_one_computes_and_all_have_it():
    work = Counted()

    async def run(found):
        return await asyncio.gather(*(found.get(("a",), work) for _ in range(20)), found.get(("b",), lambda: "other"))

    assert flying(run) == [1] * 20 + ["other"]


def test_while_one_computes_anew_the_others_have_the_old_one_at_once():
    work = Counted(0.2)

    async def run(found):
        await found.get(("a",), work)
        begun = time.monotonic()
        first = asyncio.create_task(found.get(("a",), work))
        await asyncio.sleep(0)
        others = [await found.get(("a",), work) for _ in range(5)]
        assert time.monotonic() - begun < 0.15
        return others, await first

    assert flying(run, lifetime_s=0.0) == ([1] * 5, 2)


def test_what_was_forgotten_is_computed_anew_though_it_was_under_way():
    work = Counted(0.1)

    async def run(found):
        before = asyncio.create_task(found.get(("a", 1), work))
        await asyncio.sleep(0.02)
        found.forget("a")
        after = await found.get(("a", 1), work)
        return await before, after, await found.get(("a", 1), work)

    assert flying(run) == (1, 2, 2)


def test_a_mistake_is_an_answer_and_a_bug_is_none():
    calls = []

    def mistake():
        calls.append("mistake")
        raise UserError("a law")

    def bug():
        calls.append("bug")
        raise ZeroDivisionError

    async def run(found):
        for work, error in ((mistake, UserError), (bug, ZeroDivisionError)) * 2:
            with pytest.raises(error):
                await found.get((work.__name__,), work)

    flying(run)
    assert (calls.count("mistake"), calls.count("bug")) == (1, 2)


def test_nobody_waits_for_ever(monkeypatch):
    monkeypatch.setattr(flights, "_WAIT_S", 0.02)

    async def run(found):
        with pytest.raises(SlowError):
            await found.get(("a",), Counted(0.3))
        await asyncio.sleep(0.4)
        return await found.get(("a",), Counted(0.0))

    assert flying(run) == 1


def test_a_glance_never_waits():
    async def run(found):
        seen = [found.glance(("a",), Counted()), found.glance(("a",), Counted())]
        await asyncio.sleep(0.2)
        return [*seen, found.glance(("a",), Counted())]

    assert flying(run) == [None, None, 1]


def test_the_last_answers_are_kept():
    async def run(found):
        for key in "abcab":
            await found.get((key,), lambda key=key: key)
        return list(found._landed)

    assert flying(run, num_kept=2) == [("a",), ("b",)]
