"""A service under load while a study runs on the same machine: how quickly it answers, what it turns away, what the study loses.

    python tests/benchmarks/service_load.py [--seconds 30] [--rate 200] [--trials 60]

Launches a study through the service, asks for its status and its front by turns at a fixed rate, counts a late request from when
it was due, then asks as fast as 32 clients can, and waits for the study. Exit status 1 if a request within the limits was not
answered, a request beyond them got anything but an answer or 429, or the study lost something.
"""

import argparse
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import optuna

from study.asking.query import open_study
from study.home import Home

NAME = "loaded"
_CLIENTS, _FLOOD_CLIENTS = 16, 32
_WAIT_S = 600.0


@dataclass
class Tally:
    """What became of some requests: statuses of HTTP or names of errors, and latencies in seconds of those answered."""

    outcomes: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)

    def share(self, quantile: float) -> float:
        """A quantile of the latencies, in ms."""
        ordered = sorted(self.latencies_s) or [float("nan")]
        return 1000 * ordered[min(len(ordered) - 1, int(quantile * len(ordered)))]

    def to_json(self):
        return {
            "outcomes": dict(self.outcomes), "median_ms": round(self.share(0.5), 2), "p99_ms": round(self.share(0.99), 2),
            "longest_ms": round(self.share(1.0), 2),
        }  # fmt: skip


class Client:
    """One connection that is kept, and opened again when it breaks."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def get(self, path: str) -> tuple[int, bytes]:
        self.connection.request("GET", path)
        response = self.connection.getresponse()
        return response.status, response.read()

    def post(self, path: str, body) -> tuple[int, bytes]:
        self.connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = self.connection.getresponse()
        return response.status, response.read()


def ask(port: int, paths: list[str], *, seconds: float, rate: float | None, clients: int) -> Tally:
    """Ask by turns from several threads.

    Args:
        rate: requests a second of all together; None for as many as they can.
    """
    tally, lock, begun = Tally(), threading.Lock(), time.perf_counter() + 0.2
    threads = [
        threading.Thread(target=_ask, args=(port, paths, place, clients, begun, seconds, rate, tally, lock))
        for place in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally


def _ask(port, paths, place, clients, begun, seconds, rate, tally, lock) -> None:
    client, number = Client(port), 0
    outcomes, latencies = Counter(), []
    while True:
        due = begun + (number * clients + place) / rate if rate else max(begun, time.perf_counter())
        if due >= begun + seconds:
            break
        time.sleep(max(0.0, due - time.perf_counter()))
        try:
            status, _ = client.get(paths[(number * clients + place) % len(paths)])
            outcomes[str(status)] += 1
            latencies.append(time.perf_counter() - due)
        except (OSError, http.client.HTTPException) as error:
            outcomes[type(error).__name__] += 1
            client.connection.close()
        number += 1
    client.connection.close()
    with lock:
        tally.outcomes += outcomes
        tally.latencies_s += latencies


def wait_for(condition, what: str, timeout_s: float = _WAIT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {timeout_s:g} s for {what}")
        time.sleep(0.5)


def losses(home: Path, trials: int) -> list[str]:
    """What a study that has ended lacks, or has twice."""
    study = open_study(NAME, home=home)
    rows = list(study.trials())
    record = optuna.load_study(study_name=None, storage=f"sqlite:///{Home(home).study(NAME).optuna_file}")
    told = []
    if sorted(row.number for row in rows) != list(range(trials)):
        told.append(f"runs of trials {sorted(row.number for row in rows)}")
    told += [f"trial {row.number} is {row.state}" for row in rows if row.state != "finished"]
    told += [f"trial {row.number} had {row.attempts} attempts" for row in rows if row.attempts != 1]
    states = Counter(trial.state.name for trial in record.trials)
    if states != {"COMPLETE": trials}:
        told.append(f"the record has {dict(states)}")
    return told


def measure(folder: Path, *, seconds: float, rate: float, trials: int):
    """One service, one study, two loads."""
    home = folder / "home"
    environment = os.environ | {"STUDY_HOME": str(home)}
    command = [sys.executable, "-m", "study.cli", "serve", "--port", "0"]
    service = subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.PIPE, text=True)
    try:
        port = int(service.stdout.readline().rsplit(":", 1)[1])
        client = Client(port)
        asked = {"name": NAME, "space": "cmsp_curriculum:tiny", "trials": trials}
        status, told = client.post("/api/v1/studies", asked)
        assert status == 202, told

        def study():
            client.connection.close()  # the service ends one that was idle for long
            return json.loads(client.get(f"/api/v1/studies/{NAME}")[1])

        wait_for(lambda: (study()["counts"] or {}).get("finished"), "a first finished trial")
        paths = [f"/api/v1/studies/{NAME}", f"/api/v1/studies/{NAME}/front"]
        before = study()["counts"]
        steady = ask(port, paths, seconds=seconds, rate=rate, clients=_CLIENTS)
        after, was_running = study()["counts"], study()["state"] == "running"
        flood = ask(port, paths, seconds=min(seconds, 10.0), rate=None, clients=_FLOOD_CLIENTS)
        time.sleep(1.1)
        client.connection.close()
        is_up = client.get("/healthz")[0] == 200
        wait_for(lambda: study()["state"] == "idle", "the study's end")
        with closing(client.connection):
            return {
                "steady": steady.to_json(), "flood": flood.to_json(), "is_up": is_up and service.poll() is None,
                "study_ran_through": was_running, "counts": [before, after], "lost": losses(home, trials),
                "load_average": [round(value, 1) for value in os.getloadavg()],
            }  # fmt: skip
    finally:
        service.terminate()
        service.wait(timeout=10)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        found = measure(Path(folder), seconds=options.seconds, rate=options.rate, trials=options.trials)
    if options.json:
        print(json.dumps(found))
    else:
        for name in ("steady", "flood"):
            told = found[name]
            times = ", ".join(f"{key} {told[f'{key}_ms']} ms" for key in ("median", "p99", "longest"))
            print(f"{name}: {told['outcomes']}, {times}")
        print(f"up afterwards: {found['is_up']}; the study ran through: {found['study_ran_through']}, {found['counts']}")
        print(f"lost: {found['lost'] or 'nothing'}; load average {found['load_average']}")
    is_well = set(found["steady"]["outcomes"]) == {"200"} and set(found["flood"]["outcomes"]) <= {"200", "429"}
    return 0 if is_well and found["is_up"] and not found["lost"] else 1


if __name__ == "__main__":
    sys.exit(main())
