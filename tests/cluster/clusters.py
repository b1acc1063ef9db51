"""Clusters of two raylets made by `ray start`, with token authentication, on this machine."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

RAY = [sys.executable, "-m", "ray.scripts.scripts"]


@dataclass
class Cluster:
    """Two nodes of one CPU each; the first is the head.

    Attributes:
        job_server: its dashboard's address; empty without one.
        folder: of what its nodes keep on this machine.
    """

    address: str
    raylets: list[psutil.Process]
    job_server: str = ""
    folder: Path = Path()

    def second_node(self) -> list[psutil.Process]:
        """The second raylet, then all that it started."""
        raylet = self.raylets[1]
        return [raylet, *raylet.children(recursive=True)]


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@contextmanager
def temporary_cluster():
    """A folder for all nodes of a cluster, and its token in this process's environment; ends every process of the folder."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # the paths of its sockets must be short
    os.environ.update(token)
    try:
        yield folder
    finally:
        for process in processes_of(folder):  # this cluster and no other: `ray stop` would take every Ray of the machine
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)
        for name in token:
            del os.environ[name]


@contextmanager
def two_nodes(*, dashboard=False, **environment):
    """A cluster whose token is in this process's environment.

    Args:
        dashboard: with one, which takes jobs.
        environment: of the head.
    """
    port, web_port = free_port(), free_port()
    with temporary_cluster() as folder:
        common = ["--num-cpus=1", "--disable-usage-stats"]
        web = f"--include-dashboard={str(dashboard).lower()}"
        head = ["start", "--head", f"--port={port}", web, f"--temp-dir={folder}", *common]
        worker = ["start", f"--address=127.0.0.1:{port}", *common]
        if dashboard:
            head += [f"--dashboard-port={web_port}", f"--dashboard-agent-listen-port={free_port()}"]
            # nothing shared but storage
            worker += [f"--temp-dir={folder}/second", f"--dashboard-agent-listen-port={free_port()}"]
        found = []
        for arguments, variables in ((head, environment), (worker, {})):
            subprocess.run(
                [*RAY, *arguments], env=os.environ | variables, check=True, capture_output=True, text=True, timeout=120
            )
            found += [process for process in processes_of(folder) if process.name() == "raylet" and process not in found]
        yield Cluster(f"127.0.0.1:{port}", found, f"http://127.0.0.1:{web_port}" if dashboard else "", Path(folder))


def processes_of(folder):
    return [p for p in psutil.process_iter(["cmdline"]) if any(folder in part for part in p.info["cmdline"] or [])]
