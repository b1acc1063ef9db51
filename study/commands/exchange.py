"""The commands that take studies out and in: export, import. Imports late, as `study.cli` does."""

from pathlib import Path
from typing import Annotated

import typer

from study.commands.life import app, make_console
from study.commands.options import Name
from study.errors import UserError


@app.command()
def export(
    name: Name,
    path: Annotated[Path, typer.Argument(help="What to write: models.parquet, .csv or .json.", metavar="FILE")],
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow's address; by default the one of the launch.")] = None,
) -> None:
    """Write every model of a study, one a row, with what the study is."""
    from study.asking.several import open_studies
    from study.exchanging.exchange import export_trials

    num_rows = export_trials(open_studies([name], tracking_uri=tracking_uri), path)
    make_console().print(f"{name}: {num_rows} models in {path}", highlight=False, soft_wrap=True)


@app.command("import")
def import_study(
    source: Annotated[str, typer.Argument(help="Somebody's MLflow experiment, or what `study export` wrote.", metavar="SOURCE")],
    name: Annotated[str, typer.Option(help="The study that it becomes; again, for what is new there.")],
    objective: Annotated[
        list[str] | None, typer.Option(help="What it is about; may be repeated. A file has its own.", metavar="METRIC:min|max")
    ] = None,
    mapping: Annotated[
        list[str] | None, typer.Option("--map", help="Our name for a metric; may be repeated.", metavar="THEIRS=OURS")
    ] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="Where the experiment is; by default in this home's MLflow.")] = None,
) -> None:
    """Make a study of finished trials out of what others have run. It is only read; the same command again goes on."""
    from study.exchanging.exchange import import_experiment

    console = make_console()
    with console.status(f"importing {source}") as status:
        found = import_experiment(
            source,
            name=name,
            objectives=objective or (),
            metrics=_renaming(mapping or []),
            tracking_uri=tracking_uri,
            progress=lambda count: status.update(f"importing {source}: {count} trials"),
        )
    console.print(f"{name}: {found.num_new} trials imported, {found.num_known} were there", highlight=False)
    console.print(f"see: study pareto {name}", highlight=False)


def _renaming(texts: list[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        theirs, equals, ours = text.rpartition("=")
        if not theirs or not equals or not ours:
            raise UserError(f"--map must be THEIRS=OURS, but got {text!r}; write one for each")
        pairs[theirs] = ours
    return pairs
