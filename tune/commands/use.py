"""The commands that use a trained trial: export, sample."""

from pathlib import Path
from typing import Annotated

import typer

from quarterhour.tune.commands import options
from quarterhour.tune.commands.answer import Answer
from quarterhour.tune.commands.console import PlainConsole
from quarterhour.tune.foreign import plain

app = typer.Typer()

TrialFolder = Annotated[
    Path,
    typer.Argument(
        metavar="TRIAL", help="A trial's folder: runs/search/0014, runs/grid/high_lr/seed0."
    ),
]
SameTokenizer = Annotated[
    str | None,
    typer.Option("--tokenizer", help="Where the trial's tokenizer is now. Default: as then."),
]


@app.command(rich_help_panel=options.USE)
def export(
    trial: TrialFolder,
    folder: Annotated[Path, typer.Argument(help="A new folder to write.")],
    tokenizer: SameTokenizer = None,
    heldout: Annotated[
        bool,
        typer.Option(
            "--heldout",
            help="Write the held-out documents too, as a task of lm-evaluation-harness.",
        ),
    ] = False,
    _json: options.Json = False,
) -> Answer:
    """Write a trained trial as a folder that transformers loads, without a network or own code."""
    from quarterhour.analysis.model_card import model_card
    from quarterhour.analysis.runs import load_run
    from quarterhour.tune.trained import heldout_text, read_trained, write_for_transformers

    with options.bad_input(written_by=None):
        trained = read_trained(trial, tokenizer)
        spec, run = trained.past.spec, load_run(trained.past.run)
        text = heldout_text(trained) if heldout else None
    with options.bad_input(written_by="another FOLDER"):
        card = model_card(run, spec.name, spec.config.values(), trained.row, trained.past.command())
        write_for_transformers(trained, card, folder, text)
    PlainConsole().print(
        f"{folder} holds {spec.label} as transformers loads it; read its README.md"
    )
    return Answer(fields={"trial": trial, "folder": folder})


@app.command(rich_help_panel=options.USE)
def sample(
    trial: TrialFolder,
    prompt: Annotated[str, typer.Option(help="Text to continue.")],
    tokens: Annotated[int, typer.Option(min=1, help="How many tokens to write.")] = 100,
    temperature: Annotated[
        float, typer.Option(min=0, max=100, help="1 is the model's own; 0 takes the likeliest.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal text.")] = 0,
    tokenizer: SameTokenizer = None,
) -> None:
    """Let a trained trial continue a text, printed while it is written."""
    from quarterhour.tune.trained import read_trained

    with options.bad_input(written_by=None):
        trained = read_trained(trial, tokenizer)
        for piece in trained.writes(prompt, tokens=tokens, temperature=temperature, seed=seed):
            print(plain(piece), end="", flush=True)
    print()
