"""The self-test of this machine: doctor."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from quarterhour.tune.commands import options
from quarterhour.tune.commands.answer import Answer
from quarterhour.tune.commands.console import PlainConsole

if TYPE_CHECKING:
    from quarterhour.tune.self_test import Check

app = typer.Typer()
VERDICTS = {None: "", True: "ok", False: "FAILED"}


@app.command(rich_help_panel=options.CHECK)
def doctor(runs: options.Runs = Path("runs"), _json: options.Json = False) -> Answer:
    """Test this machine in about a minute; exit code 1 if it fails in numbers, speed or memory."""
    from quarterhour.tune.self_test import run_checks

    console = PlainConsole()
    checks: list[Check] = []
    for check in run_checks(runs):
        checks.append(check)
        line = f"{VERDICTS[check.passed]:<6}  {check.name:<40}  {check.found}"
        limit = f" ({check.limit})" if check.limit else ""
        console.print(line + limit, markup=False, highlight=False)
    failed = sum(check.passed is False for check in checks)
    console.print(f"{failed} failed" if failed else "all is well")
    return Answer(exit_code=1 if failed else 0, fields={"checks": [*map(asdict, checks)]})
