"""What the routes share: the desk, the answers made already, the threads that make them; all of it may be lost at any time."""

import asyncio
import hashlib
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from fastapi import Depends, Request, Response

from study.errors import UserError
from study.home import Home
from study.service.desk import Desk
from study.service.flights import Flights
from study.service.registered import Registered, ask_registered
from study.service.schemas import Error
from study.service.settings import ServiceSettings
from study.service.views import to_bytes

_NUM_READERS, _NUM_WRITERS = 6, 2
_REGISTERED_S = 300.0

_SENTENCES = {
    400: "The question cannot be answered: the sentence says why.",
    401: "The token is missing or another.",
    403: "Without a token: the request does not come from this machine's own page.",
    404: "There is no such study, trial or model.",
    408: "The request did not arrive in time.",
    409: "It does not go with how the study stands.",
    413: "The request is too large.",
    415: "The request is not JSON.",
    422: "The request has another form than is described.",
    429: "Too many requests; `Retry-After` says when to ask again.",
    503: "The answer takes too long; ask again later.",
}
ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": Error, "description": told} for status, told in _SENTENCES.items()}
"""What every route may answer beside what it is asked for."""


@dataclass(frozen=True, slots=True)
class Answer:
    """JSON, and what tells it from another."""

    body: bytes
    etag: str


class Core:
    """What a service works with."""

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self.home = Home(settings.home)
        self.readers = ThreadPoolExecutor(_NUM_READERS, "reader")
        self.writers = ThreadPoolExecutor(_NUM_WRITERS, "writer")
        self.desk = Desk(self.home, self.readers)
        self.num_downloads = 0
        self._locks: dict[str, asyncio.Lock] = {}
        self._answers: Flights[Answer] = Flights(self.readers, lifetime_s=float("inf"), num_kept=64)
        self._registered: Flights[Registered] = Flights(self.readers, lifetime_s=_REGISTERED_S, num_kept=1)

    def lock(self, name: str) -> asyncio.Lock:
        """What whoever changes a study holds meanwhile, among the requests of this process."""
        return self._locks.setdefault(name, asyncio.Lock())

    async def registered(self) -> Registered:
        """The spaces that may be launched, and their metrics.

        Raises:
            UserError: if one of the operator's is none any more.
        """
        return await self._registered.get((), partial(ask_registered, self.settings.spaces))

    def metrics_of(self, experiment: str | None) -> list[dict[str, str]]:
        """Metrics of an experiment that have a goal; none while they are read, and of one that no registered space is of."""
        try:
            found = self._registered.glance((), partial(ask_registered, self.settings.spaces))
        except UserError:
            return []
        return list(found["metrics"].get(experiment or "", [])) if found else []

    async def answer(self, key: tuple[Hashable, ...], make: Callable[[], Any]) -> Answer:
        """What `make` says, as JSON; made once for a key, which must say all that it depends on."""
        return await self._answers.get(key, partial(_answer, make))


def _answer(make: Callable[[], Any]) -> Answer:
    body = to_bytes(make())
    return Answer(body, f'"{hashlib.sha256(body).hexdigest()[:24]}"')


def respond(request: Request, answer: Answer) -> Response:
    """Send an answer, unless the client has it."""
    headers = {"ETag": answer.etag, "Cache-Control": "private, no-cache"}
    known = request.headers.get("if-none-match", "")
    if known and (known.strip() == "*" or answer.etag in (tag.strip().removeprefix("W/") for tag in known.split(","))):
        return Response(status_code=304, headers=headers)
    return Response(answer.body, media_type="application/json", headers=headers)


def _core(request: Request) -> Core:
    core: Core = request.app.state.core
    return core


TheCore = Annotated[Core, Depends(_core)]
