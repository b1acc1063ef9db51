"""The commands that run a study through its life: launch, fork, resume, extend, stop. Imports late, as `study.cli` does."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from study.commands.options import (
    Address,
    CpuHours,
    Detach,
    Flops,
    GivenTrials,
    GpuHours,
    JobServerAddress,
    Keep,
    MaxConcurrent,
    Name,
    Pack,
    Replicates,
    ReplicatesOrParents,
    Sampler,
    SamplerOptions,
    SamplerOrParents,
    Settings,
    StopEarly,
    StopEarlyOrParents,
    TimeBudget,
    Trials,
    UntilFlat,
    UntilFlatOrBefore,
    WarmStart,
    read_arguments,
    read_given,
    read_limits,
    read_sampler_options,
)

if TYPE_CHECKING:
    from study.running.session import Outcome

app = typer.Typer(
    help="Hyperparameter studies of narrow AI: launch them, follow them, ask for the Pareto front, resume them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.command()
def launch(
    context: typer.Context,
    space: Annotated[str, typer.Argument(help="What to search, as module:function; see `study spaces`.", metavar="SPACE")],
    name: Annotated[str, typer.Option(help="The study's name; one that exists goes on.")],
    settings: Settings = None,
    trials: Trials = None,
    time_budget: TimeBudget = None,
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
    sampler: Sampler = "tpe",
    sampler_options: SamplerOptions = None,
    first: GivenTrials = None,
    warm_start: WarmStart = None,
    replicates: Replicates = 1,
    early_stopping: StopEarly = "none",
    cpu_hours: CpuHours = None,
    gpu_hours: GpuHours = None,
    flops: Flops = None,
    until_flat: UntilFlat = False,
    pack: Pack = None,
    max_concurrent: MaxConcurrent = None,
    deterministic: Annotated[
        bool, typer.Option(help="The same trials whichever worker is faster; needs --max-concurrent.", show_default=False)
    ] = False,
    cpus_per_trial: Annotated[float | None, typer.Option(help="By default what the space says.")] = None,
    gpus_per_trial: Annotated[float | None, typer.Option(help="Fractions share a GPU; by default what the space says.")] = None,
    address: Address = None,
    storage: Annotated[
        str | None, typer.Option(help="Folder or s3://... for checkpoints; by default $STUDY_STORAGE, or in $STUDY_HOME.")
    ] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow's address; by default $STUDY_TRACKING_URI, or a database in $STUDY_HOME.")
    ] = None,
    record: Annotated[
        str | None, typer.Option(help="postgresql://user@host/database for Optuna; by default $STUDY_RECORD, or a file.")
    ] = None,
    keep: Keep = None,
    detach: Detach = False,
) -> None:
    """Run a study: search a space, trial by trial, and record everything in MLflow.

    With --address http://head:8265 it is run on that cluster as a job, in the cluster's own study home and with its settings
    (STUDY_TRACKING_URI, STUDY_STORAGE, STUDY_RECORD): this machine's are not sent, only options are. The space's module and
    the Python files beside it travel, data does not. This machine may go: the study goes on.
    """
    _elsewhere(context, name)
    from study.run import launch as run

    _conclude(
        run(
            space,
            name=name,
            arguments=read_arguments(settings),
            trials=trials,
            time_budget_s=time_budget,
            seed=seed,
            sampler=sampler,
            sampler_options=read_sampler_options(sampler_options),
            given_trials=read_given(first),
            warm_start=warm_start or (),
            replicates=replicates,
            early_stopping=early_stopping,
            limits=read_limits(cpu_hours, gpu_hours, flops),
            until_flat=until_flat,
            pack=pack,
            max_concurrent=max_concurrent,
            deterministic=deterministic,
            cpus_per_trial=cpus_per_trial,
            gpus_per_trial=gpus_per_trial,
            address=address,
            storage=storage,
            tracking_uri=tracking_uri,
            record=record,
            keep=keep,
            console=make_console(),
        )
    )


@app.command()
def fork(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The parent's name.", metavar="NAME")],
    new: Annotated[str, typer.Argument(help="The fork's name; the same command again goes on with it.", metavar="NEW")],
    space: Annotated[str | None, typer.Option(help="Another space, as module:function.", metavar="SPACE")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="An argument of the space, merged over the parent's; may be repeated.", metavar="KEY=VALUE"),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Finished, stopped and failed trials of the fork in all.")] = None,
    time_budget: TimeBudget = None,
    seed: Annotated[int | None, typer.Option(help="Of the search.")] = None,
    sampler: SamplerOrParents = None,
    sampler_options: SamplerOptions = None,
    first: GivenTrials = None,
    warm_start: WarmStart = None,
    replicates: ReplicatesOrParents = None,
    early_stopping: StopEarlyOrParents = None,
    cpu_hours: CpuHours = None,
    gpu_hours: GpuHours = None,
    flops: Flops = None,
    until_flat: UntilFlatOrBefore = None,
    pack: Pack = None,
    max_concurrent: MaxConcurrent = None,
    deterministic: Annotated[
        bool | None, typer.Option(help="The same trials whichever worker is faster; needs --max-concurrent.")
    ] = None,
    cpus_per_trial: Annotated[float | None, typer.Option(help="CPUs of one trial.")] = None,
    gpus_per_trial: Annotated[float | None, typer.Option(help="GPUs of one trial; fractions share one.")] = None,
    address: Address = None,
    storage: Annotated[str | None, typer.Option(help="Folder or s3://... for checkpoints.")] = None,
    keep: Keep = None,
    detach: Detach = False,
) -> None:
    """Begin a study where another's search stands, with something changed: it keeps its parents.

    What is not given is the parent's; its space is taken as its code is now. The fork starts with no trials of its own: those
    of the parent stay the parent's, and the sampler does not hear of them.
    """
    _elsewhere(context, new, parent=name)
    from study.life import fork as run

    _conclude(
        run(
            name,
            new,
            space=space,
            arguments=read_arguments(settings),
            trials=trials,
            time_budget_s=time_budget,
            seed=seed,
            sampler=sampler,
            sampler_options=read_sampler_options(sampler_options) if sampler_options else None,
            given_trials=read_given(first) if first else None,
            warm_start=warm_start or None,
            replicates=replicates,
            early_stopping=early_stopping,
            limits=read_limits(cpu_hours, gpu_hours, flops),
            until_flat=until_flat,
            pack=pack,
            max_concurrent=max_concurrent,
            deterministic=deterministic,
            cpus_per_trial=cpus_per_trial,
            gpus_per_trial=gpus_per_trial,
            address=address,
            storage=storage,
            keep=keep,
            console=make_console(),
        )
    )


@app.command()
def resume(
    context: typer.Context,
    name: Name,
    trials: Trials = None,
    time_budget: TimeBudget = None,
    cpu_hours: CpuHours = None,
    gpu_hours: GpuHours = None,
    flops: Flops = None,
    until_flat: UntilFlatOrBefore = None,
    pack: Pack = None,
    max_concurrent: MaxConcurrent = None,
    address: Address = None,
    detach: Detach = False,
) -> None:
    """Go on with a study: nothing that is done is done again."""
    _elsewhere(context, name)
    from study.run import resume as run

    _conclude(
        run(
            name,
            trials=trials,
            time_budget_s=time_budget,
            limits=read_limits(cpu_hours, gpu_hours, flops),
            until_flat=until_flat,
            pack=pack,
            max_concurrent=max_concurrent,
            address=address,
            console=make_console(),
        )
    )


@app.command()
def extend(
    context: typer.Context,
    name: Name,
    trials: Annotated[int, typer.Option(help="The new budget: trials in all, more than before.")],
    time_budget: TimeBudget = None,
    max_concurrent: MaxConcurrent = None,
    address: Address = None,
    detach: Detach = False,
) -> None:
    """Give a study more trials, also one that is finished: it goes on with all that it knows."""
    _elsewhere(context, name)
    from study.life import check_extension
    from study.run import resume as run

    check_extension(name, trials)
    _conclude(
        run(
            name,
            trials=trials,
            time_budget_s=time_budget,
            max_concurrent=max_concurrent,
            address=address,
            console=make_console(),
        )
    )


@app.command()
def stop(
    context: typer.Context,
    name: Name,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for it.")] = 300.0,
    address: JobServerAddress = None,
) -> None:
    """Stop a study that runs in another terminal, in the background or on a cluster: its trials save their work."""
    from study.life import stop as run
    from study.remote.dispatch import ask_there, find_asked

    console = make_console()
    if (remote := find_asked(name, address)) is not None:
        raise typer.Exit(ask_there(context, remote, console))
    with console.status(f"waiting for the trials of {name} to save their work"):
        was_running = run(name, timeout_s=timeout)
    told = f"{name} has stopped; go on with: study resume {name}" if was_running else f"nobody runs {name}"
    console.print(told, highlight=False)


def _elsewhere(context: typer.Context, name: str, *, parent: str | None = None) -> None:
    """Run the command on a cluster, or in the background, if that is what its user wants; return if it is for this process."""
    from study.remote.dispatch import run_elsewhere

    code = run_elsewhere(context, name, make_console(), parent=parent)
    if code is not None:
        raise typer.Exit(code)


def _conclude(outcome: "Outcome") -> None:
    """Say how the session ended and what to do next; exit with its code."""
    console = make_console()
    stopped = f"{outcome.num_stopped} stopped early, " if outcome.num_stopped else ""
    console.print(
        f"{outcome.name}: {outcome.num_finished} finished, {stopped}{outcome.num_failed} failed of {outcome.num_trials} trials"
        + (f", {outcome.num_unfinished} to go on" if outcome.num_unfinished else ""),
        highlight=False,
    )
    if outcome.is_flat:
        console.print("it ended early: its front has stopped growing", highlight=False)
    if outcome.limit is not None:
        console.print(outcome.limit, highlight=False)
    elif outcome.interrupted or outcome.time_is_up:
        console.print(f"go on with: study resume {outcome.name}", highlight=False)
    else:
        console.print(f"see: study pareto {outcome.name} --plot {outcome.name}.png", highlight=False)
    raise typer.Exit(outcome.exit_code)


def make_console() -> Console:
    """A console whose lines are not folded when nobody looks, and that takes brackets for brackets: names may hold any."""
    console = Console(markup=False)
    return console if console.is_terminal else Console(width=240, markup=False)
