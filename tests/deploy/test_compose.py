"""The compose file, read by Docker Compose itself, and what it must not do."""

import re
import shutil
import signal
import subprocess
import textwrap
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy" / "compose.yaml"
EXAMPLE = (ROOT / "deploy" / "env.example").read_text()


@pytest.fixture(scope="module")
def written():
    """The file as it stands."""
    return yaml.safe_load(FILE.read_text())


def compose(environment, *arguments):
    """Ask Docker Compose for the whole configuration."""
    program = shutil.which("docker-compose")
    assert program, "comes with the extra `dev`"
    return subprocess.run(
        [program, "--file", FILE, "--env-file", environment, *arguments, "config"], capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def environment(tmp_path):
    """An env file as the example asks for it, a value for every secret."""
    file = tmp_path / "env"
    file.write_text(re.sub(r"^(\w+)=$", r"\1=a-secret", EXAMPLE, flags=re.M))
    return file


def test_compose_takes_it_without_a_warning(environment):
    result = compose(environment)
    assert (result.returncode, result.stderr) == (0, "")
    services = yaml.safe_load(result.stdout)["services"]
    assert "worker-gpu" not in services
    for name, service in services.items():
        for port in service.get("ports", []):
            assert port["host_ip"] == "127.0.0.1", f"{name} is seen from outside"


def test_the_profile_gpu_brings_a_worker_that_has_them(environment):
    services = yaml.safe_load(compose(environment, "--profile", "gpu").stdout)["services"]
    (device,) = services["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", 1, ["gpu"])


@pytest.mark.parametrize("secret", re.findall(r"^(\w+)=$", EXAMPLE, flags=re.M))
def test_a_missing_secret_is_named(environment, secret):
    environment.write_text(re.sub(rf"^{secret}=.*$", f"{secret}=", environment.read_text(), flags=re.M))
    result = compose(environment)
    assert result.returncode != 0
    assert f"required variable {secret} is missing a value: write it into deploy/.env" in result.stderr


def test_the_example_names_every_variable_that_must_be_given():
    needed = set(re.findall(r"\$\{(\w+):\?", FILE.read_text()))
    assert needed == set(re.findall(r"^(\w+)=$", EXAMPLE, flags=re.M))


def test_workers_cannot_talk_to_a_database(written):
    for name in ("worker", "worker-gpu"):
        assert not {"STUDY_RECORD", "PGPASSWORD"} & set(written["services"][name]["environment"])
    assert {"STUDY_RECORD", "PGPASSWORD"} <= set(written["services"]["head"]["environment"])


def test_what_keeps_running_is_watched_and_comes_back(written):
    for name, service in written["services"].items():
        if name != "buckets":  # ends by itself
            assert service["restart"] == "unless-stopped", name
            assert service["healthcheck"]["test"], name
        assert not service["image"].endswith(":latest")


def test_the_image_is_of_this_version(written):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = {service["image"] for service in written["services"].values() if "narrow-study" in service["image"]}
    assert images == {f"${{STUDY_IMAGE:-narrow-study:{version}}}"}


def test_the_databases_that_it_makes_are_those_that_kubernetes_makes(written):
    (config,) = (item for item in yaml.safe_load_all((ROOT / "deploy/kuberay/postgres.yaml").read_text()) if "data" in item)
    assert written["configs"]["databases"]["content"].replace("$$", "$") == config["data"]["databases.sh"]


@pytest.mark.parametrize("file", ["compose.yaml", "kuberay/service.yaml"])
def test_the_service_ends_when_its_node_of_the_cluster_does_so_that_it_is_started_again(tmp_path, file):
    (lines,) = re.findall(r"- bash\n +- -c\n +- \|\n(.*?)\n +env", (FILE.parent / file).read_text(), flags=re.S)
    shutil.copy(shutil.which("sleep"), tmp_path / "raylet")
    for name, program in {"ray": "raylet 3", "study": "sleep 60"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\nexec {program}\n")
        (tmp_path / name).chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    result = subprocess.run(["bash", "-c", textwrap.dedent(lines).replace("$$$$", "$$")], env=path, timeout=30)
    assert result.returncode == -signal.SIGTERM
