"""A cluster's job server that does not do as it is asked: each way in one sentence, with what helps."""

import http.server
import json
import ssl
import subprocess
import sys
import threading
import types
from contextlib import contextmanager

import pytest
from rich.console import Console

from study.errors import UserError
from study.home import Home
from study.remote import dispatch, job_server, jobs
from study.remote.job_server import JobServer
from study.remote.jobs import Job, follow, follow_and_stop
from study.remote.remembered import RemoteStudy


@contextmanager
def serving(answers, *, tls=None):
    """A server on this machine; yields its address and the requests that it got.

    Args:
        answers: method and path -> the (status, body)s to give in turn, the last one again and again.
        tls: context of an https server; None for http.
    """
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append((self.command, self.path, self.headers.get("Authorization")))
            left = answers.get((self.command, self.path), answers.get("else"))
            status, body = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(status)
            self.end_headers()
            self.wfile.write((body if isinstance(body, str) else json.dumps(body)).encode())

        do_GET = do_POST = do_PUT = do_DELETE = answer

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


VERSION = {("GET", "/api/version"): [(200, {"version": "4", "ray_version": "2.60.0", "ray_commit": "c", "session_name": "s"})]}


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ((401, "Unauthorized"), "must let us in, but .*; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN"),
        ((403, "Forbidden"), "must let us in, but .*; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN"),
        ((404, "nothing here"), r"is something else \(status 404\); use the address of the head's dashboard"),
        ((200, "<html>a router</html>"), r"is something else \(status 200\)"),
    ],
)
def test_what_is_no_job_server_of_ours_is_told_apart(answer, sentence):
    with serving({"else": [answer]}) as (address, _), pytest.raises(UserError, match=sentence):
        JobServer(address)


def test_a_token_that_is_not_where_it_should_be_is_told_shortly(tmp_path):
    code = "from study.remote.job_server import JobServer; JobServer('{}')"
    variables = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": "/nowhere/token",
    }
    with serving({"else": [(401, "Unauthorized")]}) as (address, _):
        run = [sys.executable, "-c", code.format(address)]
        result = subprocess.run(run, env=variables, capture_output=True, text=True, timeout=60)
    last = result.stderr.splitlines()[-1]
    assert "cannot be opened or is empty: /nowhere/token); set RAY_AUTH_MODE=token" in last
    assert len(last) < 400


def test_nobody_there_is_told_with_how_to_reach_a_dashboard():
    with pytest.raises(UserError, match=r"must answer at --address, but http://127.0.0.1:1 does not .*--include-dashboard=true"):
        JobServer("http://127.0.0.1:1/")


def test_an_address_with_a_password_is_refused_without_showing_it():
    with pytest.raises(UserError, match=r"--address must hold no password.*http://me:\*\*\*@head:8265; write it into ~/.netrc"):
        JobServer("http://me:hunter2@head:8265")


def test_a_certificate_is_trusted_when_its_authority_is_named(tmp_path, monkeypatch):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    new += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(new, check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    with serving(VERSION, tls=tls) as (address, _):
        with pytest.raises(UserError, match=r"must be one that this machine trusts, .*; set REQUESTS_CA_BUNDLE"):
            JobServer(address)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        JobServer(address)


def test_https_where_only_http_is_spoken_is_told_so():
    with serving(VERSION) as (address, _), pytest.raises(UserError, match=r"must speak TLS, .*; use http://"):
        JobServer(address.replace("http:", "https:"))


def test_the_address_that_was_given_is_asked_whatever_ray_has_in_its_environment(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    with serving(VERSION) as (address, asked):
        JobServer(address)
    assert len(asked) >= 1


def test_a_cluster_whose_agent_is_not_up_yet_is_asked_again(tmp_path, monkeypatch):
    (tmp_path / "code.py").touch()
    monkeypatch.setattr(job_server.time, "sleep", lambda _: None)
    late = [(500, "No available agent to submit job, please try again later.")] * 2 + [
        (200, {"job_id": "a-1", "submission_id": "a-1"})
    ]
    said = []
    with serving({**VERSION, ("POST", "/api/jobs/"): late, "else": [(200, "")]}) as (address, asked):
        JobServer(address).submit("a-1", ["study"], folder=tmp_path, metadata={}, say=said.append)
    assert [path for _, path, _ in asked].count("/api/jobs/") == 3
    assert len(said) == 1


def test_a_cluster_that_never_has_an_agent_is_given_up(tmp_path, monkeypatch):
    (tmp_path / "code.py").touch()
    monkeypatch.setattr(job_server, "_AGENT_SECONDS", 0.0)
    answers = {**VERSION, ("POST", "/api/jobs/"): [(500, "No available agent to submit job")], "else": [(200, "")]}
    with serving(answers) as (address, _), pytest.raises(UserError, match="has no agent that starts them"):
        JobServer(address).submit("a-1", ["study"], folder=tmp_path, metadata={}, say=print)


class Cluster:
    """A job server from a script: how the job stands, and its log, at each look."""

    address = "http://head:8265"

    def __init__(self, *looks, code=0, message=""):
        self._looks, self._code, self._message = list(looks), code, message
        self.killed, self.sent = [], []

    def info(self, _):
        status = self._looks[0][0]
        if isinstance(status, BaseException):
            raise self._looks.pop(0)[0]
        return types.SimpleNamespace(
            status=job_status(status),
            driver_exit_code=self._code if status in ("FAILED", "SUCCEEDED") else None,
            message=self._message,
        )

    def log(self, _):
        return self._looks.pop(0)[1] if len(self._looks) > 1 else self._looks[0][1]

    def kill(self, job):
        self.killed.append(job)

    def submit(self, job, words, **_):
        self.sent.append(words)


def job_status(name):
    from ray.job_submission import JobStatus

    return JobStatus(name)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(jobs.time, "sleep", lambda _: None)


NOISE = "2026-11-23 20:54:15,671\tINFO job_manager.py:581 -- Runtime env is setting up.\nRunning entrypoint for job 0: python\n"


def test_each_line_is_shown_once_and_none_of_rays(capsys):
    looks = (("PENDING", ""), ("RUNNING", NOISE + "note: x\na ru"), ("RUNNING", NOISE + "note: x\na runs on h\none"))
    job = Job(Cluster(*looks, ("FAILED", NOISE + "note: x\na runs on h\none\nlast"), code=1), "a", "a-1")
    assert follow(job) == 1
    assert capsys.readouterr().out == "note: x\na runs on h\none\nlast\n"
    assert job.has_begun


def test_who_detaches_waits_until_the_study_runs(capsys):
    job = Job(Cluster(("PENDING", ""), ("RUNNING", "note: x\na runs on h\nmore\n")), "a", "a-1")
    assert follow(job, until_begun=True) is None
    assert capsys.readouterr().out == "note: x\na runs on h\n"


def test_a_mistake_is_said_where_mistakes_are_said(capsys):
    assert follow(Job(Cluster(("FAILED", "study: a law, but a value; a remedy\n"), code=2), "a", "a-1"), until_begun=True) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "study: a law, but a value; a remedy\n")


@pytest.mark.parametrize(
    ("code", "message", "sentence"),
    [(None, "Runtime env\nfailed", "a-1 was not: Runtime env failed"), (127, "", "there is no `python` on the PATH of its head")],
)
def test_a_job_that_never_ran_says_why(capsys, code, message, sentence):
    assert follow(Job(Cluster(("FAILED", ""), code=code, message=message), "a", "a-1")) in (1, 127)
    assert sentence in capsys.readouterr().err


def test_a_connection_that_comes_back_is_not_missed(capsys):
    lost = job_server.LostServer("gone")
    assert follow(Job(Cluster((lost, ""), ("SUCCEEDED", "done\n")), "a", "a-1")) == 0
    assert capsys.readouterr().out == "done\n"


def test_a_connection_that_stays_away_ends_the_watching_and_not_the_study(monkeypatch):
    monkeypatch.setattr(jobs, "_LOST_SECONDS", 0.0)
    job = Job(Cluster((job_server.LostServer("gone"), ""), (job_server.LostServer("gone"), "")), "a", "a-1")
    with pytest.raises(UserError, match="a goes on if the cluster does, see: study logs a -f"):
        follow(job)


def test_ctrl_c_asks_the_study_to_stop_and_a_second_one_leaves_it_running(capsys):
    cluster = Cluster(("RUNNING", "a runs on h\n"), (KeyboardInterrupt(), ""), ("STOPPED", "a runs on h\nbye\n"))
    assert follow_and_stop(Job(cluster, "a", "a-1"), Console(width=200)) == 130
    assert [words[-2:] for words in cluster.sent] == [["stop", "a"]]
    assert cluster.killed == []
    twice = Cluster(("RUNNING", "a runs on h\n"), (KeyboardInterrupt(), ""), (KeyboardInterrupt(), ""))
    assert follow_and_stop(Job(twice, "a", "a-1"), Console(width=200)) == 130
    assert "a may still be running on http://head:8265" in capsys.readouterr().out


def test_ctrl_c_before_the_study_runs_ends_the_job():
    cluster = Cluster(("PENDING", ""), (KeyboardInterrupt(), ""), ("STOPPED", ""))
    assert follow_and_stop(Job(cluster, "a", "a-1"), Console(width=200)) == 130
    assert (cluster.killed, cluster.sent) == (["a-1"], [])


def test_a_study_s_driver_is_told_from_what_stopped_another_study():
    listed = [("a-stop-00000001", "a-stop", 1), ("a-stop-00000002", "a", 2), ("a-00000003", "a", 3)]
    known = [types.SimpleNamespace(submission_id=job, metadata={"narrow_study": of}, start_time=at) for job, of, at in listed]
    cluster = types.SimpleNamespace(address="http://head:8265", jobs=lambda: known)
    assert Job.newest(cluster, "a-stop").id == "a-stop-00000001"
    assert Job.newest(cluster, "a").id == "a-00000003"


@pytest.mark.parametrize(("log", "is_remembered"), [("study: a law\n", False), ("a runs on h\nstudy: MLflow is gone\n", True)])
def test_a_name_is_forgotten_only_if_its_launch_was_refused(home, monkeypatch, log, is_remembered):
    cluster = Cluster(("FAILED", log), code=2)
    monkeypatch.setattr(dispatch, "JobServer", lambda _: cluster)
    monkeypatch.setattr(Job, "send", lambda *_, **__: Job(cluster, "a", "a-1"))
    context = types.SimpleNamespace(
        info_name="launch", command=types.SimpleNamespace(params=[]), params={"address": cluster.address, "detach": False}
    )
    remote = RemoteStudy(name="a", address=cluster.address)
    assert dispatch._on_cluster(context, remote, Home(), Console()) == 2
    assert RemoteStudy.load("a", Home()) == (remote if is_remembered else None)
