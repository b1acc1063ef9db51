"""How often one client may ask: token buckets, one a client, of those that asked last."""

import time
from collections import OrderedDict
from collections.abc import Callable

_MAX_CLIENTS = 4096


class Rate:
    """Requests that each client may make.

    Args:
        per_s: in the long run; as many may come at once, too.
        clock: in seconds.
    """

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._clock = per_s, clock
        self._room = max(1.0, per_s)
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> float:
        """Count a request; returns 0, or the seconds until the client may make it: then it does not count."""
        now = self._clock()
        left, last = self._left.get(client, (self._room, now))
        left = min(self._room, left + (now - last) * self._per_s)
        wait_s = 0.0 if left >= 1 else (1 - left) / self._per_s
        self._left[client] = (left if wait_s else left - 1, now)
        self._left.move_to_end(client)
        if len(self._left) > _MAX_CLIENTS:
            self._left.popitem(last=False)
        return wait_s
