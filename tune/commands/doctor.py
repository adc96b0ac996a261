"""The self-test of this machine: doctor."""

from pathlib import Path

import typer

from quarterhour.tune.commands import options
from quarterhour.tune.commands.console import PlainConsole

app = typer.Typer()
VERDICTS = {None: "", True: "ok", False: "FAILED"}


@app.command(rich_help_panel=options.CHECK)
def doctor(runs: options.Runs = Path("runs")) -> None:
    """Test this machine in about a minute; exit code 1 if it fails in numbers, speed or memory."""
    from quarterhour.tune.self_test import run_checks

    console = PlainConsole()
    failed = 0
    for check in run_checks(runs):
        failed += check.passed is False
        line = f"{VERDICTS[check.passed]:<6}  {check.name:<40}  {check.found}"
        limit = f" ({check.limit})" if check.limit else ""
        console.print(line + limit, markup=False, highlight=False)
    console.print(f"{failed} failed" if failed else "all is well")
    if failed:
        raise typer.Exit(1)
