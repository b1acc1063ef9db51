"""Whether all that a study needs is there and well: this machine, MLflow, the record, the storage, the cluster."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from study.errors import UserError
from study.examining.findings import BROKEN, Finding, Places
from study.home import Home
from study.settings import RECORD, STORAGE, TRACKING_URI, setting, without_secrets

_SECONDS = 15.0
_CLUSTER_SECONDS = 60.0  # to import Ray, join, and hear every node


@dataclass(frozen=True, slots=True)
class _Probe:
    what: str
    look: Callable[[Places], list[Finding]]
    seconds: float = _SECONDS


def examine(
    *,
    address: str | None = None,
    storage: str | None = None,
    tracking_uri: str | None = None,
    record: str | None = None,
    home: str | Path | None = None,
) -> list[Finding]:
    """Look at everything at once; whatever does not answer in time is broken. Nothing is left behind.

    Args:
        address: of a Ray cluster, `host:port` or `http://head:8265`; None for this machine.
        storage, tracking_uri, record: None for the settings of the environment, or the study home.
        home: None for `$STUDY_HOME`.

    Returns:
        findings in one order, whatever was quicker.
    """
    own = Home(home)
    places = Places(
        home=own,
        tracking_uri=tracking_uri or setting(TRACKING_URI) or own.tracking_uri,
        storage=storage or setting(STORAGE) or str(own.path / "storage"),
        record=record or setting(RECORD),
        address=address,
    )
    results: dict[str, list[Finding]] = {}
    threads = [(probe, threading.Thread(target=_look, args=(probe, places, results), daemon=True)) for probe in _probes()]
    for _, thread in threads:
        thread.start()
    for probe, thread in threads:
        thread.join(probe.seconds)
    return [finding for probe, _ in threads for finding in results.get(probe.what) or [_late(probe)]]


def _probes() -> list[_Probe]:
    from study.examining import cluster, machine, services

    return [
        _Probe("packages", machine.look_at_packages),
        _Probe("study home", machine.look_at_home),
        _Probe("Ray's temporary files", machine.look_at_temporary_files),
        _Probe("GPUs", machine.look_at_gpus, 2 * _SECONDS),
        _Probe("MLflow", services.look_at_mlflow),
        _Probe("record", services.look_at_record),
        _Probe("storage", services.look_at_storage),
        _Probe("token", cluster.look_at_token),
        _Probe("cluster", cluster.look_at_cluster, _CLUSTER_SECONDS),
    ]


def _look(probe: _Probe, places: Places, results: dict[str, list[Finding]]) -> None:
    """Run in a thread of its own: a service may hang, and no error of one probe is the end of the others."""
    try:
        results[probe.what] = probe.look(places)
    except UserError as error:
        law, _, remedy = str(error).rpartition("; ")
        results[probe.what] = [Finding(probe.what, BROKEN, law or remedy, remedy if law else "")]
    except Exception as error:
        reason = without_secrets((str(error).strip() or type(error).__name__).splitlines()[0])
        results[probe.what] = [Finding(probe.what, BROKEN, f"{type(error).__name__}: {reason}", "see that it can be reached")]


def _late(probe: _Probe) -> Finding:
    return Finding(probe.what, BROKEN, f"no answer in {probe.seconds:g} s", "see that it is up, and can be reached from here")
