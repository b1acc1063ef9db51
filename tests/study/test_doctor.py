"""`study doctor`: what it finds well, what it finds broken, and that nothing that hangs or fails is its own end."""

import email.utils
import importlib.metadata
import json
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from study import doctor
from study.cli import app
from study.doctor import examine
from study.examining import services
from study.examining.findings import BROKEN, OK, WARNING


@pytest.fixture(autouse=True)
def nobodys(monkeypatch, tmp_path, home):
    """A user without settings, tokens and services."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("STUDY_TRACKING_URI", "STUDY_STORAGE", "STUDY_RECORD", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    home.mkdir()


def found(**places):
    return {finding.what: finding for finding in examine(**places)}


@contextmanager
def mlflow_answering(*, status=200, ahead_s=0.0, told=None):
    """The address of a server that answers as MLflow does, by a clock of its own; it notes the credentials that it is told."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if told is not None:
                told.append(self.headers["Authorization"])
            body = b"3.17.2" if self.path == "/version" else b"{}"
            self.send_response_only(200 if self.path == "/version" else status)
            self.send_header("Date", email.utils.formatdate(time.time() + ahead_s, usegmt=True))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def nowhere():
    """A port of this machine that is taken, where nobody answers."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_a_machine_alone_is_well_and_nothing_is_left_on_it(home, tmp_path):
    (tmp_path / "store").mkdir()
    findings = found(storage=str(tmp_path / "store"))
    assert {finding.state for finding in findings.values()} <= {OK, WARNING}, findings
    assert {"python", "packages", "study home", "GPUs", "MLflow", "record", "storage", "token", "cluster"} <= findings.keys()
    assert list(home.iterdir()) == list((tmp_path / "store").iterdir()) == []


def test_all_that_is_broken_is_told_at_once_with_remedies_and_exit_status_1(nowhere, tmp_path):
    (tmp_path / "store").touch()
    options = ("--tracking-uri", f"http://127.0.0.1:{nowhere}", "--address", f"127.0.0.1:{nowhere}")
    options += ("--record", f"postgresql://o@127.0.0.1:{nowhere}/o", "--storage", str(tmp_path / "store"))
    result = CliRunner().invoke(app, ["doctor", "--json", *options])
    assert result.exit_code == 1
    broken = {finding["what"]: finding for finding in json.loads(result.stdout) if finding["state"] == BROKEN}
    assert broken.keys() == {"MLflow", "record", "storage", "cluster"}
    assert all(finding["remedy"] for finding in broken.values())
    assert "refused" in broken["record"]["found"]
    assert "ray start --head" in broken["cluster"]["remedy"]


def test_a_service_that_hangs_is_broken_and_holds_nothing_up(monkeypatch):
    monkeypatch.setattr(doctor, "_probes", lambda: [doctor._Probe("slow", lambda places: time.sleep(9), 0.2)])
    start = time.monotonic()
    (finding,) = examine()
    assert time.monotonic() - start < 5
    assert (finding.what, finding.state, finding.found) == ("slow", BROKEN, "no answer in 0.2 s")


def test_a_line_each_for_people():
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0
    assert "ok      cluster: none is named: trials run on this machine\n" in result.stdout


@pytest.mark.parametrize(("ahead_s", "state"), [(0, OK), (60, WARNING), (-4000, BROKEN)])
def test_a_clock_that_goes_otherwise_is_told(ahead_s, state):
    with mlflow_answering(ahead_s=ahead_s) as uri:
        mlflow, clock = services.look_at_mlflow(places(tracking_uri=uri))
    assert (mlflow.state, mlflow.found) == (OK, f"{uri} answers, 3.17.2")
    assert clock.state == state
    assert ("ahead" in clock.found, "behind" in clock.found) == (ahead_s > 0, ahead_s < 0)


def places(**given):
    here = doctor.Home()
    return doctor.Places(
        **{"home": here, "tracking_uri": here.tracking_uri, "storage": "/s", "record": None, "address": None} | given
    )


def test_the_password_for_mlflow_is_shown_to_mlflow_alone(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hidden")
    told = []
    with mlflow_answering(told=told) as uri:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", uri)
        assert services._clock_of_s3("s3://bucket/prefix")
        services.look_at_mlflow(places(tracking_uri=uri))
    assert [word is None for word in told] == [True, False, False]


def test_a_storage_whose_endpoint_does_not_tell_the_time_is_not_broken_for_it(monkeypatch, nowhere):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{nowhere}")
    assert services._clock_of_s3("s3://bucket/prefix") == []


@pytest.mark.parametrize(("status", "reason"), [(403, "does not let us in"), (500, "answers with status 500")])
def test_an_mlflow_that_refuses_us_is_broken(status, reason):
    with mlflow_answering(status=status) as uri:
        (finding,) = services.look_at_mlflow(places(tracking_uri=uri))
    assert finding.state == BROKEN
    assert reason in finding.found


def test_secrets_in_addresses_are_refused_and_not_shown():
    findings = found(tracking_uri="http://me:hidden@127.0.0.1:9", record="postgresql://me:hidden@127.0.0.1:9/o")
    assert findings["MLflow"].state == findings["record"].state == BROKEN
    assert "hidden" not in str(findings)


def test_a_package_outside_its_range_is_named_with_the_command_that_mends_it(monkeypatch):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "4.0.0" if name == "optuna" else real(name))
    findings = found()
    assert (findings["optuna"].state, findings["optuna"].found.split(",")[0]) == (WARNING, "4.0.0")
    assert findings["optuna"].remedy.startswith("pip install 'optuna")


def test_a_token_must_be_set_used_and_its_owners_alone(monkeypatch, tmp_path):
    from study.examining.cluster import look_at_token

    there = places(address="h:6379")
    assert look_at_token(there)[0].state == WARNING
    file = tmp_path / "token"
    file.write_text("t")
    file.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    assert look_at_token(there)[0].remedy == "export RAY_AUTH_MODE=token"
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert look_at_token(there)[0].remedy == f"chmod 600 {file}"
    file.chmod(0o600)
    assert look_at_token(there)[0].state == OK
