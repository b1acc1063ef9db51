"""The command `study report`. Imports late, as `study.cli` does."""

from pathlib import Path
from typing import Annotated

import typer

from study.commands.life import app, make_console
from study.commands.options import Name, TrackingUri
from study.commands.pareto import Refresh, reading


@app.command()
def report(
    name: Name,
    out: Annotated[Path, typer.Option(help="Where the page goes.", metavar="FILE")] = Path("report.html"),
    publish: Annotated[bool, typer.Option(help="Keep it in MLflow, too, and tag what is on the front there.")] = True,
    tracking_uri: TrackingUri = None,
    refresh: Refresh = False,
) -> None:
    """Make one page of a study: its front, knee, curves, what matters, failures, spec. It needs no network."""
    from study.asking.query import open_study
    from study.reporting.report_page import make_report

    console = make_console()
    with reading(console) as progress:
        study = open_study(name, tracking_uri=tracking_uri, refresh=refresh, progress=progress)
    front = study.front()
    path = make_report(study, out, front)
    console.print(f"report: {path}", markup=False, highlight=False, soft_wrap=True)
    if not publish:
        return
    from study.reporting.report_publish import publish_report

    told = publish_report(study, front, path)
    where = f"in MLflow: {told.artifact} of run {told.run_id}"
    tags = f"{told.num_tagged} tags set and {told.num_untagged} taken from runs and models that are not on the front any more"
    console.print(f"{where}; {tags}", markup=False, highlight=False, soft_wrap=True)
    console.print("filter there with: tags.`narrow_study.front` = 'true'", markup=False, highlight=False, soft_wrap=True)
