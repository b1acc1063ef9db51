"""Notices when the Ray that a session works with is gone, and ends the session with one sentence.

Ray itself does not: without the raylet of its node Tune turns for ever and starts nothing; without the head's control store
(GCS) the next call that asks it blocks for a minute, then Ray ends this process in its own way.
"""

import importlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import Console

from study.errors import UserError

_LOOK_SECONDS = 1.0
_CONNECT_SECONDS = 5.0
_PATIENCE_SECONDS = 3.0
_HEAD_PATIENCE_SECONDS = 45.0
"""The head of a cluster may come back, within the minute that Ray gives it."""
_GRACE_SECONDS = 20.0


class Session(Protocol):
    """What runs trials: a `study.running.searcher.StudySearcher`."""

    interrupted: bool
    error: Exception | None


@dataclass
class Post:
    """A server that must answer.

    Attributes:
        what: its name, for people.
        place: host and port.
        patience_s: how long it may be silent.
    """

    what: str
    place: tuple[str, int]
    patience_s: float
    silent_since: float | None = None

    def is_gone(self) -> bool:
        """Knock; return whether it has been silent for too long."""
        try:
            socket.create_connection(self.place, timeout=_CONNECT_SECONDS).close()
        except OSError:
            self.silent_since = self.silent_since or time.monotonic()
            return time.monotonic() - self.silent_since >= self.patience_s
        self.silent_since = None
        return False


@contextmanager
def ray_watch(session: Session, name: str, console: Console, *, is_embedded: bool) -> Iterator[None]:
    """Inside, end the session when Ray is gone: as it ends when interrupted, or at once where Ray no longer lets it.

    Args:
        name: of the study.
        is_embedded: whether Ray is this process's own, which nobody brings back.
    """
    over, gone = threading.Event(), threading.Event()
    posts = _posts(_PATIENCE_SECONDS if is_embedded else _HEAD_PATIENCE_SECONDS)
    watch = threading.Thread(target=_watch, args=(posts, session, name, console, over, gone), name="Ray watch", daemon=True)
    watch.start()
    try:
        yield
    finally:
        if gone.is_set():
            importlib.import_module("ray").shutdown()  # here, where it is watched: it may never return
        over.set()


class RayGoneError(UserError):
    """Ray died under a study: nothing of the study is lost."""


def _posts(head_patience_s: float) -> list[Post]:
    ray: Any = importlib.import_module("ray")
    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    mine = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    return [
        Post("raylet on this machine", (mine["NodeManagerAddress"], mine["NodeManagerPort"]), _PATIENCE_SECONDS),
        Post("head (gcs_server)", (host.strip("[]"), int(port)), head_patience_s),
    ]


def _watch(
    posts: list[Post], session: Session, name: str, console: Console, over: threading.Event, gone: threading.Event
) -> None:
    while not over.wait(_LOOK_SECONDS):
        silent = [post.what for post in posts if post.is_gone()]
        if silent and not over.is_set():
            gone.set()
            error = RayGoneError(
                f"Ray must live as long as it runs a study, but its {silent[0]} is gone; go on with: study resume {name}"
            )
            session.error, session.interrupted = session.error or error, True
            if not over.wait(_GRACE_SECONDS):
                _leave(error, console)
            return


def _leave(error: RayGoneError, console: Console) -> None:
    """End this process, whose main thread waits inside Ray and hears no signal; the writer does the rest, as after a kill."""
    console.show_cursor()
    print(f"study: {error}", file=sys.stderr, flush=True)
    os._exit(2)
