"""How long a person waits for a command that trains nothing: --help, status, report.

python tests/benchmarks/startup.py [STARTS]

Medians of several starts on made-up runs: a search of 100 trials, and a grid of the six.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from made_up import write_grid, write_search


def seconds(*arguments: str) -> float:
    """Wall time of one start."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "quarterhour", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def main(starts: int) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        search = write_search(Path(folder) / "search", trials=100)
        grid = write_grid(Path(folder) / "grid")
        for name, *arguments in (
            ("--help", "--help"),
            ("status of 100 trials", "status", str(search)),
            ("report of the grid", "report", str(grid)),
        ):
            times = [seconds(*arguments) for _ in range(starts)]
            print(f"{name:<22} {statistics.median(times):.2f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
