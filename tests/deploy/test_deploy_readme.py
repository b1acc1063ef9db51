"""deploy/README.md names commands, files and variables that there are."""

import re
import subprocess
import sys
from pathlib import Path

import typer.main
import yaml

ROOT = Path(__file__).parents[2]
README = (ROOT / "deploy" / "README.md").read_text()
SCRIPT = (ROOT / "deploy" / "slurm" / "study.sbatch").read_text()


def shell_lines():
    """Lines of its shell blocks, those that go on joined."""
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.S):
        yield from block.replace("\\\n", " ").splitlines()


def test_commands_of_study_have_the_options_that_it_shows():
    from study.cli import app

    commands = typer.main.get_command(app).commands
    shown = [match[1] for line in shell_lines() if (match := re.match(r"(?:[A-Z_]+=\S+ )?study (.*?)( #| >|$)", line))]
    assert len(shown) >= 8
    for line in shown:
        name, *words = line.split()
        known = {option for parameter in commands[name].params for option in parameter.opts}
        for word in words:
            if word.startswith("-"):
                assert word.partition("=")[0] in known, line


def test_files_that_it_names_exist():
    named = set(re.findall(r"deploy/[\w./-]+\w", README)) - {"deploy/.env", "deploy/kuberay/secrets.yaml", "deploy/mlflow"}
    for path in named:
        assert (ROOT / path).exists(), path
    for file in re.findall(r"`(\w+\.yaml)`", README):
        assert (ROOT / "deploy/kuberay" / file).exists(), file
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / "deploy" / target).exists(), target


def test_variables_of_the_slurm_script_that_it_names_are_there():
    (line,) = re.findall(r"^(.*`HEAD_ADDRESS`.*)are explained", README, flags=re.M)
    for name in re.findall(r"`([A-Z_]+)`", line):
        assert re.search(rf"\${{{name}:-", SCRIPT), name


def test_ports_are_those_that_compose_publishes():
    services = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]
    published = {port.split(":")[-1] for service in services.values() for port in service.get("ports", [])}
    listed = re.findall(r"^\| (\d+)", README.split("## Ports")[1], flags=re.M)
    assert set(listed[:3]) == published


def test_mlflow_has_the_options_that_its_server_is_started_with():
    help_text = subprocess.run(
        [sys.executable, "-m", "mlflow", "server", "--help"], capture_output=True, text=True, check=True
    ).stdout
    files = [ROOT / "deploy/compose.yaml", ROOT / "deploy/kuberay/mlflow.yaml", ROOT / "deploy/README.md"]
    for file in files:
        command = re.search(
            r"mlflow\s+server.*?(?:environment|envFrom|mlflow\.log)", file.read_text().replace("- server", "server"), flags=re.S
        )
        options = re.findall(r"--[a-z-]+", command[0])
        assert "--backend-store-uri" in options
        for option in options:
            assert option in help_text, f"{file.name}: {option}"
