"""The README says what is true."""

import re
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def tree():
    """Paths in the README's picture of the house."""
    lines = README.split("<!-- tree -->")[1].split("```")[1].splitlines()
    stack: list[str] = []
    for line in filter(str.strip, lines):
        depth = (len(line) - len(line.lstrip())) // 2
        stack[depth:] = [line.split()[0]]
        yield "".join(stack)


def test_the_tree_names_what_exists():
    for path in tree():
        assert (ROOT / path).exists(), path


def test_every_module_is_in_the_tree():
    tracked = subprocess.run(["git", "ls-files", "*.py", "deploy"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    shown = set(tree())
    for path in tracked.splitlines():
        if not path.startswith("tests/") and not path.endswith("__init__.py"):
            assert path in shown, f"{path} is missing from the README's tree"


def test_links_to_files_lead_somewhere():
    text = re.sub(r"```.*?```", "", README, flags=re.S)
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_files_that_the_text_names_exist():
    for path in re.findall(r"`((?:study|trainables|search_spaces|tests|deploy)/[\w./]+)`", README):
        assert (ROOT / path).exists(), path


def test_the_pruning_that_it_shows_leaves_as_many_neurons_as_it_says():
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", README, flags=re.S) if "trainables.pruning" in block)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["model"][0].out_features == names["model"][2].in_features == 32


def test_every_command_in_the_readme_is_one_that_there_is():
    from study.cli import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    used = set(re.findall(r"^study (\w+)", README, flags=re.M))
    assert used == known
