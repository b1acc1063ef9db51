"""The command `study`: parses, then calls; whatever is slow to import is imported by the command that needs it."""

import dataclasses
import json
import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from study.commands import doctor, exchange, keep, logs, model, pareto, report, serve
from study.commands.life import app, make_console
from study.commands.options import AsJson, JobServerAddress, Name, Sampler, Settings, TrackingUri, read_arguments
from study.errors import UserError

if TYPE_CHECKING:
    from study.asking.query import Study
    from study.asking.trials import TrialRow

_WITH_COMMANDS = (pareto, model, report, exchange, keep, logs, serve, doctor)
"""Modules that add their commands to the app when they are imported."""


@app.command("list")
def list_studies(as_json: AsJson = False) -> None:
    """List the studies of this home."""
    from rich.table import Table

    from study.home import Home
    from study.remote.remembered import remote_studies
    from study.spec import StudySpec

    home = Home()
    rows, origins = [], []
    for folder in home.studies():
        spec = StudySpec.load(folder.spec_file)
        state = "running" if folder.holder() else "idle"
        row = {"study": spec.name, "space": spec.space, "trials": spec.num_trials, "state": state, "spec_hash": spec.hash}
        rows.append(row | {"parents": [dataclasses.asdict(parent) for parent in spec.parents]})
        origins.append(str(spec.parents[-1]) if spec.parents else "-")
    for remote in remote_studies(home):
        rows.append(dict.fromkeys(("study", "space", "trials", "state", "spec_hash"), "-"))
        rows[-1] |= {"study": remote.name, "space": remote.space or "-", "state": f"on {remote.address}", "parents": []}
        origins.append("-")
    for folder in home.imported():
        rows.append(dict.fromkeys(("study", "space", "trials", "state", "spec_hash"), "-"))
        rows[-1] |= {"study": folder.name, "state": "imported", "parents": []}
        origins.append("-")
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = Table(title=f"studies in {home.path}", title_justify="left")
    columns = ("study", "space", "trials", "state", "spec_hash")
    for column in (*columns, "forked from"):
        table.add_column(column, overflow="fold")
    for row, origin in zip(rows, origins, strict=True):
        table.add_row(*(str(row[column]) for column in columns), origin)
    make_console().print(
        table if rows else f"no studies in {home.path} yet; try `study launch cmsp_curriculum:tiny --name first`"
    )


@app.command()
def status(
    context: typer.Context,
    name: Name,
    tracking_uri: TrackingUri = None,
    address: JobServerAddress = None,
    as_json: AsJson = False,
) -> None:
    """Show how far a study is, and every trial with its state."""
    from rich.table import Table

    from study.remote.dispatch import ask_there, find_asked, job_state
    from study.reporting.report import repeated_work, short
    from study.running.ledger import spent_line

    remote = find_asked(name, address)
    if remote is not None and tracking_uri is None:
        if address is not None or remote.tracking_uri is None:
            raise typer.Exit(ask_there(context, remote, make_console()))
        tracking_uri = remote.tracking_uri  # its MLflow server answers sooner than a job
    try:
        study = _open(name, tracking_uri)
    except UserError:
        if remote is None or tracking_uri != remote.tracking_uri:
            raise
        raise typer.Exit(ask_there(context, remote, make_console())) from None  # only the cluster may reach that server
    trials = study.trials()
    counts: dict[str, int] = {}
    for row in trials:
        counts[row.state] = counts.get(row.state, 0) + 1
    running = {True: "running", False: "idle", None: "unknown"}[study.is_running]
    if as_json:
        fields = {"study": name, "state": running, "num_trials": study.num_trials, "counts": counts}
        fields["parents"] = [dataclasses.asdict(parent) for parent in study.parents]
        fields |= {"ledger": dataclasses.asdict(study.ledger), **study.slot}
        print(_json(fields | {"trials": [_trial_fields(row) for row in trials]}))
        return
    table = Table(title_justify="left")
    for column in ("trial", "state", "progress", *(o.metric for o in study.objectives), "attempts", "host"):
        table.add_column(column, justify="left" if column in ("state", "host") else "right", overflow="fold")
    for row in trials:
        state = row.state if row.failure is None else f"{row.state} ({row.failure.cause})"
        values = (short(row.metrics.get(o.metric, "-")) for o in study.objectives)
        table.add_row(
            str(row.number), state, f"{row.metrics.get('progress', 0):.0%}", *values, str(row.attempts), row.host or "-"
        )
    console = make_console()
    console.print(table)
    shown = ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "no trials yet"
    told = "; ".join(filter(None, (shown, f"budget {study.num_trials} trials", repeated_work(trials))))
    console.print(f"{name} ({study.tags['space']}, {running}): {told}", highlight=False)
    if spent := spent_line(study.ledger, **study.slot):
        console.print(spent, highlight=False)
    if remote is not None:
        console.print(job_state(remote), highlight=False)
    if study.parents:
        console.print(f"forked from {', from '.join(map(str, reversed(study.parents)))}", highlight=False)
    if study.is_running is False and sum(counts.get(state, 0) for state in ("finished", "failed", "stopped")) < study.num_trials:
        console.print(f"go on with: study resume {name}", highlight=False)


@app.command()
def spaces(as_json: AsJson = False) -> None:
    """List the experiments: their metrics with units and goals, and the spaces that search them."""
    from study.catalogue import catalogue, show

    entries = catalogue()
    if as_json:
        print(json.dumps(entries, indent=2))
    else:
        show(entries, make_console())


@app.command()
def trial(
    name: Name,
    number: Annotated[int, typer.Argument(help="The trial's number.", metavar="N")],
    charts: Annotated[
        Path | None, typer.Option(help="Draw its charts into this folder, each as .png and .html.", metavar="FOLDER")
    ] = None,
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
) -> None:
    """Show one trial: parameters, metrics, candidates, attempts, host, the cause of a failure, its log, its charts."""
    from rich.text import Text

    from study.reporting.report import candidates_table, repeated_work, short

    study = _open(name, tracking_uri)
    row, candidates = study.trial(number), study.candidates(number)
    drawn = [] if charts is None else _draw_charts(study, number, charts)
    try:
        log = study.log(number)
    except UserError as error:
        log = f"({error})"
    if as_json:
        models = [{"candidate": found.candidate, "metrics": found.metrics, "model_id": found.model_id} for found in candidates]
        print(_json(_trial_fields(row) | {"candidates": models, "log": log}))
        return
    console = make_console()
    where = f"{row.attempts} attempt{'s'[: row.attempts > 1]}, on {row.host or 'no host yet'}, run {row.run_id}"
    console.print(Text.assemble((f"{name} trial {number}", "bold"), f": {row.state}, {where}"))
    if repeated := repeated_work([row]):
        console.print(repeated, highlight=False)
    if row.stopped is not None:
        console.print(f"stopped early: {row.stopped}", markup=False, highlight=False)
    for title, values in (("parameters", row.params), ("metrics", row.metrics)):
        console.print(title, style="bold")
        for key, value in values.items():
            console.print(f"  {key} = {short(value)}", markup=False, highlight=False)
    if candidates:
        console.print(candidates_table(candidates, study.objectives))
    if row.failure is not None:
        console.print(Text.assemble(("failed", "bold"), f" ({row.failure.cause})"))
        console.print(row.failure.traceback or row.failure.error, markup=False, highlight=False)
    if log:
        console.print("log", style="bold")
        console.print(log.rstrip(), markup=False, highlight=False)
    if charts is None and row.charts:
        shown = ", ".join(row.charts)
        console.print(f"charts: {shown}; draw them with: study trial {name} {number} --charts FOLDER", highlight=False)
    if charts is not None and not row.charts:
        console.print(f"trial {number} of {name} has no charts: its experiment offers none", highlight=False)
    for path in drawn:
        console.print(f"chart: {path}", markup=False, highlight=False, soft_wrap=True)


def _draw_charts(study: "Study", number: int, folder: Path) -> list[Path]:
    from study.reporting.charts import draw_into

    return [path for chart in study.charts(number) for path in draw_into(chart, folder)]


@app.command()
def chaos(
    space: Annotated[str, typer.Argument(help="What to search, as module:function.", metavar="SPACE")],
    kills: Annotated[int, typer.Option(help="How many times something dies.")] = 20,
    seed: Annotated[int, typer.Option(help="Of what dies when.")] = 0,
    settings: Settings = None,
    trials: Annotated[int | None, typer.Option(help="By default twice the kills, or the space's number if larger.")] = None,
    sampler: Sampler = "tpe",
    max_concurrent: Annotated[int, typer.Option(help="Trials at once; several in the deterministic mode.")] = 1,
    keep: Annotated[bool, typer.Option("--keep", help="Leave both studies on disk.")] = False,
    as_json: AsJson = False,
) -> None:
    """Kill a small study again and again, and check that nothing is lost or done twice."""
    from study.chaos.chaos import run_chaos
    from study.chaos.sheet import sheet
    from study.spec import load_space

    num_trials = trials or max(2 * kills, load_space(space, arguments=read_arguments(settings))[0].num_trials)
    options = ["--trials", str(num_trials), "--sampler", sampler, "--max-concurrent", str(max_concurrent)]
    options += [f"--set={setting}" for setting in settings or []]
    command = [space, *options, *["--deterministic"] * (max_concurrent > 1)]
    console = make_console()
    say = (lambda _: None) if as_json else partial(console.print, markup=False, highlight=False)
    report = run_chaos(command, num_trials=num_trials, kills=kills, seed=seed, keep=keep, say=say)
    again = shlex.join(["study", "chaos", space, "--kills", str(kills), "--seed", str(seed), *options])
    if as_json:
        checks = [dataclasses.asdict(check) | {"holds": check.holds} for check in report.checks]
        print(json.dumps(dataclasses.asdict(report) | {"passed": report.passed, "checks": checks}, indent=2))
    else:
        console.print(sheet(report.checks))
        how = "nothing is lost, nothing is done twice" if report.passed else f"see {report.folder}; once more: {again}"
        console.print(f"{kills} kills, {report.num_launches} launches, {report.seconds:.0f} s: {how}", highlight=False)
    raise typer.Exit(0 if report.passed else 1)


def _json(fields: dict[str, Any]) -> str:
    """As text; what JSON lacks, in words."""
    from study.asking.trials import as_json

    return json.dumps(as_json(fields), indent=2)


def _open(name: str, tracking_uri: str | None) -> "Study":
    from study.asking.query import open_study

    return open_study(name, tracking_uri=tracking_uri)


def _trial_fields(row: "TrialRow") -> dict[str, Any]:
    failure = row.failure and {"cause": row.failure.cause, "error": row.failure.error, "traceback": row.failure.traceback}
    return {
        "trial": row.number,
        "state": row.state,
        "params": row.params,
        "metrics": row.metrics,
        "attempts": row.attempts,
        "repeated_steps": row.repeated_steps,
        "repeated_seconds": row.repeated_seconds,
        "ledger": row.ledger and dataclasses.asdict(row.ledger),
        "host": row.host,
        "failure": failure,
        "stopped": row.stopped,
        "charts": list(row.charts),
        "run_id": row.run_id,
    }


def main() -> None:
    """Run the command; a user's mistake is one sentence and exit status 2."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        app()
    except UserError as error:
        print(f"study: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
