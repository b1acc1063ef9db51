"""Options that several commands share, and how their texts are read. Imports late, as `study.cli` does."""

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from study.errors import UserError

if TYPE_CHECKING:
    from study.spec import Limits

Name = Annotated[str, typer.Argument(help="The study's name.", metavar="NAME")]
TrackingUri = Annotated[str | None, typer.Option(help="MLflow's address; by default the one of the launch.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="An argument of the space, such as data_dir=FOLDER; may be repeated.", metavar="KEY=VALUE"),
]
Trials = Annotated[int | None, typer.Option(help="Finished, stopped and failed trials in all; by default the space's number.")]
TimeBudget = Annotated[float | None, typer.Option(help="Stop after this many seconds; `study resume` goes on.")]
MaxConcurrent = Annotated[int | None, typer.Option(help="Trials at once; by default as many as fit.")]
Keep = Annotated[str | None, typer.Option(help="Models that stay in MLflow: front (the front and near it), or all.")]
Address = Annotated[
    str | None,
    typer.Option(help="A Ray cluster: auto or host:port on a node of it, http://head:8265 from outside; by default none."),
]
JobServerAddress = Annotated[
    str | None, typer.Option("--address", help="http://head:8265 of a study on a cluster; remembered where it was launched.")
]
Detach = Annotated[bool, typer.Option("--detach", help="Return once the study runs; see `study logs`, `study stop`.")]

_SAMPLER = typer.Option(help="tpe, nsga2, nsga3, gp, cmaes, qmc, random, or module:Class.")
Sampler = Annotated[str, _SAMPLER]
SamplerOrParents = Annotated[str | None, _SAMPLER]
SamplerOptions = Annotated[
    list[str] | None,
    typer.Option("--sampler-set", help="An option of the sampler, as n_startup_trials=20; may be repeated.", metavar="KEY=VALUE"),
]
_REPLICATES = typer.Option(help="Trials of every parameter set, each with a seed of its own.")
Replicates = Annotated[int, _REPLICATES]
ReplicatesOrParents = Annotated[int | None, _REPLICATES]
_EARLY_STOPPING = typer.Option(
    help="Which trials end before their end: none; moasha (several objectives); asha, median (one). "
    "With settings: moasha:reduction=3,first=0.1.",
)
StopEarly = Annotated[str, _EARLY_STOPPING]
StopEarlyOrParents = Annotated[str | None, _EARLY_STOPPING]
CpuHours = Annotated[float | None, typer.Option(help="CPU-hours that trials may hold in all.")]
GpuHours = Annotated[float | None, typer.Option(help="GPU-hours that trials may hold in all.")]
Flops = Annotated[float | None, typer.Option(help="Floating-point operations of training that trials may make in all.")]
_UNTIL_FLAT = "End when the front has stopped growing."
UntilFlat = Annotated[bool, typer.Option("--until-flat", help=_UNTIL_FLAT)]
UntilFlatOrBefore = Annotated[bool | None, typer.Option("--until-flat/--no-until-flat", help=_UNTIL_FLAT, show_default=False)]


def _read_given(text: str | None) -> str | None:
    """The trials of a file as JSON, so that they travel with the command to wherever it is run."""
    if text is None or text.lstrip().startswith("["):
        return text
    try:
        content = Path(text).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--first must be a file of trials, or JSON, but {text} cannot be read ({error}); use a file that "
            "`study pareto --csv` has written, or JSON: '[{\"width\": 64}]'"
        ) from error
    if Path(text).suffix.lower() != ".csv":
        return content
    rows = csv.DictReader(content.splitlines())
    return json.dumps([{name: _value(shown) for name, shown in row.items() if shown} for row in rows])


GivenTrials = Annotated[
    str | None,
    typer.Option(
        "--first",
        help="Parameters of the first trials: JSON, a JSON file, or a CSV file as `study pareto --csv` writes it.",
        metavar="FILE",
        callback=_read_given,
    ),
]


WarmStart = Annotated[
    list[str] | None,
    typer.Option(help="A study whose trials the sampler is to know from the start; may be repeated.", metavar="STUDY"),
]


Pack = Annotated[
    int | None, typer.Option(help="Trials of one shape that a worker may run as one program, where that pays; by default 1.")
]


def read_settings(option: str, settings: list[str] | None, example: str) -> dict[str, Any]:
    """Read KEY=VALUE: a JSON value where it is one, else text."""
    read: dict[str, Any] = {}
    for setting in settings or []:
        key, equals, text = setting.partition("=")
        if not key or not equals:
            raise UserError(f"{option} must be KEY=VALUE, but got {setting!r}; try {example}")
        read[key] = _value(text)
    return read


def read_arguments(settings: list[str] | None) -> dict[str, Any]:
    """Read the arguments of a space."""
    return read_settings("--set", settings, "data_dir=FOLDER")


def read_sampler_options(settings: list[str] | None) -> dict[str, Any]:
    """Read the options of a sampler."""
    return read_settings("--sampler-set", settings, "n_startup_trials=20")


def read_given(text: str | None) -> list[dict[str, Any]]:
    """Read the parameters of first trials.

    Raises:
        UserError: if they are no list of parameter sets.
    """
    try:
        given = json.loads(text or "[]")
    except ValueError:
        given = None
    if not isinstance(given, list) or not all(isinstance(params, dict) and params for params in given):
        raise UserError(f"--first must be a list of parameter sets, but got {text!r}; use '[{{\"width\": 64}}]'")
    return given


def read_limits(cpu_hours: float | None, gpu_hours: float | None, flops: float | None) -> "Limits | None":
    """The limits that were given; None where none was."""
    from study.spec import Limits

    return Limits(cpu_hours=cpu_hours, gpu_hours=gpu_hours, flops=flops) or None


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
