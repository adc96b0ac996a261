"""Which sampler and which rule of early stopping: simulated searches by 50 seeds each.

Differences are paired by seed, from the sampler and the rule that searches had before. Results stay
in the file given, and what is there is not simulated again:

    python tests/benchmarks/search_table/decide.py --results decisions.json
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from candidates import CANDIDATES
from ground import TABLE
from rich.console import Console
from rich.table import Table
from rules import RULES
from scipy import stats
from simulated import best_within, simulate, until_beaten
from surrogate import Surrogate, read_table

from quarterhour.data.files import write_text

SEEDS = 50
SAMPLER_BEFORE, RULE_NOW = "TPE, multivariate and grouped", "quarter, half; best half"
DEFAULT = "the default"

Results = dict[str, list[tuple[float, float]]]


def measured(surrogate: Surrogate, seed: int, sampler: str, rule: str) -> tuple[float, float]:
    """Whole trials until the best of the six is beaten, and the best loss within twelve."""
    mark, outcomes = simulate(surrogate, seed, CANDIDATES[sampler], RULES[rule])
    return until_beaten(mark, outcomes), best_within(mark, outcomes)


def with_interval(values: np.ndarray, sign: str = "") -> str:
    """Mean and half of its 95 % interval (Student's t)."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():{sign}.3f} ± {half:.3f}"


def table_of(results: Results, names: Sequence[str], before: str) -> Table:
    """One line for each choice."""
    table = Table("", "until beaten", "less before", "worst", "best loss", "less before")
    first = np.array(results[before])
    for name in names:
        until, best = np.array(results[name]).T
        table.add_row(
            name, with_interval(until), with_interval(until - first[:, 0], "+"),
            f"{until.max():.1f}", with_interval(best), with_interval(best - first[:, 1], "+"),
        )  # fmt: skip
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--results", type=Path, required=True)
    asked = parser.parse_args()
    results: Any = json.loads(asked.results.read_text()) if asked.results.exists() else {}
    surrogate = Surrogate(read_table(asked.table))
    samplers = {name: (name, RULE_NOW) for name in CANDIDATES}
    rules = {name: (DEFAULT, name) for name in RULES}
    for name, choice in (samplers | rules).items():
        if name not in results:
            results[name] = [measured(surrogate, seed, *choice) for seed in range(SEEDS)]
            write_text(asked.results, json.dumps(results))
            print(name, *np.mean(results[name], axis=0).round(3), flush=True)
    console = Console(width=140)
    console.print(table_of(results, [*samplers], SAMPLER_BEFORE))
    console.print(table_of(results, [*rules], RULE_NOW))


if __name__ == "__main__":
    main()
