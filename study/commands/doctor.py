"""The command `study doctor`: whether all that a study needs is there and well. Imports late, as `study.cli` does."""

import dataclasses
import json
from typing import Annotated

import typer

from study.commands.life import app, make_console
from study.commands.options import AsJson

_COLORS = {"ok": "green", "warning": "yellow", "broken": "red"}


@app.command()
def doctor(
    address: Annotated[str | None, typer.Option(help="A Ray cluster: host:port, auto, or http://head:8265.")] = None,
    storage: Annotated[str | None, typer.Option(help="By default $STUDY_STORAGE, or in $STUDY_HOME.")] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow's address; by default $STUDY_TRACKING_URI, or in $STUDY_HOME.")
    ] = None,
    record: Annotated[str | None, typer.Option(help="Optuna's database; by default $STUDY_RECORD, or a file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Look at packages, disks, GPUs, clocks, MLflow, the record, the storage and the cluster: a line each, with the remedy.

    Nothing of a study is touched. Exit status 1 if anything is broken.
    """
    from study.doctor import examine
    from study.examining.findings import BROKEN

    console = make_console()
    with console.status("looking at everything"):
        findings = examine(address=address, storage=storage, tracking_uri=tracking_uri, record=record)
    if as_json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            console.print(f"{finding.state:<8}", style=_COLORS[finding.state], end="")
            remedy = f"; {finding.remedy}" if finding.remedy else ""
            console.print(f"{finding.what}: {finding.found}{remedy}", highlight=False)
    raise typer.Exit(any(finding.state == BROKEN for finding in findings))
