"""The command `study serve`. Imports late, as `study.cli` does."""

from pathlib import Path
from typing import Annotated

import typer

from study.commands.life import app


@app.command()
def serve(
    host: Annotated[
        str, typer.Option(help="Where to listen; elsewhere than on this machine alone only with a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 for any that is free.")] = 8400,
    token_file: Annotated[
        Path | None, typer.Option(help="The token that requests must bear; by default $STUDY_TOKEN.", metavar="FILE")
    ] = None,
    spaces: Annotated[
        list[str] | None,
        typer.Option("--space", help="A space of your own that may be launched, too; may be repeated.", metavar="SPACE"),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="A Ray cluster that runs the trials: auto or host:port on a node of it; by default none.")
    ] = None,
) -> None:
    """Serve a page, and an API, to follow, launch, stop, resume and extend studies."""
    from study.home import Home
    from study.service.server import serve as run
    from study.service.settings import ServiceSettings, read_token
    from study.spec import load_space

    home = Home()
    settings = ServiceSettings(
        home=home.path, host=host, port=port, token=read_token(token_file), spaces=tuple(spaces or ()), address=address
    )
    home.prepare()
    for reference in settings.spaces:
        load_space(reference)  # a mistake is told now, and not to the first visitor
    run(settings, lambda line: print(line, flush=True))
