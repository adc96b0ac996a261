"""The commands that judge finished runs and show them: verify, report."""

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quarterhour.tune.commands import options
from quarterhour.tune.commands.answer import Answer, records
from quarterhour.tune.commands.console import PlainConsole
from quarterhour.tune.foreign import plain

if TYPE_CHECKING:
    import pandas as pd

    from quarterhour.analysis.runs import Run

app = typer.Typer()

RunFolder = Annotated[Path, typer.Argument(help="A run folder, such as runs/grid.")]


@app.command(rich_help_panel=options.CHECK)
def verify(
    folder: RunFolder,
    _json: options.Json = False,
) -> Answer:
    """Check a run against the published study, cell by cell; exit code 1 if a cell FAILED."""
    from quarterhour.analysis.chapters.verify import Verdict, counts, verify_cells, verify_orderings
    from quarterhour.analysis.runs import load_run

    with options.bad_input(written_by=None):
        run = load_run(folder)
        cells, orderings = verify_cells(run), verify_orderings(run)
    is_setting = cells["setting"].to_numpy()
    parts = {
        "settings": cells.loc[is_setting],
        "cells": cells.loc[~is_setting],
        "claims": orderings,
    }
    number_of = {name: counts(part) for name, part in parts.items()}
    _print_verdicts(run, cells, orderings, number_of)
    failed = sum(number[Verdict.FAILED] for number in number_of.values())
    tables = {name: records(part) for name, part in parts.items()}
    fields = {"run": folder, "counts": number_of} | tables
    return Answer(exit_code=1 if failed else 0, fields=fields)


def _print_verdicts(
    run: "Run",
    cells: "pd.DataFrame",
    orderings: "pd.DataFrame",
    number_of: Mapping[str, Mapping[str, int]],
) -> None:
    from quarterhour.analysis.chapters.paper.published import differences
    from quarterhour.analysis.chapters.verify import Verdict
    from quarterhour.analysis.terminal import cells_table, orderings_table

    console = PlainConsole()
    for name, numbers in number_of.items():
        summary = ", ".join(f"{n} {verdict}" for verdict, n in numbers.items() if n)
        console.print(f"{sum(numbers.values())} {name}: {summary}", highlight=False)
    measured = {*cells.loc[~cells["setting"], "status"], *orderings["status"]}
    if measured <= {Verdict.MISSING, Verdict.NOT_COMPARABLE}:
        reasons = "; ".join(differences(run).values()) or "its measures are not there yet"
        console.print(
            f"nothing measured in this run is comparable with the study: {reasons}", highlight=False
        )
    console.print("", cells_table(cells), orderings_table(orderings))


@app.command(rich_help_panel=options.LOOK)
def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN…", help="Run folders, such as runs/grid.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write: new, or an earlier report. Default: report in the first RUN."
        ),
    ] = None,
    _json: options.Json = False,
) -> Answer:
    """Write tables (csv, md, tex), figures (svg, png) and report.html, a page in a single file.

    A run may be a search, or unfinished. Several runs make one report with a chapter for each. An
    earlier report in the same place is replaced.
    """
    gc.set_threshold(100_000)  # what a report makes lives to its end: looking for waste takes long
    from quarterhour.analysis.report import PAGE, write_report
    from quarterhour.analysis.runs import load_run
    from quarterhour.data.files import write_folder

    with options.bad_input(written_by=None):
        runs = [load_run(folder) for folder in folders]
    target = output or folders[0] / "report"
    with options.bad_input(written_by="--output"):
        _check_replaceable(target)
        write_folder(target, lambda folder: write_report(runs, folder))
    print(f"report in {plain(str(target / PAGE))}")
    return Answer(fields={"runs": folders, "page": target / PAGE})


def _check_replaceable(folder: Path) -> None:
    """Raises ValueError where anything but a report would be lost."""
    from quarterhour.analysis.report import CONTENTS

    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {folder} is a file: give a folder")
    others = sorted({path.name for path in folder.glob("*")} - CONTENTS)
    if others:
        raise ValueError(
            f"{folder} holds more than a report, such as {others[0]}, and would be replaced: give a"
            " new folder with --output"
        )
