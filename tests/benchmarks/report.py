"""How long run folders take to read and to report on, and how large the page is.

    .venv/bin/python tests/benchmarks/report.py [TRIALS]

Writes a made-up search of so many trials with 104 rows each, and prints processor seconds: what a
machine with nothing else to do takes.
"""

import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from made_up import write_search

from quarterhour.analysis.runs import load_run


def main() -> None:
    """Print the figures."""
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    with tempfile.TemporaryDirectory() as folder:
        run_folder = write_search(Path(folder) / "search", trials, fresh=True)
        begin = time.process_time()
        run = load_run(run_folder)
        print(f"{len(run.trials)} trials, {len(run.rows):,} rows")
        print(f"read in {time.process_time() - begin:.1f} s")
        begin = time.process_time()
        from quarterhour.analysis.report import PAGE, write_report

        write_report([run], Path(folder) / "report")
        size = (Path(folder) / "report" / PAGE).stat().st_size
        print(f"reported in {time.process_time() - begin:.1f} s, {PAGE} {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
