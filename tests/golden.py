"""Rebuild the cases of a golden file, train them, and print how far this code is from them.

    python tests/golden.py FILE.json

Exit code 1 if a figure deviates by more than 1e-4, relative to the golden figure (absolute where
that is 0).
"""

import json
import sys
from pathlib import Path

import torch

from quarterhour.tune.training.golden import TOLERANCE, deviations, measure


def main(path: Path) -> float:
    """Print each case's largest deviation by figure; the largest of all."""
    worst = 0.0
    for number, case in enumerate(json.loads(path.read_text())):
        measured = measure(case["config"], torch.device("cpu"))
        for figure in case.keys() - {"config"}:
            largest = max(deviations(case[figure], measured[figure]))
            worst = max(worst, largest)
            print(f"case {number}  {figure:<22} {largest:.2e}")
    print(f"largest relative deviation {worst:.2e}, allowed {TOLERANCE:.0e}")
    return worst


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])) > TOLERANCE)
