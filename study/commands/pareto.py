"""The command `study pareto`. Imports late, as `study.cli` does."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from study.commands.life import app, make_console
from study.commands.options import AsJson, TrackingUri
from study.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from study.fronts.front import Front

Names = Annotated[
    list[str] | None,
    typer.Argument(
        help="Studies, asked as one if there are several; patterns such as 'l*'; MLflow's experiments.", metavar="NAME..."
    ),
]
Pairs = list[str] | None
Tags = Annotated[Pairs, typer.Option("--tag", help="Studies whose experiment has this tag in MLflow.", metavar="KEY=VALUE")]
Refresh = Annotated[bool, typer.Option("--refresh", help="Read everything from MLflow again, not only what is new.")]

_SHOWN_DOMINATED = 10


@app.command()
def pareto(
    names: Names = None,
    objective: Annotated[
        Pairs, typer.Option(help="Ask for another front than the one searched; may be repeated.", metavar="METRIC:min|max")
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(help="Only these: \"params.method = 'lasso' AND metrics.python_loss_nats < metrics.prose_loss_nats\"."),
    ] = None,
    constraint: Annotated[
        Pairs, typer.Option(help="A further bound that models must meet; may be repeated.", metavar="'METRIC <= NUMBER'")
    ] = None,
    knee: Annotated[bool, typer.Option("--knee", help="Show the best compromise alone.")] = False,
    hypervolume: Annotated[
        bool, typer.Option("--hypervolume", help="Show the volume that the front dominates; with --json over time, too.")
    ] = False,
    reference: Annotated[
        Pairs, typer.Option(help="The corner that it is measured from, for every objective.", metavar="METRIC=NUMBER")
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="This parameter is a seed: show means with bands. 'study' where studies repeat each other, 'replicate' where "
            "trials do.",
            metavar="PARAMETER",
        ),
    ] = None,
    dominated: Annotated[bool, typer.Option("--dominated", help="Show who is beaten by whom, and by how much.")] = False,
    tags: Tags = None,
    mapping: Annotated[
        Pairs, typer.Option("--map", help="Our name for a metric of somebody else's experiment.", metavar="THEIRS=OURS")
    ] = None,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw it: front.png, .svg, .pdf, or front.html to explore.")] = None,
    tracking_uri: TrackingUri = None,
    refresh: Refresh = False,
) -> None:
    """Show the Pareto front: the trials, or their candidates, that no other beats in every objective."""
    from study.asking.several import open_studies

    if as_json and as_csv:
        raise UserError("a front is printed one way, but got --json and --csv; leave one out")
    if as_csv and (seeds is not None or dominated):
        raise UserError("--csv prints the front alone, but got --seeds or --dominated, too; use --json")
    console = make_console()
    with reading(console) as progress:
        studies = open_studies(
            names or [], tags=tags or [], metrics=_pairs("--map", mapping, str), tracking_uri=tracking_uri, refresh=refresh,
            progress=progress,
        )  # fmt: skip
    front = studies.front(objective or (), where=where, constraints=constraint or ())
    corner = _pairs("--reference", reference, float) or None
    if corner:
        front.corner(corner)  # a mistake is told before anything is printed
    if plot is not None:
        from study.reporting import pictures

        pictures.plot_front(studies, front, plot)
    if as_json:
        from study.asking import trials

        fields = _to_json(front, knee=knee, seeds=seeds, dominated=dominated, corner=corner)
        if hypervolume and not knee and (corner or front.reference):
            fields["hypervolume_over_time"] = list(zip(*front.hypervolume_over_time(corner), strict=True))
        print(json.dumps(trials.as_json(fields), indent=2))
    elif as_csv:
        from study.reporting import report

        print(report.front_csv(front.only(front.knee) if knee and front.knee else front), end="")
    else:
        _show(console, front, knee=knee, hypervolume=hypervolume, corner=corner, seeds=seeds, dominated=dominated)
    if plot is not None and not as_json and not as_csv:
        console.print(f"plot: {plot}", highlight=False, soft_wrap=True)


@contextmanager
def reading(console: "Console") -> Iterator[Callable[[int], None]]:
    """Inside, a terminal shows how many runs have been read, if that takes its time."""
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status("reading MLflow") as status:
        yield lambda count: status.update(f"reading MLflow: {count} runs")


def _pairs(option: str, texts: list[str] | None, kind: Callable[[str], Any]) -> dict[str, Any]:
    """Read `key=value` texts.

    Raises:
        UserError: for a text of another form.
    """
    pairs = {}
    for text in texts or ():
        key, equals, value = text.rpartition("=")
        try:
            if not key or not equals:
                raise ValueError
            pairs[key] = kind(value)
        except ValueError:
            example = "METRIC=NUMBER" if kind is float else "THEIRS=OURS"
            raise UserError(f"{option} must be {example}, but got {text!r}; write one for each") from None
    return pairs


def _show(
    console: "Console",
    front: "Front",
    *,
    knee: bool,
    hypervolume: bool,
    corner: dict[str, float] | None,
    seeds: str | None,
    dominated: bool,
) -> None:
    from study.reporting import front_tables, report

    if seeds is not None:
        from study.fronts.seeds import front_over_seeds

        over_seeds = front_over_seeds(front, seeds, reference=corner)
        console.print(front_tables.seeds_table(over_seeds))
        console.print(front_tables.seeds_summary(over_seeds), highlight=False)
    elif front.knee is None:
        console.print(f"the front of {front.study} is empty")
    else:
        console.print(report.front_table(front.only(front.knee) if knee else front))
    console.print(report.summary(front), highlight=False)
    if front.knee is not None and seeds is None:
        console.print(f"knee, the best compromise: {front.knee.label}", highlight=False)
    if (hypervolume or corner) and seeds is None:
        console.print(front_tables.hypervolume_line(front, corner), highlight=False)
    if dominated:
        console.print(front_tables.dominated_table(front, _SHOWN_DOMINATED))


def _to_json(front: "Front", *, knee: bool, seeds: str | None, dominated: bool, corner: dict[str, float] | None) -> Any:
    if knee:
        return None if front.knee is None else front.row_to_json(front.knee)
    fields = front.to_json(corner)
    if dominated:
        rows = list(front.dominated)
        beaten = front.beaten_by(rows)
        fields["dominated"] = [
            {"label": row.label, "by": by and by[0].label, "gaps": by and by[1]} for row, by in zip(rows, beaten, strict=True)
        ]
    if seeds is not None:
        import dataclasses

        from study.fronts.seeds import front_over_seeds

        fields["over_seeds"] = dataclasses.asdict(front_over_seeds(front, seeds, reference=corner))
    return fields
