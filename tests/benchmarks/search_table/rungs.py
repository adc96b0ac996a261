"""How well losses on the way tell the order at the end: Kendall's tau, from the table itself.

python tests/benchmarks/search_table/rungs.py
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from ground import TABLE
from rich.console import Console
from rich.table import Table
from scipy import stats
from surrogate import read_table

EARLY = [f"loss{eighth}" for eighth in range(1, 8)]
READOUTS = [*EARLY, "averaged2", "averaged4", "averaged6", "short"]
BEST_SHARE = 0.25


def taus(rows: pd.DataFrame) -> list[float]:
    """Kendall's tau of each readout with the final loss."""
    return [stats.kendalltau(rows[name], rows["loss8"]).statistic for name in READOUTS]


def within(rows: pd.DataFrame) -> list[float]:
    """The same among trials of one schedule, averaged by their pairs."""
    groups = [group for _, group in rows.groupby("optim.schedule") if len(group) > 1]
    pairs = [len(group) * (len(group) - 1) for group in groups]
    return np.average([taus(group) for group in groups], axis=0, weights=pairs).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, default=TABLE)
    rows = read_table(parser.parse_args().table)
    rows = rows[rows["seed"] == 0].copy()
    for name in READOUTS:
        rows[name] = rows[name].fillna(rows[name].max())
    best = rows[rows["loss8"] <= rows["loss8"].quantile(BEST_SHARE)]
    table = Table("rows", "n", *READOUTS)
    groups = {"all": rows, "best quarter": best}
    groups |= {f"{name}": group for name, group in rows.groupby("optim.schedule")}
    for name, group in groups.items():
        table.add_row(name, str(len(group)), *[f"{tau:.2f}" for tau in taus(group)])
    for name, group in {"all": rows, "best quarter": best}.items():
        table.add_row(f"{name}, within schedules", "", *[f"{tau:.2f}" for tau in within(group)])
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
