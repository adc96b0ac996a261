"""The command line's entry point: all commands, and one line for bad input."""

import io
import sys

import typer

from quarterhour.tune.commands import analysis, doctor, search, tensorboard, train
from quarterhour.tune.run_folder import plain

app = typer.Typer(
    help="Hyperparameter search for quarter-hour pretraining runs of small language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for group in (train, tensorboard, doctor, search, analysis):
    app.add_typer(group.app)


def main() -> None:
    """Entry point: one line and exit code 2 for bad input."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # not every terminal can show every character
    try:
        sys.exit(app(standalone_mode=False))
    except typer.TyperException as error:
        print(f"quarterhour: {plain(error.format_message())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("quarterhour: stopped; the same command goes on from there", file=sys.stderr)
        sys.exit(130)
