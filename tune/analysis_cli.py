"""The commands that tell what finished runs are worth: verify."""

import json
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from rich.console import Console

from analysis.runs import load_run
from analysis.verify import (
    Verdict,
    counts,
    render_cells,
    render_orderings,
    verify_cells,
    verify_orderings,
)
from tune.options import bad_input

app = typer.Typer()
TABLE_WIDTH = 100

RunFolder = Annotated[Path, typer.Argument(help="A run folder, such as runs/grid.")]


@app.command()
def verify(
    folder: RunFolder,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON in place of tables.")] = False,
) -> None:
    """Check a run against the published study, cell by cell; exit code 1 if a cell FAILED."""
    with bad_input():
        run = load_run(folder)
        cells, orderings = verify_cells(run), verify_orderings(run)
    is_setting = cells["setting"]
    parts = {
        "settings": cells.loc[is_setting.to_numpy()],
        "cells": cells.loc[~is_setting.to_numpy()],
        "claims": orderings,
    }
    number_of = {name: counts(part) for name, part in parts.items()}
    if json_:
        tables = {name: _records(part) for name, part in parts.items()}
        print(json.dumps({"run": str(folder), "counts": number_of} | tables, indent=2))
    else:
        console = Console()
        wide = Console(width=max(TABLE_WIDTH, console.width))
        wide.print(render_cells(cells), render_orderings(orderings))
        for name, part in parts.items():
            summary = ", ".join(f"{n} {verdict}" for verdict, n in number_of[name].items() if n)
            wide.print(f"{len(part)} {name}: {summary}", highlight=False)
    failed = sum(number[Verdict.FAILED] for number in number_of.values())
    raise typer.Exit(1 if failed else 0)


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for JSON, unrounded, with null for NaN."""
    text: Any = table.to_json(orient="records", double_precision=15)
    return json.loads(text)
