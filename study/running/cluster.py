"""Raise Ray, or join a cluster, without a word on the user's terminal. Imports Ray only when called."""

import importlib
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from study.errors import UserError

_CONNECT_SECONDS = 5.0

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no telemetry unless asked for
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_timeout_ms_task_wait_for_death_info": "5000",  # before it says why a worker is gone: else a busy node seems lost
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours stops gracefully
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # Tune's snapshots hold no truth of ours
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "1000000",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "60",
}


def check_address(address: str) -> None:
    """Find out quickly whether there is anything to connect to.

    Raises:
        UserError: if the address has another form, or nothing answers there.
    """
    if address == "auto":
        return
    if address.startswith("ray://"):
        raise UserError(
            f"a cluster's address must be host:port or auto: Ray Client is not made for Ray Tune, but got {address!r}; "
            "use http://head:8265 to run the study as a job there, or host:6379 on a node of the cluster"
        )
    if address.startswith(("http://", "https://")):
        raise UserError(
            f"a driver joins its cluster as a node does, by auto or host:6379, but got {address!r}; for a job on the cluster use "
            f"the command: study launch ... --address {address}"
        )
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise UserError(
            f"a cluster's address must be host:port of its head, auto, or http://head:8265 from outside, but got {address!r}; "
            "run `study launch` on a node of the cluster with --address auto"
        )
    reason = None
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        reason = str(error)
    if reason or not _speaks_grpc(address):
        raise UserError(
            f"a Ray cluster must answer at --address, but {address} does not ({reason or 'something else is there'}); start one "
            "with `ray start --head`, or leave --address out to run on this machine"
        )


def _speaks_grpc(address: str) -> bool:
    """Whether a Ray head may be there; joining what is none would take Ray minutes to give up."""
    if os.environ.get("RAY_USE_TLS", "0") not in ("0", ""):
        return True
    import grpc

    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_CONNECT_SECONDS)
        except grpc.FutureTimeoutError:
            return False
    return True


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Hold a connection to a cluster, or raise an embedded one on this machine unless Ray is up in this process already.

    Raises:
        UserError: if the cluster does not take us.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    ray = importlib.import_module("ray")
    if ray.is_initialized() and address is None:  # in a notebook, say: the caller's Ray is the caller's to end
        yield
        return
    # "local", since without an address Ray would join whatever cluster runs on this machine
    embedded = {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    options: dict[str, Any] = embedded if address is None else {"address": address}
    try:
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if address is None:
            raise UserError(
                f"Ray must start on this machine, but does not ({reason}); see the newest logs in /tmp/ray"
            ) from error
        if isinstance(error, ConnectionError) and address == "auto":
            raise UserError(
                f"--address auto needs a Ray node on this machine, but there is none ({reason}); run it on a node of the "
                "cluster, or leave --address out"
            ) from error
        if "ersion mismatch" in str(error):
            raise UserError(
                f"a driver must have its cluster's Ray and Python, but {address} has others ({' '.join(str(error).split())}); "
                "install those, or use --address http://head:8265, so that the driver runs there"
            ) from error
        raise UserError(
            f"a Ray cluster must let us in, but {address} does not ({reason}); if it uses tokens, set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN as its nodes have them"
        ) from error
    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    ray._private.worker._worker_logs_enabled = False  # else a lost worker, which we report, is reported twice
    try:
        yield
    finally:
        ray.shutdown()
