"""A run against the study, cell by cell of its tables, and ordering by ordering."""

from collections.abc import Mapping
from enum import StrEnum
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd

from quarterhour.analysis import formats, statistics
from quarterhour.analysis.chapters.paper import published
from quarterhour.analysis.chapters.paper.comparison import TABLE_COLUMNS, unfinished_notes
from quarterhour.analysis.chapters.paper.tables import TABLES
from quarterhour.analysis.measures import counted_trials, summarise
from quarterhour.analysis.runs import Run
from quarterhour.analysis.sections import Section, Table
from quarterhour.tune.run_folder import TRIAL

# A single seed has no spread: its figure may be off by this share of itself.
RELATIVE_TOLERANCE = 0.05
# By chance, one of 20 cells lies just outside its own 95 % interval: that alone refutes nothing.
DRIFT_WIDTHS = 2
RULE = (
    "REPRODUCED: the paper's figure lies between. DRIFT: it is off from ours by up to twice as"
    " much."
)


class Verdict(StrEnum):
    """What has become of a cell, or an ordering, of the study in a run."""

    REPRODUCED = "REPRODUCED"
    DRIFT = "DRIFT"
    FAILED = "FAILED"
    MISSING = "MISSING"
    NOT_COMPARABLE = "NOT COMPARABLE"


BEST = {
    ("performance", "train_loss_last"): "lowest",
    ("performance", "accuracy"): "highest",
    ("top5", "final_top5"): "highest",
    ("normalized", "loss_per_million_tokens"): "lowest",
    ("efficiency", "steps_per_second"): "highest",
    ("validation", "final_val_loss"): "lowest",
}
"""The figures by which the study ranks the six, by table and column, and which value is best."""

_Judged = tuple[float, float, str, Verdict, str]  # low, high, tolerance, status, reason


def verify_cells(run: Run) -> pd.DataFrame:
    """Every cell of the published tables: the `published` figure, `ours` (mean of `n` seeds), and
    what became of it (`status`, `reason`). `tolerance` says what `low` and `high` are.

    REPRODUCED: the published single run lies within the 95 % prediction interval of our seeds, or
    within 5 % of ours where there is one seed. Half a unit of the last printed digit is allowed
    besides. DRIFT: it lies within twice that width. FAILED: it lies further off, or all our trials
    diverged. MISSING: we have no figure (yet). NOT COMPARABLE: the run, or what was measured, is
    another, and `reason` says how. A `setting` is compared exactly. Raises ValueError for a run
    with none of the six configurations.
    """
    six = published.SIX
    if not published.has_studied(run):
        raise ValueError(
            f"{run.folder} has none of the study's configurations ({', '.join(six)}): give a run"
            " that `quarterhour grid` or `quarterhour run` has written"
        )
    own = {name: "; ".join(published.differences(run, name).values()) for name in six}
    cells = judge_cells(summarise(run), own, published.COLUMN_REASONS, RELATIVE_TOLERANCE)
    notes = unfinished_notes(run).to_dict()
    diverged: dict[Any, Any] = run.trials.groupby("configuration")["diverged"].all().to_dict()
    told = pd.Series([notes.get(name, "") for name in cells["configuration"]])
    cells["reason"] = cells["reason"].where(cells["setting"] | (cells["reason"] != ""), told)
    for row in np.flatnonzero(cells["status"] == Verdict.MISSING):
        name = cells.at[row, "configuration"]
        known = notes.get(name, "no row has it")
        cells.at[row, "reason"] = known if name in diverged else "not in this run"
        if diverged.get(name):
            cells.at[row, "status"] = Verdict.FAILED
    return cells


def judge_cells(
    summary: pd.DataFrame, differing: Mapping[str, str], columns: Mapping[str, str], within: float
) -> pd.DataFrame:
    """`verify_cells` of a summary as `measures.summarise` makes it.

    `differing` says by configuration, and `columns` by column, why it is not comparable. `within`
    is the relative tolerance of a single seed; with 0 it must give what is printed, to the digit.
    """
    rows: list[tuple[Any, ...]] = []
    for name, printed in published.tables().items():
        by_seed = _by_seed(summary, name)
        for configuration, column in product(printed.index, printed.columns):
            values = by_seed.get((configuration, column), [])
            theirs = printed.at[configuration, column]
            if setting := TABLE_COLUMNS[column].setting:
                judged = _judge_setting(values, theirs, column)
            else:
                reasons = filter(None, (differing.get(configuration), columns.get(column)))
                judged = _judge(values, theirs, column, "; ".join(reasons), within)
            ours = float(np.mean(values)) if _known(values) else np.nan
            place = (name, configuration, column, setting)
            rows.append((*place, theirs, pd.notna(values).sum(), ours, *judged))
    names = ["table", "configuration", "column", "setting", "published", "n", "ours"]
    return pd.DataFrame(rows, columns=[*names, "low", "high", "tolerance", "status", "reason"])


def _by_seed(summary: pd.DataFrame, table: str) -> dict[tuple[str, str], list[float]]:
    """The table's figures by configuration and column, one for each seed that counts."""
    trials = counted_trials(summary).set_index(TRIAL).sort_index()
    return {
        (str(configuration), str(column)): list(of_seeds)
        for column, figures in TABLES[table][1](trials).items()
        for configuration, of_seeds in figures.groupby("configuration")
    }


def _known(values: list[Any]) -> bool:
    return len(values) > 0 and all(isinstance(v, float | int) and np.isfinite(v) for v in values)


def _judge_setting(values: list[float], printed: float, column: str) -> _Judged:
    if not _known(values):
        return np.nan, np.nan, "", Verdict.MISSING, ""
    decimals = TABLE_COLUMNS[column].decimals
    if all(format(value, decimals) == format(printed, decimals) for value in values):
        return np.nan, np.nan, "exact", Verdict.REPRODUCED, ""
    reason = "a setting that is another in this run"
    return np.nan, np.nan, "exact", Verdict.NOT_COMPARABLE, reason


def _judge(
    values: list[float], printed: Any, column: str, reason: str, relative_tolerance: float
) -> _Judged:
    if reason:
        return np.nan, np.nan, "", Verdict.NOT_COMPARABLE, reason
    if not _known(values):
        return np.nan, np.nan, "", Verdict.MISSING, ""
    n, mean, low, high = statistics.prediction_interval(values)
    tolerance = f"95 % prediction interval of {n} seeds"
    if n == 1:
        width = relative_tolerance * abs(mean)
        low, high = mean - width, mean + width
        tolerance = f"±{100 * relative_tolerance:g} %, one seed"
    half_a_digit = 10.0 ** -int(TABLE_COLUMNS[column].decimals.strip(",.f")) / 2
    off = abs(mean - printed) - half_a_digit - statistics.ROUNDING * abs(mean)
    status = Verdict.FAILED
    if off <= high - mean:
        status = Verdict.REPRODUCED
    elif off <= DRIFT_WIDTHS * (high - mean):
        status = Verdict.DRIFT
    return low, high, tolerance, status, ""


def verify_orderings(run: Run) -> pd.DataFrame:
    """Each figure by which the study ranks the six makes two claims: their `order`, and the best.

    `correlation` (Spearman's, with `low` and `high`) is that of our means with the published
    figures over `n` configurations; it is told also where the run is not comparable. REPRODUCED:
    ours is the same. DRIFT: ours is another, but only between configurations that tie, by Welch's
    test with Holm's correction or, with one seed, within 5 %. FAILED: ours is another by more.
    """
    own = "; ".join(published.differences(run).values())
    rows: list[dict[str, Any]] = []
    for (table, column), best in BEST.items():
        printed: dict[str, float] = published.tables()[table][column].to_dict()
        by_seed = _by_seed(summarise(run), table)
        values = {name: by_seed.get((name, column), []) for name in printed}
        values = {name: seeds for name, seeds in values.items() if _known(seeds)}
        means = [float(np.mean(seeds)) for seeds in values.values()]
        n, rho, low, high = statistics.spearman([printed[name] for name in values], means)
        reason = "; ".join(filter(None, (own, published.COLUMN_REASONS.get(column))))
        judged = {"n": n, "correlation": rho, "low": low, "high": high, "reason": reason}
        for claim in _claims(printed, values, best, is_comparable=not reason):
            rows.append({"table": table, "column": column} | claim | judged)
    return pd.DataFrame(rows)


def _claims(
    printed: dict[str, float], seeds: dict[str, list[float]], best: str, *, is_comparable: bool
) -> list[dict[str, str]]:
    """The study's order and best, ours, and what became of each claim."""
    is_reversed = best == "highest"
    theirs = sorted(printed, key=lambda name: printed[name], reverse=is_reversed)
    ours = sorted(seeds, key=lambda name: np.mean(seeds[name]), reverse=is_reversed)
    if not is_comparable:
        of_order = of_best = Verdict.NOT_COMPARABLE
    elif len(ours) < len(theirs):
        of_order = of_best = Verdict.MISSING
    else:
        place = ours.index
        swapped = [(a, b) for a, b in combinations(theirs, 2) if place(a) > place(b)]
        of_order = _verdict_of_swaps(swapped, seeds, best)
        of_best = _verdict_of_swaps([p for p in swapped if p == (theirs[0], ours[0])], seeds, best)
    order = {"published": ", ".join(theirs), "ours": ", ".join(ours), "status": of_order}
    first = {"published": theirs[0], "ours": next(iter(ours), ""), "status": of_best}
    return [{"claim": "order"} | order, {"claim": "best"} | first]


def _verdict_of_swaps(
    swapped: list[tuple[str, str]], seeds: dict[str, list[float]], best: str
) -> Verdict:
    """The verdict on pairs that stand the other way round in the study; ties may stand either way.

    With a single seed, two configurations tie within the relative tolerance.
    """
    if not swapped:
        return Verdict.REPRODUCED
    pairs = statistics.pairwise_differences(seeds, best=best)
    ties = pairs.loc[pairs["verdict"] == "tie", ["one", "other"]]
    tied = {frozenset(pair) for pair in ties.to_numpy()}
    for one, other in swapped:
        off = abs(np.mean(seeds[one]) - np.mean(seeds[other]))
        one_seed = min(len(seeds[one]), len(seeds[other])) == 1
        alike = one_seed and off <= RELATIVE_TOLERANCE * abs(np.mean(seeds[one]))
        if not alike and frozenset((one, other)) not in tied:
            return Verdict.FAILED
    return Verdict.DRIFT


def cells_table(run: Run) -> Table:
    """The figures of the paper's tables that can be judged, with the verdicts on them; why the
    others cannot stands below."""
    cells = verify_cells(run)
    judged: Any = cells.loc[(cells["status"] != Verdict.NOT_COMPARABLE) & ~cells["setting"]]
    rows = judged.to_dict("records")
    shown = {
        "cell": [f"{row['configuration']}, {TABLE_COLUMNS[row['column']].header}" for row in rows],
        "verdict": judged["status"],
        "paper": judged["published"],
        **{name: judged[name] for name in ("ours", "low", "high", "n")},
        "table": [TABLES[row["table"]][0] for row in rows],
        "reason": judged["reason"],
    }
    tolerances = filter(None, judged["tolerance"].unique())
    bounds = f"low to high: {'; '.join(tolerances)}. {RULE}"
    notes = [bounds] * bool(rows)
    unjudged = why_unjudged(cells)
    reasons: dict[tuple[str, int], list[str]] = {}
    for status, reason, n in unjudged:
        reasons.setdefault((status, n), []).append(reason)
    notes += [f"{n} cells {status}: {'; '.join(own)}." for (status, n), own in reasons.items()]
    notes += ["A cell can have several reasons."] * (len(unjudged) > 1)
    return Table(frame=cells, cells=formats.texts(pd.DataFrame(shown)), notes=notes)


def why_unjudged(cells: pd.DataFrame) -> list[tuple[str, str, int]]:
    """Each verdict that has a reason, the reason, and how many cells it holds for."""
    each = cells.assign(reason=cells["reason"].str.split("; ")).explode("reason")
    each = each.loc[each["reason"] != ""].value_counts(["status", "reason"], sort=True)
    return [(status, reason, n) for (status, reason), n in each.items()]


def orderings_table(run: Run) -> Table:
    """Whether the six stand in the study's order by each figure that it ranks them by, and how our
    figures correlate by rank with the published ones, with the 95 % interval."""
    claims = verify_orderings(run)
    order, best = (claims.loc[claims["claim"] == claim] for claim in ("order", "best"))
    ranked = {
        "ranked by": [TABLE_COLUMNS[column].header for column in order["column"]],
        "order": [*order["status"]],
        "best": [*best["status"]],
        "rank correlation": [
            f"{row.correlation:.2f} [{row.low:.2f}, {row.high:.2f}] over {row.n}"
            if pd.notna(row.correlation)
            else formats.MISSING
            for row in order.itertuples()
        ],
        "best, paper": [*best["published"]],
        "best, ours": [*best["ours"]],
    }
    cells = formats.texts(pd.DataFrame(ranked))
    reasons = why_unjudged(claims.loc[claims["claim"] == "order"])
    notes = [f"{status}: {reason} ({n} of {len(cells)})." for status, reason, n in reasons]
    return Table(frame=claims, cells=cells, notes=notes)


def counts(verdicts: pd.DataFrame) -> dict[str, int]:
    """How many cells, or claims, came to each verdict, in the order of `Verdict`."""
    return {verdict: [*verdicts["status"]].count(verdict) for verdict in Verdict}


SECTION = Section[Run](
    name="verify",
    title="Against the published study",
    applies=published.has_studied,
    tables={
        "verify_orderings": ("Orderings", orderings_table),
        "verify_cells": ("Verdicts", cells_table),
    },
)
