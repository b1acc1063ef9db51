"""What a team has: a Ray cluster of several hosts with tokens, PostgreSQL, an MLflow server and S3; and somebody's laptop."""

import contextlib
import secrets
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from clusters import RAY, free_port
from hosts import Host, answers, hosts, wait_until
from mlflow_server import mlflow_server
from object_store import ObjectStore, object_store
from postgres import Postgres, postgres

WORKERS = ("worker1", "worker2")
SERVICES = ("database", "services")
QUICK_TO_NOTICE = {"RAY_health_check_timeout_ms": "2000", "RAY_health_check_period_ms": "1000"}
_OBJECT_STORE_BYTES = 80_000_000
STUDY = (sys.executable, "-m", "study.cli")


@dataclass
class Team:
    """All of it.

    Attributes:
        hosts: head, workers, database, services and laptop, by name.
        tracking_uri: of MLflow's server.
        jobs: address of the cluster's job server.
        address: of the cluster, for who is on one of its nodes.
    """

    hosts: dict[str, Host]
    database: Postgres
    store: ObjectStore
    tracking_uri: str
    jobs: str
    address: str

    @property
    def laptop(self) -> Host:
        return self.hosts["laptop"]

    @property
    def workers(self) -> list[Host]:
        return [self.hosts[name] for name in WORKERS]


@contextlib.contextmanager
def team() -> Iterator[Team]:
    """All of it, while the context is open.

    No worker reaches the database: it knows no password, and its packets get lost. The laptop has the cluster's token and
    MLflow's address, and no other secret.
    """
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(hosts("head", *WORKERS, *SERVICES, "laptop"))
        database = stack.enter_context(postgres(made["database"]))
        store = stack.enter_context(object_store(made["services"]))
        head = made["head"]
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        for name in WORKERS:
            made[name].environment |= token | store.environment
            made[name].forbid(made["database"])
        tracking = stack.enter_context(mlflow_server(made["services"], database, store))  # it takes a while, as Ray does
        settings = {"STUDY_STORAGE": f"s3://{store.bucket}/storage", "STUDY_RECORD": database.uri("optuna")}
        told = {"STUDY_TRACKING_URI": tracking.uri}
        head.environment |= token | store.environment | settings | told | QUICK_TO_NOTICE | {"PGPASSWORD": database.password}
        made["laptop"].environment |= token | told
        address, jobs = _start_ray(head, [made[name] for name in WORKERS])
        tracking.wait()
        wait_until(lambda: answers(jobs), "the job server")
        yield Team(made, database, store, tracking.uri, jobs, address)


def _start_ray(head: Host, workers: list[Host]) -> tuple[str, str]:
    """A head without CPUs for trials, and one CPU on each worker; returns the addresses of the cluster and its job server."""
    port, dashboard = free_port(), free_port()
    common = ["--disable-usage-stats", f"--object-store-memory={_OBJECT_STORE_BYTES}"]
    head.run(
        *RAY, "start", "--head", f"--node-ip-address={head.address}", f"--port={port}", "--num-cpus=0",
        "--include-dashboard=true", f"--dashboard-host={head.address}", f"--dashboard-port={dashboard}",
        f"--temp-dir={head.folder}/ray", *common, timeout=180,
    )  # fmt: skip
    address = f"{head.address}:{port}"

    def join(worker: Host) -> None:
        own = [f"--temp-dir={worker.folder}/ray"] if worker.is_real else []  # on one host there is one
        place = [f"--address={address}", f"--node-ip-address={worker.address}", "--num-cpus=1"]
        worker.run(*RAY, "start", *place, *own, *common, timeout=180)

    with ThreadPoolExecutor() as pool:
        list(pool.map(join, workers))
    return address, f"http://{head.address}:{dashboard}"
