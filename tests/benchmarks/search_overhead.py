"""What a search takes besides training: Tune, reporting, checkpoints, Optuna, on the quick profile.

python tests/benchmarks/search_overhead.py --trials 10

One trial at a time on all cores, so that the seconds of the trials and those between them add up.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from quarterhour.tune.run_reader import read_rows


@dataclass(frozen=True)
class Spent:
    """Seconds of one trial; `first_step` and `ended` are times of day."""

    training: float
    evaluating: float
    first_step: float
    ended: float


def results(folder: Path) -> list[Path]:
    """Results of the search's own trials, in their order."""
    return sorted(folder.glob("runs/one/[0-9]*/result.json"))


def spent_by(folder: Path) -> Spent:
    """What a trial's rows and the times of its files tell."""
    rows = read_rows(folder)
    first = rows[0]
    return Spent(
        training=rows[-1]["seconds"],
        evaluating=sum(row.get("eval_seconds", 0) for row in rows),
        first_step=written(folder) - first["seconds"] - first["eval_seconds"],
        ended=(folder / "result.json").stat().st_mtime,
    )


def written(folder: Path) -> float:
    """Time of day when the trial's first row was written."""
    events = EventFileLoader(str(next(folder.glob("events.out.*")))).Load()
    return next(event.wall_time for event in events if event.step == 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10)
    asked = parser.parse_args()
    quarterhour = str(Path(sys.executable).with_name("quarterhour"))
    cores = str(len(os.sched_getaffinity(0)))
    command = ["search", "--trials", str(asked.trials), "--cpus-per-trial", cores, "--name", "one"]
    with tempfile.TemporaryDirectory() as folder:
        begin = time.time()
        search = subprocess.Popen([quarterhour, *command, "--scheduler", "none"], cwd=folder)
        while search.poll() is None and len(ended := results(Path(folder))) < asked.trials:
            time.sleep(1)
        search.terminate()  # the trials with fresh seeds tell nothing more
        search.wait()
        trials = [spent_by(path.parent) for path in ended]
    training = sum(trial.training for trial in trials)
    evaluating = sum(trial.evaluating for trial in trials)
    wall = trials[-1].ended - trials[0].first_step
    starts = [b.first_step - a.ended for a, b in itertools.pairwise(trials)]
    besides = wall - training - evaluating
    table = Table("", "seconds", f"of training ({len(trials)} trials)", box=None)
    table.add_row("training", f"{training:.1f}", "")
    table.add_row("evaluations", f"{evaluating:.1f}", f"{evaluating / training:.1%}")
    table.add_row("Tune, rows, checkpoints, search", f"{besides:.1f}", f"{besides / training:.1%}")
    table.add_row(
        "  of which between trials", f"{sum(starts):.1f}", f"{sum(starts) / training:.1%}"
    )
    table.add_row(
        "end of a trial to the next one's first step, median",
        f"{statistics.median(starts):.2f}",
        "",
    )
    table.add_row("  the longest", f"{max(starts):.2f}", "")
    table.add_row(
        "command to the first trial's first step", f"{trials[0].first_step - begin:.1f}", ""
    )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
