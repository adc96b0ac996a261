"""A run against the study, cell by cell of its tables, and ordering by ordering."""

from collections.abc import Mapping
from enum import StrEnum
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from quarterhour.analysis.chapters.paper.comparison import TABLE_COLUMNS, unfinished_notes
from quarterhour.analysis.chapters.paper.published import (
    COLUMN_REASONS,
    SIX,
    differences,
    has_studied,
    published_tables,
)
from quarterhour.analysis.chapters.paper.tables import TABLES
from quarterhour.analysis.measures import counted_trials, summarise
from quarterhour.analysis.runs import Run
from quarterhour.analysis.sections import Section
from quarterhour.analysis.statistics import (
    ROUNDING,
    pairwise_differences,
    prediction_interval,
    spearman,
)
from quarterhour.tune.run_folder import TRIAL

# A single seed has no spread: its figure may be off by this share of itself.
RELATIVE_TOLERANCE = 0.05
# Of 20 cells, one is just outside its own 95 % interval by chance: that alone refutes nothing.
DRIFT_WIDTHS = 2


class Verdict(StrEnum):
    """What a cell, or an ordering, of the study has come to in a run."""

    REPRODUCED = "REPRODUCED"
    DRIFT = "DRIFT"
    FAILED = "FAILED"
    MISSING = "MISSING"
    NOT_COMPARABLE = "NOT COMPARABLE"


BEST = {
    ("performance", "train_loss"): "lowest",
    ("performance", "accuracy"): "highest",
    ("top5", "final_top5"): "highest",
    ("normalized", "loss_per_million_tokens"): "lowest",
    ("efficiency", "steps_per_second"): "highest",
    ("validation", "final_val_loss"): "lowest",
}
"""The figures by which the study ranks the six, by table and column, and which of them is best."""


class _Judged(NamedTuple):
    low: float
    high: float
    tolerance: str
    status: Verdict
    reason: str


def verify_cells(run: Run) -> pd.DataFrame:
    """Every cell of the published tables: `table`, `configuration`, `column`, whether it is a
    `setting`, `published`, `ours` (mean of `n` seeds), `low` and `high`, what they are
    (`tolerance`), `status` and `reason`.

    REPRODUCED: the published single run lies within the 95 % prediction interval of our seeds; for
    one seed, within 5 % of ours. Half a unit of the last printed digit is allowed besides. DRIFT:
    within twice that width. FAILED: further off, or all its trials diverged. MISSING: not there
    (yet). NOT COMPARABLE: `reason` says in what the run, or what was measured, is another; a
    setting is compared exactly. Raises ValueError for a run with none of the six configurations.
    """
    if not has_studied(run):
        raise ValueError(
            f"{run.folder} has none of the study's configurations ({', '.join(SIX)}): give a run"
            " that `quarterhour grid` or `quarterhour run` has written"
        )
    own = {name: "; ".join(differences(run, name).values()) for name in SIX}
    cells = judge_cells(
        summarise(run), differing=own, columns=COLUMN_REASONS, relative_tolerance=RELATIVE_TOLERANCE
    )
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
    summary: pd.DataFrame,
    *,
    differing: Mapping[str, str],
    columns: Mapping[str, str],
    relative_tolerance: float,
) -> pd.DataFrame:
    """`verify_cells` of a summary as `measures.summarise` makes it.

    `differing` tells by configuration, and `columns` by column, why it is not comparable; with a
    `relative_tolerance` of 0, a single seed must give what is printed to the last digit.
    """
    rows: list[dict[str, Any]] = []
    for name, printed in published_tables().items():
        by_seed = _by_seed(summary, name)
        for configuration, column in ((row, column) for row in printed.index for column in printed):
            values = by_seed.get((configuration, column), [])
            published = printed.at[configuration, column]
            reasons = [differing.get(configuration, ""), columns.get(column, "")]
            if TABLE_COLUMNS[column].setting:
                judged = _judge_setting(values, published, column)
            else:
                reason = "; ".join(reason for reason in reasons if reason)
                judged = _judge(values, published, column, reason, relative_tolerance)
            place = {"table": name, "configuration": configuration, "column": column}
            place["setting"] = TABLE_COLUMNS[column].setting
            ours = prediction_interval(values).value if _known(values) else np.nan
            figures = {"published": published, "n": int(pd.notna(values).sum()), "ours": ours}
            rows.append(place | figures | judged._asdict())
    return pd.DataFrame(rows)


def _by_seed(summary: pd.DataFrame, table: str) -> dict[tuple[str, str], list[float]]:
    """The table's figures by configuration and column, one for each seed that counts."""
    trials = counted_trials(summary).set_index(TRIAL).sort_index()
    values: dict[tuple[str, str], list[float]] = {}
    for column, figures in TABLES[table][1](trials).items():
        for configuration, of_seeds in figures.groupby("configuration"):
            values[str(configuration), str(column)] = list(of_seeds)
    return values


def _known(values: list[Any]) -> bool:
    return len(values) > 0 and all(isinstance(v, float | int) and np.isfinite(v) for v in values)


def _judge_setting(values: list[float], published: float, column: str) -> _Judged:
    if not _known(values):
        return _Judged(np.nan, np.nan, "", Verdict.MISSING, "")
    decimals = TABLE_COLUMNS[column].decimals
    same = all(format(value, decimals) == format(published, decimals) for value in values)
    status = Verdict.REPRODUCED if same else Verdict.NOT_COMPARABLE
    reason = "" if same else "a setting that is another in this run"
    return _Judged(np.nan, np.nan, "exact", status, reason)


def _judge(
    values: list[float], published: Any, column: str, reason: str, relative_tolerance: float
) -> _Judged:
    if reason:
        return _Judged(np.nan, np.nan, "", Verdict.NOT_COMPARABLE, reason)
    if not _known(values):
        return _Judged(np.nan, np.nan, "", Verdict.MISSING, "")
    n, mean, low, high = prediction_interval(values)
    tolerance = f"95 % prediction interval of {n} seeds"
    if n == 1:
        width = relative_tolerance * abs(mean)
        low, high, tolerance = (
            mean - width,
            mean + width,
            f"±{100 * relative_tolerance:g} %, one seed",
        )
    half_a_digit = 10.0 ** -int(TABLE_COLUMNS[column].decimals.strip(",.f")) / 2
    off = abs(mean - published) - half_a_digit - ROUNDING * abs(mean)
    status = Verdict.FAILED
    if off <= high - mean:
        status = Verdict.REPRODUCED
    elif off <= DRIFT_WIDTHS * (high - mean):
        status = Verdict.DRIFT
    return _Judged(low, high, tolerance, status, "")


def verify_orderings(run: Run) -> pd.DataFrame:
    """Each figure by which the study ranks the six, as two claims: their `order`, and who is best.

    `correlation` (Spearman, with `low` and `high`) is that of our means with the published figures
    over `n` configurations, also where the run is not comparable. REPRODUCED: the same order, or
    the same best. DRIFT: another one, but only between configurations that tie: by Welch's test
    with Holm's correction, or, with one seed, within 5 %. FAILED: another one, by more than that.
    """
    summary = summarise(run)
    own = "; ".join(differences(run).values())
    rows: list[dict[str, Any]] = []
    for (table, column), best in BEST.items():
        published: dict[str, float] = published_tables()[table][column].to_dict()
        by_seed = _by_seed(summary, table)
        values = {name: by_seed.get((name, column), []) for name in published}
        values = {name: seeds for name, seeds in values.items() if _known(seeds)}
        n, rho, low, high = spearman(
            [published[name] for name in values], [float(np.mean(v)) for v in values.values()]
        )
        reason = "; ".join(reason for reason in (own, COLUMN_REASONS.get(column)) if reason)
        judged = {"n": n, "correlation": rho, "low": low, "high": high, "reason": reason}
        for claim in _claims(published, values, best, is_comparable=not reason):
            rows.append({"table": table, "column": column} | claim | judged)
    return pd.DataFrame(rows)


def _claims(
    published: dict[str, float], seeds: dict[str, list[float]], best: str, *, is_comparable: bool
) -> list[dict[str, str]]:
    """Order and best of the study and of ours, and what became of each claim."""
    is_reversed = best == "highest"
    theirs = sorted(published, key=lambda name: published[name], reverse=is_reversed)
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
    """Of pairs that stand the other way round in the study; ties may stand either way."""
    if not swapped:
        return Verdict.REPRODUCED
    pairs = pairwise_differences(seeds, best=best)
    ties = pairs.loc[pairs["verdict"] == "tie"]
    tied = {frozenset(pair) for pair in zip(ties["one"], ties["other"], strict=True)}
    for one, other in swapped:
        if not (frozenset((one, other)) in tied or _alike(seeds[one], seeds[other])):
            return Verdict.FAILED
    return Verdict.DRIFT


def _alike(one: list[float], other: list[float]) -> bool:
    """Whether two configurations, of which one has a single seed, are as good as equal."""
    difference = abs(np.mean(one) - np.mean(other))
    return min(len(one), len(other)) == 1 and bool(
        difference <= RELATIVE_TOLERANCE * abs(np.mean(one))
    )


def counts(verdicts: pd.DataFrame) -> dict[str, int]:
    """How many cells, or claims, came to each verdict, in the order of `Verdict`."""
    statuses = list(verdicts["status"])
    return {verdict: statuses.count(verdict) for verdict in Verdict}


SECTION = Section[Run](
    name="verify",
    title="Against the published study",
    applies=has_studied,
    tables={
        "verify_orderings": ("Orderings", verify_orderings),
        "verify_cells": ("Cells", verify_cells),
    },
)
