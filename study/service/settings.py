"""What a service is started with, and which of it would be unsafe."""

import ipaddress
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

from study.errors import UserError
from study.remote.job_server import is_job_server

TOKEN_VARIABLE = "STUDY_TOKEN"
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8400
_MIN_TOKEN = 16
_MAKE_ONE = 'make one with: python -c "import secrets; print(secrets.token_urlsafe())"'


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceSettings:
    """Who may ask, for what, and how much.

    Attributes:
        home: of the studies.
        host, port: where it listens; of port 0 the system chooses one.
        token: that every request must bear; None on this machine alone.
        spaces: `module:function` of those that may be launched beside the built-in ones.
        address: of the Ray cluster that studies run on; None for this machine.
        reads_per_s, writes_per_s: that one token, or one client without one, may make.
        max_body_bytes: of a request.
        max_in_flight: requests that are worked on at once; those beyond are turned away.
        max_downloads: of models at once.
    """

    home: Path
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    token: str | None = field(default=None, repr=False)
    spaces: tuple[str, ...] = ()
    address: str | None = None
    reads_per_s: float = 500.0
    writes_per_s: float = 5.0
    max_body_bytes: int = 64 * 1024
    max_in_flight: int = 128
    max_downloads: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UserError(f"--port must be 0 to 65535, but got {self.port}; leave it out for {DEFAULT_PORT}")
        if is_job_server(self.address):
            raise UserError(
                f"a service starts drivers on its own machine, but --address is {self.address}; run it on a node of the cluster "
                "with --address auto"
            )
        if self.token is None and not is_loopback(self.host):
            raise UserError(
                f"a service that others can reach must have a token, but --host is {self.host} and there is none; set "
                f"{TOKEN_VARIABLE} or --token-file, or leave --host out ({_MAKE_ONE})"
            )


def read_token(file: Path | None) -> str | None:
    """The token: of a file, or else of `$STUDY_TOKEN`, which is taken out of the environment: trials must not see it.

    Raises:
        UserError: if the file cannot be read, or the token is one that can be guessed or is no text for a header.
    """
    found = os.environ.pop(TOKEN_VARIABLE, None)
    source = TOKEN_VARIABLE
    if file is not None:
        source = f"--token-file {file}"
        try:
            found = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"a token's file must be readable text, but {file} is not ({error}); mend it") from error
    if found is None:
        return None
    if len(found) < _MIN_TOKEN or not all("!" <= sign <= "~" for sign in found):
        raise UserError(
            f"a token must be {_MIN_TOKEN} or more letters, digits and signs, but that of {source} has {len(found)} characters"
            f"{'' if len(found) < _MIN_TOKEN else ', some of them others'}; {_MAKE_ONE}"
        )
    return found


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there; a name must mean nothing else."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)} if host else set()
    except (OSError, UnicodeError):  # a name that cannot be one, too
        return False
    return bool(found) and all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)
