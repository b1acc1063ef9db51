"""Serve: one process, one event loop, a few threads. It ends within seconds of being asked to."""

import errno
import os
import signal
import socket
import sys
from collections.abc import Callable

from study.errors import UserError
from study.service.settings import ServiceSettings

_GRACE_S = 3
_BACKLOG = 2048
_MAX_CONNECTIONS = 900
"""Below the 1024 files that a process may have open by default."""


def serve(settings: ServiceSettings, say: Callable[[str], None]) -> None:
    """Serve until a signal comes.

    Args:
        say: told the address, when requests are taken.

    Raises:
        UserError: if it cannot listen there.
    """
    listener = _listen(settings)
    import uvicorn

    from study.service.app import make_app

    config = uvicorn.Config(
        make_app(settings),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # who asks is who connects: a header that says otherwise is anybody's
        ws="none",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=_GRACE_S,
        limit_concurrency=_MAX_CONNECTIONS,
        backlog=_BACKLOG,
    )
    say(f"serving the studies of {settings.home} at {_address(settings, listener)}")
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, lambda *_: None)  # uvicorn raises what it was ended by once more, when all is done
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)  # a thread that still waits for MLflow holds nothing that anyone would miss


def _listen(settings: ServiceSettings) -> socket.socket:
    """Take the port.

    Raises:
        UserError: if that is not possible.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)
    except (OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            law = f"a port must be free, but {settings.port} of {settings.host} is taken"
            raise UserError(f"{law}; name another with --port, or 0 for any") from error
        raise UserError(
            f"a service must be able to listen at its address, but {settings.host}:{settings.port} is refused ({error}); name "
            "another with --host and --port"
        ) from error


def _address(settings: ServiceSettings, listener: socket.socket) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{listener.getsockname()[1]}"
