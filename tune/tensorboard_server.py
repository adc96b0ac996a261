"""TensorBoard on run folders, for as long as a person looks at them."""

import os
import shlex
import signal
import sys
import tempfile
import time
import webbrowser
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tensorboard.plugins.core.core_plugin import DEFAULT_PORT
from tensorboard.program import (
    TensorBoard,
    TensorBoardPortInUseError,
    TensorBoardServerException,
    WerkzeugServer,
)

# A new trial must show within 5 s; that is the default interval, and reading takes time too.
RELOAD_INTERVAL = ("--reload_interval", "2")
# Losses as they were measured: by default, TensorBoard smooths curves.
FIRST_VIEW = "?smoothing=0&tagFilter=loss"
PORTS_TRIED = 100
LAST_PORT = 65_535


def serve(
    folders: Sequence[Path], runs: Path, *, port: int | None, browser: bool, bind_all: bool
) -> None:
    """Show run folders, all of `runs` where none is given, until Ctrl-C or SIGTERM.

    Prints the address, on `port` or the next free one, and the `tensorboard` command that does the
    same. Raises ValueError for a folder that is not there and where no port is free.
    """
    for folder in folders or [runs]:
        if not folder.is_dir():
            raise ValueError(f"run folder {folder} does not exist: give one such as runs/grid")
    options = [*RELOAD_INTERVAL, *(["--bind_all"] if bind_all else [])]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _logdir(folders, runs) as (logdir, plain), suppress(KeyboardInterrupt):
        url = _launch(["--logdir", logdir, *options], DEFAULT_PORT if port is None else port)
        url += FIRST_VIEW
        print(f"TensorBoard at {url} until Ctrl-C")
        print(f"the same without quarterhour: {shlex.join(['tensorboard', *plain, *options])}")
        if bind_all:
            print("every machine that reaches this one can read it: there is no login")
        sys.stdout.flush()
        if browser:
            webbrowser.open(url)
        while True:  # signal.pause() would miss a signal that comes just before it
            time.sleep(1)


@contextmanager
def _logdir(folders: Sequence[Path], runs: Path) -> Generator[tuple[str, list[str]]]:
    """The folder to show, and TensorBoard's arguments for the same.

    Several run folders become one folder with links to them. With `--logdir_spec`, which is meant
    for that, TensorBoard does without its fast reader and needs a minute for 500 trials.
    """
    if not folders:
        yield str(runs), ["--logdir", str(runs)]
        return
    named = {folder.resolve().name: folder for folder in folders}
    if len(named) < len(folders):
        raise ValueError("two run folders have the same name: give a link to one of them")
    with tempfile.TemporaryDirectory(prefix="quarterhour") as links:
        for name, folder in named.items():
            os.symlink(folder.resolve(), f"{links}/{name}")
        # TensorBoard takes what is before the first colon for the name.
        spec = ",".join(f"{name.replace(':', '-')}:{path}" for name, path in named.items())
        yield links, ["--logdir_spec", spec]


def _launch(arguments: Sequence[str], port: int) -> str:
    """Start serving in a thread; the address."""
    board = TensorBoard(server_class=_at_next_free_port)
    board.configure(["", *arguments, "--port", str(port)])
    try:
        return board.launch()
    except TensorBoardServerException as error:
        raise ValueError(error.msg) from error


def _at_next_free_port(app: Any, flags: Any) -> WerkzeugServer:
    first = flags.port
    for port in range(first, min(first + PORTS_TRIED, LAST_PORT + 1)):
        flags.port = port
        try:
            return WerkzeugServer(app, flags)
        except TensorBoardPortInUseError:
            continue
    raise TensorBoardServerException(f"ports {first} to {flags.port} are taken: pass another")
