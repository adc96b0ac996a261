"""The command line's entry point: all commands, and one line for bad input."""

import io
import re
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any

import typer
from typer.core import TyperGroup

from quarterhour.tune.commands import (
    ablate,
    analysis,
    doctor,
    promote,
    search,
    tensorboard,
    train,
    use,
)
from quarterhour.tune.commands.answer import Answer, EndedError
from quarterhour.tune.foreign import plain

STOP_AGAIN_SECONDS = 0.1  # long enough for the hook to return on a busy machine


class Commands(TyperGroup):
    """All commands. Ctrl-C ends one with a line, for which typer has none."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stopped:
            line = "stopped; the same command goes on from there"
            raise EndedError(line, 130) from stopped


app = typer.Typer(
    cls=Commands,
    help="Hyperparameter search for quarter-hour pretraining runs of small language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # a sentence goes on in the next line of a docstring
)
for group in (train, ablate, promote, use, tensorboard, doctor, search, analysis):
    app.add_typer(group.app)


@contextmanager
def _no_stop_lost() -> Generator[None]:
    """Python drops what is raised in a finalizer or around a fork: a stop there comes again.

    While Ray starts, its own handler of SIGTERM raises SystemExit. The stop comes again by an
    alarm, which starts no thread: a stop that came back while one starts would be dropped too.
    """
    before = sys.unraisablehook

    def again(dropped: Any) -> None:
        if dropped.exc_type in (KeyboardInterrupt, SystemExit):
            signal.setitimer(signal.ITIMER_REAL, STOP_AGAIN_SECONDS)
        else:
            before(dropped)

    signal.signal(signal.SIGALRM, signal.default_int_handler)
    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before


def main() -> None:
    """Entry point. SIGTERM is as Ctrl-C. With --json, stdout has one object and nothing else."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # not every terminal can show every character
    stdout, words = sys.stdout, sys.argv[1:]
    with redirect_stdout(sys.stderr) if "--json" in words else nullcontext():
        answer = _answer()
    if answer.error:
        print(f"quarterhour: {answer.error}", file=sys.stderr)
    if "--json" in words:
        try:
            answer.write(next((word for word in words if word[:1] != "-"), None), stdout)
        except OSError as error:
            print(f"quarterhour: {plain(str(error))}", file=sys.stderr)
            sys.exit(answer.exit_code or 1)
    sys.exit(answer.exit_code)


def _answer() -> Answer:
    """Run the command: one line and exit code 2 for bad input.

    What the system refuses in the middle ends with one line and exit code 1.
    """
    try:
        # Of a variable that is not set: many an option would have its default, or mean the folder.
        if any(re.fullmatch("(--[a-z-]+=)?", argument) for argument in sys.argv[1:]):
            raise typer.TyperException("an argument is empty: leave it out, or give it a value")
        with _no_stop_lost():
            ended = app(standalone_mode=False)
    except EndedError as error:
        return Answer(exit_code=error.exit_code, error=plain(str(error)))
    except typer.TyperException as error:
        return Answer(exit_code=2, error=plain(error.format_message()))
    except OSError as error:  # such as a full disk, or none where the output goes
        return Answer(exit_code=1, error=plain(str(error)))
    return ended if isinstance(ended, Answer) else Answer(exit_code=ended or 0)
