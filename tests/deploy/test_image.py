"""The Dockerfile and the shell in deploy/ and tests/, read by the tools made for them."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
SHELL = [
    file
    for folder in ("deploy", "tests", ".ci")
    for pattern in ("*.sh", "*.sbatch", "run")
    for file in (ROOT / folder).rglob(pattern)
]


def program(name):
    found = shutil.which(name)
    assert found, f"{name} comes with the extra `dev`"
    return found


def test_hadolint_finds_nothing():
    result = subprocess.run([program("hadolint"), ROOT / "deploy" / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, "")


def test_it_runs_as_nobody_special_on_a_pinned_python():
    assert re.findall(r"^FROM (\S+)", DOCKERFILE, flags=re.M) == ["python:3.11-slim-bookworm"]
    assert re.findall(r"^USER (\S+)", DOCKERFILE, flags=re.M)[-1] == "1000:1000"
    assert not re.search(r"^(ENV|ARG).*(TOKEN|PASSWORD|SECRET|KEY)", DOCKERFILE, flags=re.M)


def test_what_it_copies_is_there_and_not_ignored():
    sources = [word for line in re.findall(r"^COPY (.*)", DOCKERFILE, flags=re.M) for word in line.split()[:-1]]
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(sources) == allowed
    for source in sources:
        assert (ROOT / source).exists(), source


def test_it_installs_what_the_project_names():
    """The line that lists packages of others, run on today's pyproject.toml; and the extra that it then installs with ours."""
    code = re.search(r"python -c '(.*?)' \\\n", DOCKERFILE)[1]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    extras = re.search(r'"\.\[(.*?)\]"', DOCKERFILE)[1].split(",")
    assert listed == project["dependencies"] + [name for extra in extras for name in project["optional-dependencies"][extra]]


@pytest.mark.parametrize("file", SHELL, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_shellcheck_finds_nothing(file):
    arguments = [program("shellcheck"), "--external-sources", "--shell=bash", file]
    result = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout
