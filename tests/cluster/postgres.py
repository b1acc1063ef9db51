"""A PostgreSQL server of its own on a host: from Debian's packages, in a folder, with passwords."""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clusters import free_port
from hosts import Host, wait_until

DATABASES = ("mlflow", "optuna")


@dataclass
class Postgres:
    """A server; each of its databases belongs to a user of the same name.

    Attributes:
        password: of all users.
    """

    host: Host
    port: int
    password: str
    binaries: Path

    def uri(self, database: str) -> str:
        """Where a database is, without its password: that goes by PGPASSWORD."""
        return f"postgresql+psycopg://{database}@{self.host.address}:{self.port}/{database}"

    def ask(self, query: str, database: str = "postgres", user: str = "postgres") -> list[tuple[str, ...]]:
        """Rows of a query, as text."""
        words = [self.binaries / "psql", "-X", "-A", "-t", "-F", "\t", "-h", self.host.address, "-p", self.port]
        result = subprocess.run(
            [*map(str, words), "-U", user, "-d", database, "-v", "ON_ERROR_STOP=1", "-c", query],
            env=os.environ | {"PGPASSWORD": self.password}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        return [tuple(line.split("\t")) for line in result.stdout.splitlines()]


def find_binaries() -> Path:
    """Where the newest server's programs are: Debian keeps them out of the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    program = found[-1] if found else shutil.which("postgres")
    assert program, "this test needs PostgreSQL's server: apt-get install postgresql"
    return Path(program).resolve().parent


@contextlib.contextmanager
def postgres(host: Host) -> Iterator[Postgres]:
    """A server on a host, while the context is open; it takes connections from everywhere, with a password."""
    binaries, user = find_binaries(), None
    folder = host.folder / "postgres"
    folder.mkdir()
    if os.geteuid() == 0:  # whom PostgreSQL refuses
        user = "postgres"
        shutil.chown(folder, pwd.getpwnam(user).pw_uid)
    server = Postgres(host, free_port(), secrets.token_hex(16), binaries)
    secret = folder / "password"
    secret.write_text(server.password)
    secret.chmod(0o644)
    host.run(
        binaries / "initdb", "-D", folder / "data", "-U", "postgres", f"--pwfile={secret}", "--auth=scram-sha-256", "--no-sync",
        "--encoding=UTF8", user=user, cwd="/",
    )  # fmt: skip
    secret.unlink()
    with (folder / "data" / "pg_hba.conf").open("a") as rules:
        rules.write("host all all 0.0.0.0/0 scram-sha-256\n")
    settings = {"listen_addresses": host.address, "port": server.port, "unix_socket_directories": folder, "fsync": "off"}
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    log = host.folder / "postgres.log"
    process = host.start(binaries / "postgres", "-D", folder / "data", *options, user=user, log=log, cwd="/")
    try:
        ready = [str(binaries / "pg_isready"), "-q", "-h", host.address, "-p", str(server.port)]
        wait_until(lambda: subprocess.run(ready).returncode == 0, "PostgreSQL", process=process)
        for name in DATABASES:
            server.ask(f"CREATE ROLE {name} LOGIN PASSWORD '{server.password}'")
            server.ask(f"CREATE DATABASE {name} OWNER {name}")
        yield server
    finally:
        process.send_signal(signal.SIGQUIT)  # at once, whoever is connected
        process.wait(30)
