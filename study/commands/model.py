"""The commands `study model` and `study verify`: a model out of a study, and whether a folder is the model that it says it is."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from study.commands.life import app, make_console
from study.commands.options import AsJson, TrackingUri
from study.commands.pareto import Names, Pairs, Refresh, Tags, reading
from study.errors import UserError

_COLORS = {"passed": "green", "refused": "red", "not checked": "yellow"}


@app.command()
def model(
    names: Names = None,
    out: Annotated[Path | None, typer.Option(help="The folder to make.", metavar="DIR")] = None,
    knee: Annotated[bool, typer.Option("--knee", help="The best compromise of the front.")] = False,
    trial: Annotated[int | None, typer.Option(help="This trial's own model, as it ended.", metavar="N")] = None,
    candidate: Annotated[str | None, typer.Option(help="A candidate, such as 3.4: number 4 of trial 3.", metavar="N.M")] = None,
    objective: Annotated[
        Pairs, typer.Option(help="Of the front that the knee is of; may be repeated.", metavar="METRIC:min|max")
    ] = None,
    where: Annotated[str | None, typer.Option(help="Which models the front is of; see `study pareto --help`.")] = None,
    constraint: Annotated[
        Pairs, typer.Option(help="A further bound that models of the front meet.", metavar="'METRIC <= NUMBER'")
    ] = None,
    register: Annotated[
        str | None, typer.Option(help="Make it a version of this registered model in MLflow.", metavar="MODEL")
    ] = None,
    alias: Annotated[str | None, typer.Option(help="Of that version, such as best.")] = None,
    tags: Tags = None,
    tracking_uri: TrackingUri = None,
    refresh: Refresh = False,
    as_json: AsJson = False,
) -> None:
    """Copy a model out of a study, with a passport that says what it is; put it into MLflow's model registry."""
    from study.asking.choosing import choose_model, take_out
    from study.asking.several import open_studies
    from study.asking.trials import as_json as plain_json

    if out is None and register is None:
        raise UserError("a model must go somewhere, but got neither --out nor --register; try --out narrow")
    if alias is not None and register is None:
        raise UserError(f"--alias names a version of a registered model, but got {alias!r} and no --register; give both")
    console = make_console()
    with reading(console) as progress:
        studies = open_studies(names or [], tags=tags or (), tracking_uri=tracking_uri, refresh=refresh, progress=progress)
    row = choose_model(
        studies, knee=knee, trial=trial, candidate=candidate, objectives=objective or (), where=where,
        constraints=constraint or (),
    )  # fmt: skip
    told: dict[str, Any] = {"label": row.label, "run_id": row.run_id, "params": row.params, "metrics": row.metrics}
    if out is not None:
        told["folder"] = str(take_out(row, out))
    if register is not None:
        from study.asking.registration import register_model

        version = register_model(row, row.require_source().tracking_uri, name=register, alias=alias)
        told |= {"registered": register, "version": version, "alias": alias}
    if as_json:
        print(json.dumps(plain_json(told), indent=2))
        return
    if out is not None:
        console.print(f"model {row.label} of {studies.name} is in {out}; check it: study verify {out}", highlight=False)
    if register is not None:
        place = f"models:/{register}@{alias}" if alias else f"models:/{register}/{told['version']}"
        console.print(f"registered: {place}", highlight=False)


@app.command()
def verify(
    folders: Annotated[list[Path], typer.Argument(help="Models' folders, as `study model` makes them.", metavar="DIR...")],
    trust: Annotated[
        Pairs,
        typer.Option(help="An experiment of a module of yours that may be imported; may be repeated.", metavar="MODULE:CLASS"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a model's folder: its files, and, rebuilt in a fresh process, its size, its answers, and its metrics, measured again.

    Nothing of the folder is unpickled or executed. Exit status 1 if anything is refused.
    """
    from rich.table import Table
    from rich.text import Text

    from trainables.verification import verify_models

    missing = [folder for folder in folders if not folder.is_dir()]
    if missing:
        raise UserError(
            f"a model's folder must exist, but {missing[0]} does not; make one with: study model NAME --knee --out DIR"
        )
    console = make_console()
    with console.status("rebuilding and measuring again"):
        found = verify_models(folders, trusted=trust or ())
    if as_json:
        print(json.dumps([verification.to_json() for verification in found], indent=2))
    for verification in [] if as_json else found:
        table = Table(title=f"{verification.folder} ({verification.experiment or 'no experiment'})", title_justify="left")
        for column in ("check", "outcome", "what was found"):
            table.add_column(column, overflow="fold")
        for name, outcome, told in verification.rows:
            table.add_row(name, Text(outcome, _COLORS[outcome]), told)
        console.print(table)
        how = "is what its passport says" if verification.is_sound else "is refused"
        console.print(f"{verification.folder} {how}", highlight=False)
    raise typer.Exit(0 if all(verification.is_sound for verification in found) else 1)
