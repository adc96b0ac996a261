"""TensorBoard on run folders: tensorboard."""

from pathlib import Path
from typing import Annotated

import typer

from quarterhour.tune.commands import options

app = typer.Typer()


@app.command(rich_help_panel=options.LOOK)
def tensorboard(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN]…", help="Run folders. Default: all.")
    ] = None,
    runs: options.Runs = Path("runs"),
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65_535, help="Port to try first; the next free one is taken. Default: 6006."
        ),
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Open no browser.")] = False,
    bind_all: Annotated[
        bool, typer.Option("--bind-all", help="Let other machines in: there is no login.")
    ] = False,
) -> None:
    """Compare trials in TensorBoard, while they train or afterwards."""
    from quarterhour.tune.tensorboard_server import serve

    with options.bad_input(written_by=None):
        serve(folders or [], runs, port=port, browser=not no_browser, bind_all=bind_all)
