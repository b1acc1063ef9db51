"""The command `study serve`: what it refuses, what it says, how it ends."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from commands import STUDY, environment, run


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--host", "0.0.0.0"], "must have a token, but --host is 0.0.0.0 and there is none; set STUDY_TOKEN or --token-file"),
        (["--address", "http://head:8265"], "starts drivers on its own machine, but --address is http://head:8265"),
        (["--port", "70000"], "--port must be 0 to 65535, but got 70000"),
        (["--space", "os:system"], "a space must be a function of its module"),
        (
            ["--host", "192.0.2.7", "--token-file", "TOKEN"],
            "must be able to listen at its address, but 192.0.2.7:8400 is refused",
        ),
    ],
)
def test_what_would_be_unsafe_or_cannot_be_is_refused_in_one_sentence(tmp_path, options, told):
    (tmp_path / "TOKEN").write_text("t" * 32)
    result = run("serve", *options, home=tmp_path / "home", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert told in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_port_that_is_taken_is_told(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = run("serve", "--port", port, home=tmp_path / "home")
    assert (result.returncode, result.stderr) == (
        2, f"study: a port must be free, but {port} of 127.0.0.1 is taken; name another with --port, or 0 for any\n",
    )  # fmt: skip


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_within_seconds_though_mlflow_keeps_it_waiting(tmp_path, ending):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        given = environment(tmp_path / "home") | {"STUDY_TRACKING_URI": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        command = [*STUDY, "serve", "--port", "0"]
        with subprocess.Popen(command, env=given, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as service:
            port = int(service.stdout.readline().rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(b"GET /api/v1/studies/any HTTP/1.1\r\nHost: localhost\r\n\r\n")
                with silent.accept()[0]:  # it waits for MLflow
                    begun = time.monotonic()
                    service.send_signal(ending)
                    assert service.wait(timeout=60) == 0
                    assert time.monotonic() - begun < 8


def test_it_says_where_it_is_answers_there_and_ends_within_seconds_of_being_asked(tmp_path):
    given = environment(tmp_path / "home") | {"STUDY_TOKEN": "t" * 32}
    command = [*STUDY, "serve", "--port", "0"]
    service = subprocess.Popen(command, env=given, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = service.stdout.readline().split()
    assert line[:-1] == ["serving", "the", "studies", "of", str(tmp_path / "home"), "at"]
    with urllib.request.urlopen(f"{line[-1]}/healthz", timeout=60) as answer:
        assert answer.status == 200
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{line[-1]}/api/v1/studies", timeout=60)
    begun = time.monotonic()
    service.send_signal(signal.SIGTERM)
    told, complaints = service.communicate(timeout=30)
    assert (service.returncode, told, complaints) == (0, "", "")
    assert time.monotonic() - begun < 5


def test_making_the_app_reads_and_imports_nothing_slow(tmp_path):
    code = (
        "import sys; from pathlib import Path; from study.service.app import make_app\n"
        "from study.service.settings import ServiceSettings\n"
        "make_app(ServiceSettings(home=Path('none')))\n"
        "print(sorted({'mlflow', 'torch', 'ray', 'optuna'} & set(sys.modules)), Path('none').exists())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=dict(os.environ))
    assert result.stdout.strip() == "[] False", result.stderr
