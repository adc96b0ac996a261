"""Which sampler a search should have: simulated searches of every candidate, by 50 seeds.

python tests/benchmarks/search_table/decide.py
"""

import argparse
import time
from functools import cache
from pathlib import Path

import numpy as np
from candidates import CANDIDATES
from ground import TABLE
from rules import RULES
from scipy import stats
from simulated import best_within, simulate, until_beaten
from surrogate import Surrogate, read_table


@cache
def surrogate(path: Path) -> Surrogate:
    return Surrogate(read_table(path))


def measured(path: Path, seed: int, name: str) -> tuple[float, float]:
    """Whole trials until the best of the six is beaten, and the best loss within twelve."""
    sampler, _, rule = name.partition(" | ")
    mark, outcomes = simulate(surrogate(path), seed, CANDIDATES[sampler], RULES.get(rule))
    return until_beaten(mark, outcomes), best_within(mark, outcomes)


def half_interval(values: np.ndarray) -> float:
    """Half of the mean's 95 % interval (Student's t)."""
    return stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--only", nargs="*", default=list(CANDIDATES))
    asked = parser.parse_args()
    surrogate(asked.table)
    results: dict[str, np.ndarray] = {}
    for name in asked.only:
        begin = time.time()
        results[name] = np.array([measured(asked.table, seed, name) for seed in range(asked.seeds)])
        until, best = results[name].T
        first = results[asked.only[0]]
        d = results[name] - first
        print(
            f"{name:32} until {until.mean():5.2f} ± {half_interval(until):.2f} worst {until.max():5.2f} n12 {(until >= 12).sum():2d}  best {best.mean():.3f} ± {half_interval(best):.3f}   less first: {d[:, 0].mean():+.2f} ± {half_interval(d[:, 0]):.2f}  {d[:, 1].mean():+.3f} ± {half_interval(d[:, 1]):.3f}  ({time.time() - begin:.0f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
