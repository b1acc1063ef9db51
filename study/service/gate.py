"""What every request passes before it is routed: too many at once, too many of one client, who asks, how large it is.

Plain ASGI, so that a request that is turned away costs next to nothing.
"""

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from study.service.access import READING, Access, Refusal
from study.service.limits import Rate
from study.service.settings import ServiceSettings

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_BODY_S = 10.0
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""plotly.js sets styles in the page; scripts come from this service alone."""
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class Gate:
    """Lets requests through to an app, or answers them itself."""

    def __init__(self, app: App, settings: ServiceSettings) -> None:
        self._app, self._settings = app, settings
        self._access = Access(settings)
        self._reads, self._writes = Rate(settings.reads_per_s), Rate(settings.writes_per_s)
        self._num_in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif self._num_in_flight >= self._settings.max_in_flight:
            law = f"at most {self._settings.max_in_flight} requests may be under way at once, but there are as many"
            await _refuse(send, Refusal(429, f"{law}; try again in a second", 1.0))
        else:
            self._num_in_flight += 1
            try:
                await self._admit(scope, receive, _with_headers(send))
            finally:
                self._num_in_flight -= 1

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        refusal = self._too_often(scope, headers) or self._access.refusal(scope["method"], scope["path"], headers)
        if refusal is None and scope["method"] not in READING:
            refusal, receive = await self._read_body(receive, headers)
        if refusal is not None:
            await _refuse(send, refusal)
        else:
            await self._app(scope, receive, send)

    def _too_often(self, scope: Scope, headers: dict[bytes, bytes]) -> Refusal | None:
        """A wrong token counts against its client's address, so that nobody can use up another's share by guessing."""
        client = "token" if self._access.bears_token(headers) else str((scope.get("client") or ("unknown",))[0])
        is_read = scope["method"] in READING
        wait_s = (self._reads if is_read else self._writes).take(client)
        if not wait_s:
            return None
        per_s = self._settings.reads_per_s if is_read else self._settings.writes_per_s
        law = f"a client must make at most {per_s:g} {'reads' if is_read else 'writes'} a second, but made more"
        return Refusal(429, f"{law}; try again in {math.ceil(wait_s)} s", wait_s)

    async def _read_body(self, receive: Receive, headers: dict[bytes, bytes]) -> tuple[Refusal | None, Receive]:
        limit = self._settings.max_body_bytes
        told = headers.get(b"content-length", b"0")
        body = b""
        is_whole = False
        deadline = time.monotonic() + _BODY_S
        while not is_whole and len(body) <= limit and not (told.isdigit() and int(told) > limit):
            try:
                message = await asyncio.wait_for(receive(), deadline - time.monotonic())
            except TimeoutError:
                return Refusal(408, f"a request must arrive within {_BODY_S:g} s, but this one did not; send it again"), receive
            body += message.get("body", b"")
            is_whole = message["type"] == "http.disconnect" or not message.get("more_body", False)
        if not is_whole or len(body) > limit:
            return Refusal(413, f"a request must be at most {limit} bytes, but got more; send less"), receive
        return None, _again(body, receive)


def _again(body: bytes, receive: Receive) -> Receive:
    """What hands out a body that was read already."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *_HEADERS]
        await send(message)

    return send_with_headers


async def _refuse(send: Send, refusal: Refusal) -> None:
    body = json.dumps({"error": refusal.sentence}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    if refusal.wait_s:
        headers.append((b"retry-after", str(math.ceil(refusal.wait_s)).encode()))
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
