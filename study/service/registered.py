"""Which spaces may be launched, and the metrics of their experiments.

    python -m study.service.registered SPACE...

prints them as JSON: in a process of its own, since experiments bring PyTorch with them, and a user's space is the user's code.
"""

import ast
import contextlib
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from search_spaces.space import StudySpace
from study.errors import UserError
from study.spec import builtin_modules, load_space

_TIMEOUT_S = 120.0

Registered = dict[str, Any]
"""`{spaces: [...], metrics: {experiment: [{name, goal, unit}]}}`, JSON values."""


def registered_names(own: Sequence[str]) -> list[str]:
    """The spaces that may be launched, by their source alone: the built-in ones that need no arguments, then the operator's."""
    built_in = [f"{module}:{function}" for module in builtin_modules() for function in _functions_of(module)]
    return [*built_in, *own]


def _functions_of(module: str) -> list[str]:
    source = (files("search_spaces") / f"{module}.py").read_text(encoding="utf-8")
    found = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    spaces = [node for node in found if node.returns is not None and ast.unparse(node.returns) == StudySpace.__name__]
    return [node.name for node in spaces if len(node.args.args) == len(node.args.defaults)]


def ask_registered(own: Sequence[str]) -> Registered:
    """The registered spaces as their code is now: the built-in ones, then those that the operator named.

    Args:
        own: `module:function` each.

    Raises:
        UserError: if one of them is no space any more.
    """
    command = [sys.executable, "-P", "-m", "study.service.registered", *own]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"the spaces must be readable within {_TIMEOUT_S:g} s, but are not; try again later") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word why"])[-1]
        raise UserError(last.removeprefix("study: "))
    found: Registered = json.loads(done.stdout)
    return found


def find_registered(own: Sequence[str]) -> Registered:
    """The same, in this process."""
    from study.catalogue import catalogue, entry_of

    entries = catalogue()
    spaces = [space for entry in entries for space in entry["spaces"]] + [
        entry_of(reference, load_space(reference)[0]) for reference in own
    ]
    experiments = dict.fromkeys([*(entry["experiment"] for entry in entries), *(space["experiment"] for space in spaces)])
    return {"spaces": spaces, "metrics": {name: _metrics(name) for name in experiments}}


def _metrics(experiment: str) -> list[dict[str, str]]:
    from trainables.registry import load_experiment

    declared = load_experiment(experiment).METRICS
    return [{"name": m.name, "goal": m.goal, "unit": m.unit} for m in declared if m.goal]


def main(own: Sequence[str]) -> int:
    """Print them; a user's mistake is one sentence and exit status 2."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what a user's module prints when it is imported is no answer
            found = find_registered(own)
    except UserError as error:
        print(f"study: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found, default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
