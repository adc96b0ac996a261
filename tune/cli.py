"""The command line's entry point: all commands, and one line for bad input."""

import io
import os
import re
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from quarterhour.tune.commands import analysis, doctor, search, tensorboard, train, use
from quarterhour.tune.foreign import plain


class Commands(TyperGroup):
    """All commands. Ctrl-C ends one with a line, for which typer has none."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stopped:
            print("quarterhour: stopped; the same command goes on from there", file=sys.stderr)
            raise typer.Exit(130) from stopped


app = typer.Typer(
    cls=Commands,
    help="Hyperparameter search for quarter-hour pretraining runs of small language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # a sentence goes on in the next line of a docstring
)
for group in (train, use, tensorboard, doctor, search, analysis):
    app.add_typer(group.app)


@contextmanager
def _no_stop_lost() -> Generator[None]:
    """Python drops what is raised in a finalizer or around a fork: a stop there comes again."""
    before = sys.unraisablehook

    def again(dropped: Any) -> None:
        if dropped.exc_type is KeyboardInterrupt:
            threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGTERM)).start()
        else:
            before(dropped)

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before


def main() -> None:
    """Entry point: one line and exit code 2 for bad input. SIGTERM is as Ctrl-C.

    What the system refuses in the middle ends with one line and exit code 1.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # not every terminal can show every character
    try:
        # Of a variable that is not set: many an option would have its default, or mean the folder.
        if any(re.fullmatch("(--[a-z-]+=)?", argument) for argument in sys.argv[1:]):
            raise typer.TyperException("an argument is empty: leave it out, or give it a value")
        with _no_stop_lost():
            sys.exit(app(standalone_mode=False))
    except typer.TyperException as error:
        print(f"quarterhour: {plain(error.format_message())}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # such as a full disk, or none where the output goes
        print(f"quarterhour: {plain(str(error))}", file=sys.stderr)
        sys.exit(1)
