"""How long a search of many finished trials takes to start again, and in how much memory.

python tests/benchmarks/search_restart.py --trials 1000

Made-up trials with few and with many rows, each search taken up in a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import optuna
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
from searches import Driver, append_row, complete, planned_rows, tiny_search

from quarterhour.tune.machine import peak_memory_bytes

ROWS = (12, 100)


def write_trials(folder: Path, trials: int, n_rows: int) -> None:
    """A search of random points, with rows of which the last of each quarter has the objective."""
    search = tiny_search(folder, budget="steps:400", scheduler="asha")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for number in range(trials):
        spec = search.trial(number, search.config_of(search.space(study.ask())), "sampler")
        spec.write_config()
        row = planned_rows(spec)[-1]
        steps = sorted({*spec.config.budget.quarter_ends(), *range(1, 400, 400 // n_rows)})
        quarters = {row["step"]: row for row in planned_rows(spec)}
        for step in steps:
            append_row(spec, quarters.get(step, {"step": step, "train_loss": 5.0, "tokens": step}))
        complete(spec, row)


def start(folder: Path, trials: int) -> None:
    """Take a search up in this process, and print the seconds and the memory that takes."""
    before, begin = peak_memory_bytes_here(), time.perf_counter()
    driver = Driver(tiny_search(folder, budget="steps:400", scheduler="asha"), trials=trials + 1)
    taken_up = time.perf_counter()
    assert driver.next()
    print(json.dumps({
        "start": taken_up - begin,
        "next": time.perf_counter() - taken_up,
        "memory": peak_memory_bytes_here() - before,
    }))  # fmt: skip


def peak_memory_bytes_here() -> int:
    """The largest resident size of this process so far."""
    import torch

    return int(peak_memory_bytes(torch.device("cpu")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1_000)
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if asked.start:
        start(asked.start, asked.trials)
        return
    os.fsync = lambda _: None  # made-up trials may be lost
    table = Table("rows a trial", "start, s", "next trial, s", "memory, MB", box=None)
    for n_rows in ROWS:
        with tempfile.TemporaryDirectory() as folder:
            write_trials(Path(folder), asked.trials, n_rows)
            command = [sys.executable, __file__, "--trials", str(asked.trials), "--start", folder]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        taken = json.loads(done.stdout.splitlines()[-1])
        cells = f"{taken['start']:.1f}", f"{taken['next']:.2f}", f"{taken['memory'] / 1e6:.0f}"
        table.add_row(str(n_rows), *cells)
    Console().print(f"{asked.trials:,} finished trials:", table)


if __name__ == "__main__":
    main()
