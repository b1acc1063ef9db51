"""What the user can do wrong: one sentence with law, value and remedy, exit status 2, no traceback, nothing left behind."""

import socket
import time

import commands
import pytest

from study.home import Home

TINY = ("launch", "cmsp_curriculum:tiny")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("launch", "nowhere:tiny", "--name", "s"), "there is no module 'nowhere'"),
        (("launch", "cmsp_curriculum:huge", "--name", "s"), "has no function 'huge'"),
        (("launch", "bad_objective:space", "--name", "s"), "an objective must be a metric of cmsp_curriculum that has a goal"),
        ((*TINY, "--name", "a/b"), "a study's name must be 1 to 80 letters"),
        ((*TINY, "--name", "s", "--trials", "0"), "--trials must be at least 1, but got 0"),
        ((*TINY, "--name", "s", "--max-concurrent", "0"), "--max-concurrent must be at least 1, but got 0"),
        ((*TINY, "--name", "s", "--time-budget", "-1"), "--time-budget must be positive, but got -1"),
        ((*TINY, "--name", "s", "--gpus-per-trial", "1.5"), "--gpus-per-trial above 1 must be a whole number, but got 1.5"),
        ((*TINY, "--name", "s", "--gpus-per-trial", "2"), "--gpus-per-trial must be at most 1 for cmsp_curriculum"),
        ((*TINY, "--name", "s", "--sampler", "best"), "sampler must be one of"),
        ((*TINY, "--name", "s", "--address", "127.0.0.1:1"), "a Ray cluster must answer at --address"),
        ((*TINY, "--name", "s", "--address", "ray://127.0.0.1:10001"), "a cluster's address must be host:port"),
        ((*TINY, "--name", "s", "--storage", "/proc/nowhere"), "the storage must be a folder or URI that can be written"),
        pytest.param(
            (*TINY, "--name", "s", "--tracking-uri", "http://127.0.0.1:1"),
            "the tracking URI must name an MLflow server",
            marks=pytest.mark.slow,  # MLflow tries for ten seconds
        ),
        (("resume", "nope"), "there is no 'nope'"),
        (("status", "nope"), "there is no 'nope'"),
        (("pareto", "nope"), "there is no 'nope'"),
        (("trial", "nope", "0"), "there is no 'nope'"),
    ],
)
def test_a_mistake_is_answered_in_one_sentence(home, tmp_path, arguments, sentence):
    (tmp_path / "bad_objective.py").write_text(
        "import dataclasses\nfrom search_spaces import cmsp_curriculum\n"
        "def space():\n    return dataclasses.replace(cmsp_curriculum.tiny(), objectives=('accuracy',))\n"
    )
    start = time.monotonic()
    result = commands.run(*arguments, home=home, cwd=tmp_path)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert result.stderr.startswith("study: ")
    assert len(result.stderr.splitlines()) == 1
    assert "; " in result.stderr  # the remedy
    assert Home(home).studies() == []
    if "--address" in arguments:
        assert time.monotonic() - start < 10


def test_a_port_where_something_else_answers_is_no_cluster(home):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        start = time.monotonic()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        result = commands.run(*TINY, "--name", "s", "--address", address, home=home)
    assert result.returncode == 2
    assert "a Ray cluster must" in result.stderr
    assert time.monotonic() - start < 20


def test_help_answers_at_once_and_lists_the_commands(home):
    commands.run("--help", home=home)
    start = time.monotonic()
    result = commands.run("--help", home=home)
    assert time.monotonic() - start < 1.5  # a smell, not the benchmark: a fresh interpreter on a busy machine
    for command in ("launch", "resume", "list", "status", "spaces", "pareto", "trial"):
        assert f" {command} " in result.stdout
