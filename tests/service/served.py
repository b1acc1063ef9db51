"""A service in a thread of the tests' own process, asked over a real connection."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn

from study.service.app import make_app
from study.service.settings import ServiceSettings

ODD = "<img src=x onerror=document.title='taken'>&amp;\"'"


@contextmanager
def serving(settings: ServiceSettings) -> Iterator[httpx.Client]:
    """A service in a thread of this process, and a client of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            make_app(settings), log_level="error", proxy_headers=False, ws="none", timeout_graceful_shutdown=2
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=60) as client:
            yield client
        server.should_exit = True
        thread.join(timeout=10)
