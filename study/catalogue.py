"""What there is to study: every experiment with its metrics, every space with its parameters."""

import importlib
import inspect
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from search_spaces.space import StudySpace
from study.probe import describe_space
from study.spec import builtin_modules
from trainables.registry import EXPERIMENTS, load_experiment


def catalogue() -> list[dict[str, Any]]:
    """All registered experiments, as JSON values."""
    spaces = [entry for name in builtin_modules() for entry in _spaces_of(name)]
    return [
        {
            "experiment": name,
            "about": _first_line(load_experiment(name)),
            "metrics": [
                {"name": m.name, "goal": m.goal, "unit": m.unit, "meaning": m.meaning} for m in load_experiment(name).METRICS
            ],
            "spaces": [entry for entry in spaces if entry["experiment"] == name],
        }
        for name in sorted(EXPERIMENTS)
    ]


def _spaces_of(module_name: str) -> list[dict[str, Any]]:
    module = importlib.import_module(f"search_spaces.{module_name}")
    entries = []
    for function_name, function in vars(module).items():
        if not inspect.isfunction(function) or function_name.startswith("_") or function.__module__ != module.__name__:
            continue
        space = function()
        if isinstance(space, StudySpace):
            arguments = {name: p.default for name, p in inspect.signature(function).parameters.items()}
            reference = f"{module_name}:{function_name}"
            entries.append(entry_of(reference, space, about=_first_line(function)) | {"arguments": arguments})
    return entries


def entry_of(reference: str, space: StudySpace, *, about: str = "") -> dict[str, Any]:
    """A space, as JSON values."""
    description = describe_space(space)
    return {
        "space": reference,
        "about": about,
        "experiment": space.experiment,
        "objectives": description.objectives,
        "constraints": list(description.constraints),
        "parameters": {parameter.name: parameter.values for parameter in description.parameters},
        "num_trials": space.num_trials,
        "num_cpus": space.num_cpus,
        "num_gpus": space.num_gpus,
    }


def show(entries: list[dict[str, Any]], console: Console) -> None:
    """Print the catalogue as tables."""
    for entry in entries:
        console.print(Text.assemble((entry["experiment"], "bold"), f": {entry['about']}"))
        metrics = Table(box=None, padding=(0, 2))
        for column in ("metric", "goal", "unit", "meaning"):
            metrics.add_column(column, overflow="fold")
        for metric in entry["metrics"]:
            metrics.add_row(metric["name"], metric["goal"] or "-", metric["unit"], metric["meaning"])
        console.print(metrics)
        for space in entry["spaces"]:
            console.print(Text.assemble("  ", (space["space"], "bold cyan"), f": {space['about']}"))
            objectives = ", ".join(f"{goal} {name}" for name, goal in space["objectives"].items())
            constraints = f" subject to {', '.join(space['constraints'])}" if space["constraints"] else ""
            console.print(f"    {objectives}{constraints}; {space['num_trials']} trials", highlight=False)
            parameters = "; ".join(f"{name}: {values}" for name, values in space["parameters"].items())
            console.print(f"    {parameters}", markup=False, highlight=False)
            if space["arguments"]:
                console.print(
                    f"    --set {' '.join(f'{name}=...' for name in space['arguments'])}", markup=False, highlight=False
                )
        console.print()


def _first_line(documented: Any) -> str:
    return (inspect.getdoc(documented) or "").split("\n")[0]
