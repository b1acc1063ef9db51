"""The house: which room may know of which, and that the README's picture of it is true."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SERVICE = {"ray", "optuna", "mlflow"}
FORBIDDEN = {
    "trainables": {"study", "search_spaces", "tests", *SERVICE},
    "search_spaces": {"study", "tests", *SERVICE},
    "study": {"tests"},
}
ALLOWED = {("trainables/ray_trainable.py", "ray")}
_KNOW_MLFLOW = (
    "recording/tracking", "recording/tracking_writer", "recording/bulk", "recording/run_writes", "asking/run_index",
    "asking/registration", "keeping/artifacts",
    "exchanging/import_writer",
)  # fmt: skip
ONLY_HERE = {"mlflow": {f"study/{name}.py" for name in _KNOW_MLFLOW}}


def sources(package):
    return sorted((ROOT / package).rglob("*.py"))


def imports_of(path):
    """Top-level names that a file imports when it runs, at its head or inside a function; not those for type checkers."""
    tree = ast.parse(path.read_text())
    for_checkers = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in for_checkers:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield str(node.module).split(".")[0]


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_imports_go_one_way(package):
    for path in sources(package):
        name = path.relative_to(ROOT).as_posix()
        for imported in set(imports_of(path)) & FORBIDDEN[package]:
            assert (name, imported) in ALLOWED, f"{name} imports {imported}"


@pytest.mark.parametrize("library", sorted(ONLY_HERE))
def test_a_library_is_known_to_few_files(library):
    knowing = {p.relative_to(ROOT).as_posix() for package in FORBIDDEN for p in sources(package) if library in imports_of(p)}
    assert knowing == ONLY_HERE[library]


def test_help_loads_nothing_heavy():
    code = (
        "import sys; sys.argv = ['study', '--help']\nfrom study.cli import main\ntry: main()\nexcept SystemExit: pass\n"
        "print(sorted({'ray', 'optuna', 'mlflow', 'torch', 'numpy', 'pandas', 'plotly', 'matplotlib'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_asking_for_launch_does_not_load_ray():
    code = "import sys; from study import launch, open_study; print('ray' in sys.modules, 'mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False False"


def test_no_file_is_a_maze():
    for package in FORBIDDEN:
        for path in sources(package):
            assert len(path.read_text().splitlines()) <= 400, f"{path} has more than one subject"


def test_the_command_surface_grows_only_on_purpose():
    import typer.main

    from study.cli import app

    surface = {
        name: {option for parameter in command.params for option in parameter.opts if option.startswith("--")} - {"--help"}
        for name, command in typer.main.get_command(app).commands.items()
    }
    assert surface == {
        "launch": {
            "--name", "--set", "--trials", "--time-budget", "--seed", "--sampler", "--max-concurrent", "--cpus-per-trial",
            "--gpus-per-trial", "--address", "--storage", "--tracking-uri", "--record", "--deterministic", "--keep",
            "--detach", "--sampler-set", "--first", "--warm-start", "--replicates", "--early-stopping", "--cpu-hours",
            "--gpu-hours", "--flops", "--until-flat", "--pack",
        },
        "fork": {
            "--space", "--set", "--trials", "--time-budget", "--seed", "--sampler", "--max-concurrent", "--cpus-per-trial",
            "--gpus-per-trial", "--address", "--storage", "--deterministic", "--keep", "--detach", "--sampler-set", "--first",
            "--warm-start", "--replicates", "--early-stopping", "--cpu-hours", "--gpu-hours", "--flops", "--until-flat", "--pack",
        },
        "resume": {
            "--trials", "--time-budget", "--max-concurrent", "--address", "--detach", "--cpu-hours", "--gpu-hours", "--flops",
            "--until-flat", "--pack",
        },
        "extend": {"--trials", "--time-budget", "--max-concurrent", "--address", "--detach"},
        "stop": {"--timeout", "--address"},
        "logs": {"--follow", "--address"},
        "chaos": {"--kills", "--seed", "--set", "--trials", "--sampler", "--max-concurrent", "--keep", "--json"},
        "doctor": {"--address", "--storage", "--tracking-uri", "--record", "--json"},
        "list": {"--json"},
        "status": {"--tracking-uri", "--address", "--json"},
        "spaces": {"--json"},
        "pareto": {
            "--objective", "--where", "--constraint", "--knee", "--hypervolume", "--reference", "--seeds", "--dominated", "--tag",
            "--map", "--json", "--csv", "--plot", "--tracking-uri", "--refresh",
        },
        "model": {
            "--out", "--knee", "--trial", "--candidate", "--objective", "--where", "--constraint", "--register", "--alias",
            "--tracking-uri", "--json", "--tag", "--refresh",
        },
        "verify": {"--trust", "--json"},
        "report": {"--out", "--publish", "--refresh", "--tracking-uri"},
        "export": {"--tracking-uri"},
        "import": {"--name", "--objective", "--map", "--tracking-uri"},
        "du": {"--json"},
        "gc": {"--dry-run", "--keep", "--json"},
        "delete": {"--yes"},
        "trial": {"--charts", "--tracking-uri", "--json"},
        "serve": {"--host", "--port", "--token-file", "--space", "--address"},
    }  # fmt: skip
