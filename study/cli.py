"""The command `study`: parses, then calls; whatever is slow to import is imported by the command that needs it."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from study.errors import UserError

if TYPE_CHECKING:
    from study.query import Study, TrialRow
    from study.run import Outcome

app = typer.Typer(
    help="Hyperparameter studies of narrow AI: launch them, follow them, ask for the Pareto front, resume them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Name = Annotated[str, typer.Argument(help="The study's name.", metavar="NAME")]
TrackingUri = Annotated[str | None, typer.Option(help="MLflow's address; by default the one of the launch.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Trials = Annotated[int | None, typer.Option(help="Finished, stopped and failed trials in all; by default the space's number.")]
TimeBudget = Annotated[float | None, typer.Option(help="Stop after this many seconds; `study resume` goes on.")]
MaxConcurrent = Annotated[int | None, typer.Option(help="Trials at once; by default as many as fit.")]
Address = Annotated[str | None, typer.Option(help="A Ray cluster, host:port or auto; by default this machine.")]


@app.command()
def launch(
    space: Annotated[str, typer.Argument(help="What to search, as module:function; see `study spaces`.", metavar="SPACE")],
    name: Annotated[str, typer.Option(help="The study's name; one that exists goes on.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="An argument of the space, such as data_dir=FOLDER; may be repeated.", metavar="KEY=VALUE"),
    ] = None,
    trials: Trials = None,
    time_budget: TimeBudget = None,
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
    sampler: Annotated[str, typer.Option(help="tpe, nsga2, random, qmc or gp.")] = "tpe",
    max_concurrent: MaxConcurrent = None,
    deterministic: Annotated[
        bool, typer.Option(help="The same trials whichever worker is faster; needs --max-concurrent.", show_default=False)
    ] = False,
    cpus_per_trial: Annotated[float | None, typer.Option(help="By default what the space says.")] = None,
    gpus_per_trial: Annotated[float | None, typer.Option(help="Fractions share a GPU; by default what the space says.")] = None,
    address: Address = None,
    storage: Annotated[str | None, typer.Option(help="Folder or s3://... for checkpoints; by default in $STUDY_HOME.")] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow's address; by default a database in $STUDY_HOME.")] = None,
) -> None:
    """Run a study: search a space, trial by trial, and record everything in MLflow."""
    from study.run import launch as run

    _conclude(
        run(
            space,
            name=name,
            arguments=_arguments(settings or []),
            trials=trials,
            time_budget_s=time_budget,
            seed=seed,
            sampler=sampler,
            max_concurrent=max_concurrent,
            deterministic=deterministic,
            cpus_per_trial=cpus_per_trial,
            gpus_per_trial=gpus_per_trial,
            address=address,
            storage=storage,
            tracking_uri=tracking_uri,
            console=_console(),
        )
    )


def _arguments(settings: list[str]) -> dict[str, Any]:
    """Read KEY=VALUE: a JSON value where it is one, else text."""
    arguments: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not key or not equals:
            raise UserError(f"--set must be KEY=VALUE, but got {setting!r}; try data_dir=FOLDER")
        try:
            arguments[key] = json.loads(text)
        except ValueError:
            arguments[key] = text
    return arguments


@app.command()
def resume(
    name: Name,
    trials: Trials = None,
    time_budget: TimeBudget = None,
    max_concurrent: MaxConcurrent = None,
    address: Address = None,
) -> None:
    """Go on with a study: nothing that is done is done again."""
    _go_on(name, trials, time_budget, max_concurrent, address)


def _go_on(name: str, trials: int | None, time_budget: float | None, max_concurrent: int | None, address: str | None) -> None:
    from study.run import resume as run

    _conclude(
        run(
            name,
            trials=trials,
            time_budget_s=time_budget,
            max_concurrent=max_concurrent,
            address=address,
            console=_console(),
        )
    )


@app.command()
def extend(
    name: Name,
    trials: Annotated[int, typer.Option(help="The new budget: trials in all, more than before.")],
    time_budget: TimeBudget = None,
    max_concurrent: MaxConcurrent = None,
    address: Address = None,
) -> None:
    """Give a study more trials, also one that is finished: it goes on with all that it knows."""
    from study.life import check_extension

    check_extension(name, trials)
    _go_on(name, trials, time_budget, max_concurrent, address)


@app.command()
def stop(
    name: Name,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for it.")] = 300.0,
) -> None:
    """Stop a study that runs in another terminal: its trials save their work."""
    from study.life import stop as run

    console = _console()
    with console.status(f"waiting for the trials of {name} to save their work"):
        was_running = run(name, timeout_s=timeout)
    told = f"{name} has stopped; go on with: study resume {name}" if was_running else f"nobody runs {name}"
    console.print(told, highlight=False)


@app.command("list")
def list_studies(as_json: AsJson = False) -> None:
    """List the studies of this home."""
    from rich.table import Table

    from study.home import Home
    from study.spec import StudySpec

    home = Home()
    rows = []
    for folder in home.studies():
        spec = StudySpec.load(folder.spec_file)
        state = "running" if folder.holder() else "idle"
        rows.append({"study": spec.name, "space": spec.space, "trials": spec.num_trials, "state": state, "spec_hash": spec.hash})
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = Table(title=f"studies in {home.path}", title_justify="left")
    for column in ("study", "space", "trials", "state", "spec_hash"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(str, row.values()))
    _console().print(table if rows else f"no studies in {home.path} yet; try `study launch cmsp_curriculum:tiny --name first`")


@app.command()
def status(name: Name, tracking_uri: TrackingUri = None, as_json: AsJson = False) -> None:
    """Show how far a study is, and every trial with its state."""
    from rich.table import Table

    from study.report import short

    study = _open(name, tracking_uri)
    trials = study.trials()
    counts: dict[str, int] = {}
    for row in trials:
        counts[row.state] = counts.get(row.state, 0) + 1
    running = {True: "running", False: "idle", None: "unknown"}[study.is_running]
    if as_json:
        fields = {"study": name, "state": running, "num_trials": study.num_trials, "counts": counts}
        print(json.dumps(fields | {"trials": [_trial_fields(row) for row in trials]}, indent=2))
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
    console = _console()
    console.print(table)
    shown = ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "no trials yet"
    console.print(f"{name} ({study.tags['space']}, {running}): {shown}; budget {study.num_trials} trials", highlight=False)
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
        show(entries, _console())


@app.command()
def pareto(
    name: Name,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw it: front.png, .svg, .pdf, or front.html to explore.")] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Show the Pareto front: the trials, or their candidates, that no other beats in every objective."""
    from study import pictures, report

    study = _open(name, tracking_uri)
    front = study.front()
    if plot is not None:
        pictures.plot_front(study, front, plot)
    if as_json:
        print(json.dumps(front.to_json(), indent=2))
    elif as_csv:
        print(report.front_csv(front), end="")
    else:
        console = _console()
        console.print(report.front_table(front) if front.rows else f"the front of {name} is empty")
        console.print(report.summary(front), highlight=False)
        if plot is not None:
            console.print(f"plot: {plot}", highlight=False, soft_wrap=True)


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
    from study.report import candidates_table, short

    study = _open(name, tracking_uri)
    row, candidates = study.trial(number), study.candidates(number)
    drawn = [] if charts is None else _draw_charts(study, number, charts)
    try:
        log = study.log(number)
    except UserError as error:
        log = f"({error})"
    if as_json:
        models = [{"candidate": found.candidate, "metrics": found.metrics, "model_id": found.model_id} for found in candidates]
        print(json.dumps(_trial_fields(row) | {"candidates": models, "log": log}, indent=2))
        return
    console = _console()
    where = f"{row.attempts} attempt{'s'[: row.attempts > 1]}, on {row.host or 'no host yet'}, run {row.run_id}"
    console.print(f"[bold]{name} trial {number}[/bold]: {row.state}, {where}", highlight=False)
    for title, values in (("parameters", row.params), ("metrics", row.metrics)):
        console.print(f"[bold]{title}[/bold]")
        for key, value in values.items():
            console.print(f"  {key} = {short(value)}", markup=False, highlight=False)
    if candidates:
        console.print(candidates_table(candidates, study.objectives))
    if row.failure is not None:
        console.print(f"[bold]failed[/bold] ({row.failure.cause})")
        console.print(row.failure.traceback or row.failure.error, markup=False, highlight=False)
    if log:
        console.print("[bold]log[/bold]")
        console.print(log.rstrip(), markup=False, highlight=False)
    if charts is None and row.charts:
        shown = ", ".join(row.charts)
        console.print(f"charts: {shown}; draw them with: study trial {name} {number} --charts FOLDER", highlight=False)
    if charts is not None and not row.charts:
        console.print(f"trial {number} of {name} has no charts: its experiment offers none", highlight=False)
    for path in drawn:
        console.print(f"chart: {path}", markup=False, highlight=False, soft_wrap=True)


def _draw_charts(study: "Study", number: int, folder: Path) -> list[Path]:
    from study.charts import draw_into

    return [path for chart in study.charts(number) for path in draw_into(chart, folder)]


def _open(name: str, tracking_uri: str | None) -> "Study":
    from study.query import open_study

    return open_study(name, tracking_uri=tracking_uri)


def _trial_fields(row: "TrialRow") -> dict[str, Any]:
    failure = row.failure and {"cause": row.failure.cause, "error": row.failure.error, "traceback": row.failure.traceback}
    return {
        "trial": row.number,
        "state": row.state,
        "params": row.params,
        "metrics": row.metrics,
        "attempts": row.attempts,
        "host": row.host,
        "failure": failure,
        "charts": list(row.charts),
        "run_id": row.run_id,
    }


def _conclude(outcome: "Outcome") -> None:
    """Say how the session ended and what to do next; exit with its code."""
    console = _console()
    console.print(
        f"{outcome.name}: {outcome.num_finished} finished, {outcome.num_failed} failed of {outcome.num_trials} trials"
        + (f", {outcome.num_unfinished} to go on" if outcome.num_unfinished else ""),
        highlight=False,
    )
    if outcome.interrupted or outcome.time_is_up:
        console.print(f"go on with: study resume {outcome.name}", highlight=False)
    else:
        console.print(f"see: study pareto {outcome.name} --plot {outcome.name}.png", highlight=False)
    raise typer.Exit(outcome.exit_code)


def _console() -> Console:
    """A console whose lines are not folded when nobody looks."""
    console = Console()
    return console if console.is_terminal else Console(width=240)


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
