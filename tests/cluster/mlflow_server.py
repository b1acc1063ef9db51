"""MLflow's server for a team: its database is PostgreSQL, its artifacts lie on S3, and who uses it sees neither."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from clusters import free_port
from hosts import Host, answers, wait_until
from object_store import ObjectStore
from postgres import Postgres


@dataclass
class MlflowServer:
    """A server that has been started; whether it answers yet, `wait` finds out."""

    uri: str
    process: subprocess.Popen

    def wait(self) -> None:
        wait_until(lambda: answers(f"{self.uri}/health"), "MLflow's server", process=self.process, timeout=240)


@contextlib.contextmanager
def mlflow_server(host: Host, database: Postgres, store: ObjectStore) -> Iterator[MlflowServer]:
    """A server on a host, while the context is open."""
    port = free_port()
    options = {
        "host": host.address, "port": port, "workers": 1, "backend-store-uri": database.uri("mlflow"),
        "artifacts-destination": f"s3://{store.bucket}/mlflow", "allowed-hosts": f"{host.address}:{port}",
    }  # fmt: skip
    host.environment |= store.environment | {"PGPASSWORD": database.password}
    words = [f"--{name}={value}" for name, value in options.items()]
    log = host.folder / "mlflow.log"
    process = host.start(sys.executable, "-m", "mlflow", "server", "--serve-artifacts", *words, log=log)
    try:
        yield MlflowServer(f"http://{host.address}:{port}", process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # it has children
        process.wait(30)
