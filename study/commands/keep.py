"""The commands about bytes: du, gc, delete. Imports late, as `study.cli` does."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from study.commands.life import app, make_console
from study.commands.options import AsJson, Keep, Name

if TYPE_CHECKING:
    from study.keeping.cleaning import Sweep

Names = Annotated[list[str] | None, typer.Argument(help="Studies; by default every one of this home.", metavar="NAME...")]


@app.command()
def du(names: Names = None, as_json: AsJson = False) -> None:
    """Show how many bytes each study is, and what they are."""
    from rich.table import Table

    from study.home import Home
    from study.keeping import disk

    home = Home()
    found = [disk.usage(home.study(name)) for name in names or [folder.name for folder in (*home.studies(), *home.imported())]]
    database = disk.database_bytes(home)
    total = sum(usage.total for usage in found) + database
    if as_json:
        print(json.dumps({"studies": [u.to_json() for u in found], "mlflow_database": database, "total": total}, indent=2))
        return
    table = Table(title=f"studies in {home.path}", title_justify="left")
    kinds = [kind for kind in disk.KINDS if any(usage.num_bytes[kind] for usage in found)]
    for column in ("study", *(kind.replace("_", " ") for kind in kinds), "all", "models dropped"):
        table.add_column(column, justify="left" if column == "study" else "right", overflow="fold")
    for usage in found:
        shown = [disk.shown(usage.num_bytes[kind]) for kind in kinds]
        table.add_row(usage.study, *shown, disk.shown(usage.total), str(usage.num_dropped or "-"))
    console = make_console()
    console.print(table if found else f"no studies in {home.path} yet")
    console.print(f"with MLflow's database ({disk.shown(database)}): {disk.shown(total)}", highlight=False)


@app.command()
def gc(
    names: Names = None,
    keep: Keep = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Clear away what studies need not keep: checkpoints and copies of trials that have ended, models far from the front."""
    from study.home import Home
    from study.keeping.cleaning import sweep

    running = [] if names else [folder.name for folder in Home().studies() if folder.holder()]
    chosen = names or [folder.name for folder in Home().studies() if folder.name not in running]
    found: list[Sweep] = []
    try:
        for name in chosen:
            found.append(sweep(name, keep=keep, dry_run=dry_run))
    finally:  # one that is refused hides none that went before it
        _tell_of_sweeps(found, running, dry_run=dry_run, as_json=as_json)


def _tell_of_sweeps(found: "list[Sweep]", running: list[str], *, dry_run: bool, as_json: bool) -> None:
    from study.home import Home
    from study.keeping import disk

    if as_json:
        total = sum(one.total for one in found)
        print(json.dumps({"dry_run": dry_run, "studies": [one.to_json() for one in found], "total": total}, indent=2))
        return
    console = make_console()
    for name in running:
        console.print(f"{name}: is running, left as it is", highlight=False)
    for one in found:
        if Home().study(one.study).is_imported:
            console.print(f"{one.study}: was imported, and is nothing but rows in MLflow", highlight=False)
            continue
        kinds = [f"{kind.replace('_', ' ')} {disk.shown(num)}" for kind, num in one.num_bytes.items() if num]
        what = f"{', '.join(kinds)}; {one.num_models} models" if kinds else "nothing"
        console.print(f"{one.study}: {'would go' if dry_run else 'gone'}: {disk.shown(one.total)} ({what})", highlight=False)


@app.command()
def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Really.")] = False,
) -> None:
    """Delete a study: its files, its experiment in MLflow, its record. Nothing brings it back."""
    from study.errors import UserError
    from study.home import Home
    from study.keeping import disk
    from study.keeping.deleting import delete as run

    folder = Home().study(name)
    if not yes:
        usage = disk.usage(folder)
        raise UserError(
            f"a study is deleted for ever, so `study delete {name}` needs --yes; {disk.shown(usage.total)} would go: "
            f"{usage.num_models} models and all that MLflow and {folder.path} have of it"
        )
    notice = run(name)
    console = make_console()
    console.print(f"{name} is deleted", highlight=False)
    if notice:
        console.print(notice, highlight=False, markup=False)
