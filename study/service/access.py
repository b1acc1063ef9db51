"""Whether a request may be answered: its token, or that it comes from a page of our own on this machine."""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from study.service.settings import ServiceSettings

READING = ("GET", "HEAD", "OPTIONS")
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_API = "/api/"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not answered.

    Attributes:
        status: of HTTP.
        sentence: law, value, remedy.
        wait_s: after how many seconds it may be made again; 0 where waiting does not help.
    """

    status: int
    sentence: str
    wait_s: float = 0.0


class Access:
    """Who may ask.

    With a token, whoever bears it. Without one, this machine alone is listened to, where the danger is a browser that shows
    somebody else's page: such a page may name our address, or have a name of its own lead to it, but it cannot set `Host`,
    `Origin` and `Sec-Fetch-Site`.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self._token = None if settings.token is None else settings.token.encode()
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self._hosts = {*_LOOPBACK_NAMES, host.lower()}

    def bears_token(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether there is a token, and a request bears it; compared in a time that tells nothing of it."""
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        is_same = hmac.compare_digest(given.strip(), self._token or b"")
        return self._token is not None and kind.lower() == b"bearer" and is_same

    def refusal(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> Refusal | None:
        """Why a request is refused; None if it is not. The page itself is anybody's: it asks for the token."""
        if self._token is None:
            refused = self._of_another_page(path, headers)
        elif path.startswith(_API) and not self.bears_token(headers):
            got = "another" if b"authorization" in headers else "none"
            refused = Refusal(
                401, f"a request must bear this service's token, but got {got}; send the header `Authorization: Bearer TOKEN`"
            )
        else:
            refused = None
        return refused or self._of_its_kind(method, headers)

    def _of_another_page(self, path: str, headers: Mapping[bytes, bytes]) -> Refusal | None:
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if _without_port(host) not in self._hosts:
            return Refusal(
                403,
                f"without a token this service must be called by this machine's own name, but got {host[:80]!r}; call it "
                "localhost or 127.0.0.1, or start it with a token",
            )
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        site = headers.get(b"sec-fetch-site", b"").decode("latin-1").lower()
        is_ours = origin in ("", f"http://{host}", f"https://{host}")
        if path.startswith(_API) and not (is_ours and site in ("", "none", "same-origin")):
            return Refusal(
                403,
                f"without a token a request must come from this service's own page, but got one from {(origin or site)[:80]!r}; "
                "use that page, or start the service with a token",
            )
        return None

    @staticmethod
    def _of_its_kind(method: str, headers: Mapping[bytes, bytes]) -> Refusal | None:
        """No form of another page can send JSON without asking first, and we allow no page that asks."""
        kind = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
        if method == "POST" and kind != "application/json":
            return Refusal(
                415, f"a request must be JSON, but got {kind[:80] or 'nothing'!r}; send `Content-Type: application/json`"
            )
        return None


def _without_port(host: str) -> str:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
    return f"[{name}]" if ":" in name else name
