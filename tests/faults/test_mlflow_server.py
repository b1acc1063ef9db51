"""MLflow fails in every way that a server and a disk can, while a study goes on: afterwards each thing is there once.

bash tests/run.sh -m faults tests/faults/test_mlflow_server.py
"""

import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import commands
import psutil
import pytest

pytestmark = pytest.mark.faults

USER_SPACE = Path(__file__).parent.parent / "study" / "user_space.py.txt"
OFFERING = '''

from trainables.experiment import Candidate


class Offering(Count):
    """Offers a candidate at every tenth step."""

    def candidates(self):
        if self.count % 10:
            return []
        x = self.count / 100
        metrics = {"above": x, "below": 1 - x, "count": self.count}
        return [Candidate(number=self.count // 10 - 1, metrics=metrics, tensors={"x": torch.tensor([x])})]


def offering() -> StudySpace:
    def suggest(trial):
        return {"x": trial.suggest_float("x", 0, 1), "num_steps": 20, "seconds_per_step": 0.25}

    return StudySpace(experiment="user_space:Offering", suggest=suggest, objectives=("above", "below"), num_trials=9)
'''
OUTAGE_SECONDS = 20


@pytest.fixture
def desk(tmp_path):
    """The folder in which a user works, with a module of the user's own."""
    (tmp_path / "user_space.py").write_text(USER_SPACE.read_text() + OFFERING)
    return tmp_path


@pytest.fixture
def start():
    """As `commands.start`; what runs still when the test is over is killed."""
    processes = []

    def start(*arguments, **options):
        processes.append(commands.start(*arguments, **options))
        return processes[-1]

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


class Server:
    """`mlflow server` with a database and artifacts of its own; it may be killed and come back at its port."""

    def __init__(self, folder):
        folder.mkdir()
        self.database, self.artifacts = folder / "server.db", folder / "artifacts"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._log = folder / "server.log"

    def start(self):
        options = {
            "host": "127.0.0.1", "port": self.port, "workers": 1, "backend-store-uri": f"sqlite:///{self.database}",
            "artifacts-destination": self.artifacts,
        }  # fmt: skip
        arguments = [f"--{name}={value}" for name, value in options.items()]
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *arguments], stdout=log, stderr=log, start_new_session=True
            )
        commands.wait_until(self._answers, "the server", timeout=180)

    def _answers(self):
        assert self._process.poll() is None, self._log.read_text()
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2).status == 200
        return False

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def rows(self, query):
        with contextlib.closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=30)) as connection:
            return connection.execute(query).fetchall()


class Proxy:
    """Stands before a server and breaks requests: before they reach it, after it has done them, or by being late.

    Attributes:
        is_lossy: whether it does so by chance; the first answers to what makes something are lost in any case.
        lost: answers that the client did not get, by path.
    """

    MAKING = ("/api/2.0/mlflow/experiments/create", "/api/2.0/mlflow/runs/create", "/api/2.0/mlflow/logged-models")

    def __init__(self, port, seed=0):
        self.port, self.is_lossy, self.lost, self.num_requests = port, True, [], 0
        self._random, self._lock, self._must_lose = random.Random(seed), threading.Lock(), set(self.MAKING)
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.uri = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self):
        self._http.shutdown()
        self._http.server_close()

    def fate(self, method, path):
        with self._lock:
            self.num_requests += 1
            if method == "POST" and path in self._must_lose:
                self._must_lose.remove(path)
                return "lost"
            draw = self._random.random()
        if not self.is_lossy or draw >= 0.2:
            return "well"
        return "refused" if draw < 0.09 else "lost" if draw < 0.18 else "late"

    def _handler(proxy):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do(self):
                path = self.path.partition("?")[0]
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fate = proxy.fate(self.command, path)
                if fate == "late":  # the client has given up when the server hears of it
                    time.sleep(3)
                status, headers, answer = (500, [], b"") if fate == "refused" else proxy.forward(self, body)
                if fate in ("lost", "late"):
                    proxy.lost.append((self.command, path))
                    status, headers, answer = 500, [], b""
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    for name, value in headers:
                        if name.lower() in ("content-type", "location"):
                            self.send_header(name, value)
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do

            def log_message(self, *_):
                pass

        return Handler

    def forward(self, request, body):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in ("host", "connection")}
        try:
            connection.request(request.command, request.path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        except (OSError, http.client.HTTPException):
            return 502, [], b""
        finally:
            connection.close()


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    server = Server(tmp_path / "server")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def proxy(server):
    proxy = Proxy(server.port)
    yield proxy
    proxy.close()


def events(home, name):
    """All that a study has told, in order: (kind, trial, milliseconds, data)."""
    file = home / "studies" / name / "outbox.db"
    if not file.exists():
        return []
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=30)) as connection:
        try:
            rows = [json.loads(payload) for (payload,) in connection.execute("SELECT payload FROM event ORDER BY seq")]
        except sqlite3.OperationalError:  # it has no tables yet
            return []
    return [(row["kind"], row["trial"], row["time_ms"], row["data"]) for row in rows]


def count(home, name, kind):
    return sum(event[0] == kind for event in events(home, name))


def reported(home, name):
    """(trial, step, metric) -> value of every report."""
    return {
        (trial, data["step"], metric): value
        for kind, trial, _, data in events(home, name)
        if kind == "measurement"
        for metric, value in [*data["metrics"].items(), ("progress", data["progress"])]
    }


def pending(home, name):
    with contextlib.closing(sqlite3.connect(home / "studies" / name / "outbox.db", timeout=30)) as connection:
        return connection.execute("SELECT count(*) FROM event WHERE seq > (SELECT seq FROM delivered)").fetchone()[0]


def assert_each_thing_is_there_once(server, home, name, num_trials, num_candidates):
    runs = server.rows("""
        SELECT CAST(t.value AS INTEGER), r.run_uuid, r.status FROM runs r JOIN tags t ON t.run_uuid = r.run_uuid
        WHERE t.key = 'narrow_study.trial' AND r.lifecycle_stage = 'active'
    """)
    assert sorted(trial for trial, _, _ in runs) == list(range(-1, num_trials)), "one run a trial, and the parent"
    assert {status for _, _, status in runs} == {"FINISHED"}
    assert server.rows("SELECT count(*) FROM runs WHERE status = 'RUNNING'") == [(0,)]
    trial_of = {run: trial for trial, run, _ in runs}
    rows = server.rows("SELECT run_uuid, step, key, value FROM metrics WHERE key NOT LIKE 'candidate/%'")
    assert len(rows) == len({row[:3] for row in rows}), "a row twice"
    assert {(trial_of[run], step, key): value for run, step, key, value in rows} == reported(home, name)
    models = server.rows("""
        SELECT trial.tag_value, number.tag_value, m.status, m.model_id FROM logged_models m
        JOIN logged_model_tags trial ON trial.model_id = m.model_id AND trial.tag_key = 'narrow_study.trial'
        JOIN logged_model_tags number ON number.model_id = m.model_id AND number.tag_key = 'narrow_study.candidate'
        WHERE m.lifecycle_stage = 'active'
    """)
    assert len(models) == len({model[:2] for model in models}) == num_trials * num_candidates
    assert {status for _, _, status, _ in models} == ({2} if models else set()), "READY"
    per_model = server.rows("SELECT count(*) FROM logged_model_metrics GROUP BY model_id, metric_name")
    assert per_model == [(1,)] * num_trials * num_candidates * 3


def test_an_outage_and_lost_answers_delay_nothing_and_leave_each_thing_once(start, server, proxy, home, desk):
    process = start(
        "launch", "user_space:offering", "--name", "o1", "--max-concurrent", "2", "--tracking-uri", proxy.uri, home=home, cwd=desk
    )
    commands.wait_until(lambda: count(home, "o1", "trial_end") >= 2, "some trials", timeout=240)
    down_ms = time.time() * 1000
    server.kill()
    time.sleep(OUTAGE_SECONDS)
    up_ms = time.time() * 1000
    server.start()
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert err == ""
    assert "; the study goes on, " in out

    times = [time_ms for kind, _, time_ms, _ in events(home, "o1") if kind == "measurement" and down_ms <= time_ms <= up_ms]
    gaps = [after - before for before, after in zip([down_ms, *times], [*times, up_ms], strict=True)]
    ended = sum(kind == "trial_end" and down_ms <= time_ms <= up_ms for kind, _, time_ms, _ in events(home, "o1"))
    print(f"in {OUTAGE_SECONDS} s without MLflow: {len(times)} reports, {ended} trials, longest gap {max(gaps):.0f} ms")
    assert max(gaps) < 1000 * OUTAGE_SECONDS / 3
    assert ended >= 2

    if pending(home, "o1"):  # on a slow machine
        assert "the next resume delivers" in out
        assert commands.run("resume", "o1", home=home, cwd=desk).returncode == 0
        commands.wait_until(lambda: pending(home, "o1") == 0, "the writer, which goes on by itself", timeout=240)
    for path in proxy.MAKING:
        assert ("POST", path) in proxy.lost, "or nothing was tried"
    print(f"{len(proxy.lost)} of {proxy.num_requests} requests done, but not answered")
    assert_each_thing_is_there_once(server, home, "o1", num_trials=9, num_candidates=2)


def test_a_study_that_mlflow_knows_resumes_without_it_and_is_delivered_by_the_next_session(start, server, home, desk):
    uri = f"http://127.0.0.1:{server.port}"
    options = ("--max-concurrent", "2")
    first = commands.run("launch", "user_space:fine", "--name", "k1", "--tracking-uri", uri, *options, home=home, cwd=desk)
    assert first.returncode == 0, first.stderr
    assert "MLflow takes" not in first.stdout
    server.kill()
    process = start("resume", "k1", "--trials", "8", *options, home=home, cwd=desk)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Ctrl-C is safe" in line:
            break
    assert count(home, "k1", "trial_end") == 8
    commands.press_ctrl_c(process)
    ctrl_c = time.monotonic()
    out, err = process.communicate(timeout=60)
    out = "".join(lines) + out
    assert time.monotonic() - ctrl_c < 10
    assert process.returncode == 0, "the study is done"
    assert "Connection refused); the study goes on" in out
    assert "the next resume delivers" in out
    assert err == ""
    assert pending(home, "k1") > 0
    server.start()
    last = commands.run("resume", "k1", home=home, cwd=desk)
    assert last.returncode == 0, last.stderr
    assert pending(home, "k1") == 0
    assert_each_thing_is_there_once(server, home, "k1", num_trials=8, num_candidates=0)


def test_runs_that_a_dead_driver_and_a_dead_writer_left_running_are_taken_over_or_closed(start, server, home, desk):
    uri = f"http://127.0.0.1:{server.port}"
    process = start(
        "launch", "user_space:slow", "--name", "d1", "--trials", "4", "--max-concurrent", "2", "--tracking-uri", uri,
        home=home, cwd=desk,
    )  # fmt: skip
    running = "SELECT count(*) FROM runs WHERE status = 'RUNNING'"
    commands.wait_until(
        lambda: count(home, "d1", "measurement") >= 4 and server.rows(running)[0][0] >= 3, "trials under way", timeout=240
    )
    family = psutil.Process(process.pid).children(recursive=True)
    assert any("study.recording.writer" in " ".join(member.cmdline()) for member in family)
    for member in [psutil.Process(process.pid), *family]:  # as a power cut does
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.communicate(timeout=30)
    assert server.rows(running)[0][0] >= 3

    stopped = commands.run("resume", "d1", "--time-budget", "0.5", home=home, cwd=desk)
    assert "go on with: study resume d1" in stopped.stdout, stopped.stderr
    assert server.rows(running) == [(0,)]
    assert commands.run("resume", "d1", home=home, cwd=desk).returncode == 0
    assert_each_thing_is_there_once(server, home, "d1", num_trials=4, num_candidates=0)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB that is full while it holds `ballast`."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk):
    """Write until nothing more goes in."""
    with contextlib.suppress(OSError), (disk / "ballast").open("ab", buffering=0) as ballast:
        while True:
            ballast.write(bytes(512))


@pytest.mark.parametrize("what", ["database", "artifacts"])
def test_a_full_disk_of_mlflow_is_named_and_the_next_resume_delivers(start, small_disk, home, desk, what):
    options = ("--name", "f1", "--trials", "3", "--max-concurrent", "1")
    database = small_disk / "mlflow.db" if what == "database" else desk / "elsewhere.db"
    if what == "artifacts":
        home.mkdir()
        (home / "mlartifacts").symlink_to(small_disk)
    process = start("launch", "user_space:slow", *options, "--tracking-uri", f"sqlite:///{database}", home=home, cwd=desk)
    commands.wait_until(lambda: count(home, "f1", "measurement") >= 1 and pending(home, "f1") <= 1, "MLflow at work", timeout=240)
    fill(small_disk)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert count(home, "f1", "trial_end") == 3
    full = "database or disk is full" if what == "database" else "No space left on device"
    end = out[out.index("MLflow takes nothing") :]
    assert full in end
    assert "the next resume delivers" in end
    assert pending(home, "f1") > 0
    shutil.copy(home / "studies" / "f1" / "writer.log", desk / "first.log")

    (small_disk / "ballast").unlink()
    assert commands.run("resume", "f1", home=home, cwd=desk).returncode == 0
    assert pending(home, "f1") == 0
    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT run_uuid, step, key, value FROM metrics").fetchall()
        assert len(rows) == len({row[:3] for row in rows}) == len(reported(home, "f1"))
        assert set(connection.execute("SELECT status FROM runs")) == {("FINISHED",)}
    assert len(list((home / "mlartifacts").glob("f1/*/artifacts/model/*.safetensors"))) == 3
