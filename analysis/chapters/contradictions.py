"""Where the study's paper contradicts the data it recorded: found by computing, not by hand."""

import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd

from quarterhour.analysis.chapters.paper.comparison import TABLE_COLUMNS
from quarterhour.analysis.chapters.paper.published import (
    has_studied,
    published_claims,
    published_measures,
    published_summary,
    published_tables,
)
from quarterhour.analysis.chapters.paper.tables import TABLES
from quarterhour.analysis.chapters.verify import Verdict, judge_cells
from quarterhour.analysis.measures import mean_over_seeds
from quarterhour.analysis.runs import Run
from quarterhour.analysis.sections import Section
from quarterhour.analysis.statistics import pearson

# Powers of ten show within this share: the paper's steps/s are rounded.
FACTOR_TOLERANCE = 0.01


def contradictions(_runs: Sequence[Run]) -> pd.DataFrame:
    """The cells of the published tables, and the claims of the text, that do not follow from the
    study's own recorded data.

    `where` (table or text), `configuration`, `column`, what is `published`, what `follows` from
    the recorded data by the tables' definitions (NaN: nothing recorded gives it), the `kind` of
    contradiction, and how it was `found`: each by a computation that gives the published figure.
    They do not depend on the runs.
    """
    claims = text_claims()
    wrong = claims.loc[~claims["holds"].astype(bool)].rename(columns={"claim": "column"})
    kinds = ["not measured" if np.isnan(f) else "another comparison" for f in wrong["follows"]]
    texts = wrong.drop(columns="holds").assign(where="text", kind=kinds)
    return pd.concat([pd.DataFrame(_cells()), texts], ignore_index=True)


def _cells() -> list[dict[str, Any]]:
    exact = judge_cells(published_summary(), differing={}, columns={}, relative_tolerance=0)
    wrong = exact.loc[exact["status"] != Verdict.REPRODUCED]
    recorded = {
        name: make(mean_over_seeds(published_summary())) for name, (_, make) in TABLES.items()
    }
    columns = set(zip(wrong["table"], wrong["column"], strict=True))
    mistaken = {place: _mistaken_for(*place, recorded) for place in columns}
    rows: list[dict[str, Any]] = []
    for cell in wrong.to_dict("records"):
        kind, found = _explain(cell, mistaken[cell["table"], cell["column"]])
        number = list(TABLES).index(cell["table"]) + 1
        row = {"where": f"table {number}: {TABLES[cell['table']][0]}"}
        row |= {name: cell[name] for name in ("configuration", "column", "published")}
        rows.append(row | {"follows": cell["ours"], "kind": kind, "found": found})
    return rows


def _explain(cell: dict[Any, Any], mistaken_for: str | None) -> tuple[str, str]:
    """The kind of contradiction of one cell, and the computation that shows it."""
    published, follows = cell["published"], cell["ours"]
    if isinstance(published, str):
        return "not measured", f"'{published}' is no figure, and no {cell['column']} was recorded"
    if mistaken_for:
        return "another measure", f"the whole column equals {mistaken_for}"
    if any(_prints_alike(x, published, cell["column"]) for x in _from_printed_figures(cell)):
        return "from rounded figures", "computed from figures that were rounded before"
    ratio = published / follows
    power = round(math.log10(ratio))
    if power and abs(ratio / 10.0**power - 1) < FACTOR_TOLERANCE:
        return "wrong factor", f"{ratio:.4f} times what follows by its definition"
    off = published - follows
    return "wrong", f"off by {off:+.2g}; neither recorded nor rounded figures give it"


def _mistaken_for(table: str, column: str, recorded: dict[str, pd.DataFrame]) -> str | None:
    """The column of a table that all of this published column equals, as recorded."""
    published = published_tables()[table][column].to_dict()
    for number, ours in enumerate(recorded.values(), start=1):
        for other in ours.columns.difference([column]):
            figures = ours[other].reindex(list(published)).to_dict()
            if all(_prints_alike(figures[name], published[name], column) for name in published):
                return f"{other} of table {number}"
    return None


def _from_printed_figures(cell: dict[Any, Any]) -> list[Any]:
    """The cell as the tables' definitions give it from figures rounded as they are printed."""
    summary: Any = published_summary()
    decimals: dict[str, int] = {
        name: int(TABLE_COLUMNS[name].decimals.strip(",.f"))
        for name in summary
        if name in TABLE_COLUMNS and not TABLE_COLUMNS[name].setting
    }
    printed_millions = {"total_tokens": -4}
    variants: Any = (summary.round(decimals), summary.round(decimals | printed_millions))
    make = TABLES[cell["table"]][1]
    return [
        make(mean_over_seeds(rounded)).at[cell["configuration"], cell["column"]]
        for rounded in variants
    ]


def _prints_alike(ours: Any, published: Any, column: str) -> bool:
    if isinstance(ours, str) or isinstance(published, str):
        return False
    decimals = TABLE_COLUMNS[column].decimals
    return format(ours, decimals) == format(published, decimals)


def text_claims() -> pd.DataFrame:
    """The figures of the paper's text: `claim`, `configuration` if it is of one, `published`, what
    `follows`, whether it `holds` to the digits given, and else how that was `found`.
    """
    followed = _followed_claims()
    rows: list[dict[str, Any]] = []
    for claim, figures in published_claims().items():
        own = figures.items() if isinstance(figures, dict) else [("", figures)]
        for configuration, figure in own:
            follows = followed.get((claim, configuration), np.nan)
            for published in figure if isinstance(figure, list) else [figure]:
                holds, found = _judge_claim(claim, published, follows)
                row = {"claim": claim, "configuration": configuration, "published": published}
                rows.append(row | {"follows": follows, "holds": holds, "found": found})
    return pd.DataFrame(rows)


def _followed_claims() -> dict[tuple[str, str], float]:
    """The claims' figures from the recorded data, by claim and configuration."""
    summary = published_summary().set_index("configuration")
    loss, confidence = summary["train_loss"].to_list(), summary["confidence"].to_list()
    efficiency: Any = summary["train_loss"] / summary["seq_len"]
    convergence: Any = 1 - summary["late_loss"] / summary["early_loss"]
    perplexity: Any = summary["perplexity"]
    single: dict[str, float] = {
        "correlation_final_loss_confidence": pearson(loss, confidence).value,
        "correlation_confidence_top5": pearson(confidence, summary["final_top5"].to_list()).value,
        "context_efficiency_short_seq": efficiency["short_seq"],
        "context_efficiency_baseline": efficiency["baseline"],
        "perplexity_ratio_worst_to_best": perplexity.max() / perplexity.min(),
        "loss_ratio_worst_to_best": max(loss) / min(loss),
        "small_model_faster_percent": _percent_faster("small_model")["baseline"],
    }
    of_each: dict[tuple[str, str], float] = {
        ("convergence_improvement", name): value for name, value in convergence.items()
    }
    return {(claim, ""): value for claim, value in single.items()} | of_each


def _percent_faster(name: str) -> dict[str, float]:
    """By how many per cent the configuration's recorded steps/s exceed those of each."""
    speed: Any = published_summary().set_index("configuration")["steps_per_second"]
    return (100 * (speed[name] / speed - 1)).to_dict()


def _judge_claim(claim: str, published: Any, follows: float) -> tuple[bool, str]:
    """Whether it holds, and what else gives the figure if it does not."""
    if np.isnan(follows):
        recorded = [m for m in published_measures() if claim.removeprefix("lowest_") in m]
        return False, f"recorded measures of that name: {', '.join(recorded) or 'none'}"
    digits = -int(Decimal(str(published)).as_tuple().exponent)
    if round(follows, digits) == published:
        return True, ""
    against = [
        name
        for name, percent in _percent_faster("small_model").items()
        if claim == "small_model_faster_percent" and round(percent, digits) == published
    ]
    return False, f"it is against {', '.join(against)}" if against else "nothing recorded gives it"


SECTION = Section[Sequence[Run]](
    name="contradictions",
    title="Where the paper contradicts itself",
    applies=lambda runs: any(map(has_studied, runs)),
    tables={"contradictions": ("Contradictions", contradictions)},
)
