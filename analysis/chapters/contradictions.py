"""Where the study's paper contradicts the data that it recorded: computed, not found by hand."""

import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd

from quarterhour.analysis.chapters.paper import published
from quarterhour.analysis.chapters.paper.comparison import TABLE_COLUMNS
from quarterhour.analysis.chapters.paper.tables import TABLES
from quarterhour.analysis.chapters.verify import Verdict, judge_cells
from quarterhour.analysis.measures import mean_over_seeds
from quarterhour.analysis.runs import Run
from quarterhour.analysis.sections import Section
from quarterhour.analysis.statistics import pearson

# A factor is a power of ten if it is one within this share: the paper's steps/s are rounded.
FACTOR_TOLERANCE = 0.01
KINDS = [
    *("wrong factor", "another measure", "another comparison", "not measured", "wrong"),
    "from rounded figures",
]
"""Of contradictions, the gravest first."""


def contradictions(_runs: Sequence[Run]) -> pd.DataFrame:
    """The cells of the published tables, and the claims of the text, that do not follow from the
    study's own recorded data.

    `where` is a table or the text. `published` is the paper's figure, and `follows` is what the
    recorded data give by the tables' definitions: NaN where nothing recorded gives it. `kind` is
    the kind of contradiction, and `found` the computation that gives the published figure. The runs
    make no difference.
    """
    claims = text_claims().rename(columns={"claim": "column"})
    wrong = claims.loc[~claims["holds"].astype(bool)]
    kinds = ["not measured" if np.isnan(f) else "another comparison" for f in wrong["follows"]]
    texts = wrong.drop(columns="holds").assign(where="text", kind=kinds)
    found = pd.concat([_cells(), texts], ignore_index=True)
    order = found["kind"].map(KINDS.index)
    return found.iloc[order.argsort(kind="stable")].reset_index(drop=True)


def _cells() -> pd.DataFrame:
    exact = judge_cells(published.summary(), {}, {}, within=0)
    wrong = exact.loc[exact["status"] != Verdict.REPRODUCED].rename(columns={"ours": "follows"})
    where = {name: f"table {n}: {title}" for n, (name, (title, _)) in enumerate(TABLES.items(), 1)}
    means, rounded = mean_over_seeds(published.summary()), _means_of_printed_figures()
    recorded = [make(means) for _, make in TABLES.values()]
    places = set(zip(wrong["table"], wrong["column"], strict=True))
    mistaken = {place: _mistaken_for(*place, recorded) for place in places}
    rows: list[dict[Any, Any]] = []
    for cell in wrong.to_dict("records"):
        kind, found = _explain(cell, mistaken[cell["table"], cell["column"]], rounded)
        rows.append(cell | {"where": where[cell["table"]], "kind": kind, "found": found})
    columns = ["where", "configuration", "column", "published", "follows", "kind", "found"]
    return pd.DataFrame(rows, columns=columns)


def _explain(
    cell: dict[Any, Any], mistaken_for: str | None, rounded: list[pd.DataFrame]
) -> tuple[str, str]:
    """The kind of contradiction of one cell, and the computation that shows it."""
    make, place = TABLES[cell["table"]][1], (cell["configuration"], cell["column"])
    printed, follows = cell["published"], cell["follows"]
    if isinstance(printed, str):
        return "not measured", f"'{printed}' is no figure, and no {cell['column']} was recorded"
    if mistaken_for:
        return "another measure", f"the whole column equals {mistaken_for}"
    if any(_prints_alike(make(means).at[place], printed, place[1]) for means in rounded):
        return "from rounded figures", "computed from figures that were rounded before"
    ratio = printed / follows
    power = round(math.log10(ratio))
    if power and abs(ratio / 10.0**power - 1) < FACTOR_TOLERANCE:
        return "wrong factor", f"{ratio:.4f} times what follows by its definition"
    off = printed - follows
    return "wrong", f"off by {off:+.2g}; neither recorded nor rounded figures give it"


def _mistaken_for(table: str, column: str, recorded: list[pd.DataFrame]) -> str | None:
    """Another column of the tables that equals all of this published column, as recorded."""
    printed = published.tables()[table][column].to_dict()
    for number, ours in enumerate(recorded, start=1):
        for other in ours.columns.drop(column, errors="ignore"):
            figures = ours[other].reindex(list(printed)).to_dict()
            if all(_prints_alike(figures[name], printed[name], column) for name in printed):
                return f"{other} of table {number}"
    return None


def _means_of_printed_figures() -> list[pd.DataFrame]:
    """What the tables are made from, with the recorded figures rounded as they are printed."""
    summary: Any = published.summary()
    measures = {name: column for name, column in TABLE_COLUMNS.items() if not column.setting}
    decimals = {name: int(column.decimals.strip(",.f")) for name, column in measures.items()}
    printed_millions = {"total_tokens": -4}
    return [mean_over_seeds(summary.round(decimals | more)) for more in ({}, printed_millions)]


def _prints_alike(ours: Any, printed: Any, column: str) -> bool:
    if isinstance(ours, str) or isinstance(printed, str):
        return False
    decimals = TABLE_COLUMNS[column].decimals
    return format(ours, decimals) == format(printed, decimals)


def text_claims() -> pd.DataFrame:
    """The figures of the paper's text: `claim`, `configuration` if it is of one, `published`, and
    what `follows` from the recorded data. `holds` says whether they agree to the digits given;
    where they do not, `found` says what gives the published figure.
    """
    followed = _followed_claims()
    rows: list[tuple[Any, ...]] = []
    for claim, figures in published.claims().items():
        own = figures if isinstance(figures, dict) else {"": figures}
        for configuration, figure in own.items():
            follows = followed.get((claim, configuration), np.nan)
            for printed in figure if isinstance(figure, list) else [figure]:
                judged = _judge_claim(claim, printed, follows)
                rows.append((claim, configuration, printed, follows, *judged))
    columns = ["claim", "configuration", "published", "follows", "holds", "found"]
    return pd.DataFrame(rows, columns=columns)


def _followed_claims() -> dict[tuple[str, str], float]:
    """The claims' figures from the recorded data, by claim and configuration."""
    summary = published.summary().set_index("configuration")
    loss, confidence = summary["train_loss_last"].to_list(), summary["confidence"].to_list()
    efficiency: Any = summary["train_loss_last"] / summary["seq_len"]
    convergence: Any = 1 - summary["late_loss"] / summary["early_loss"]
    perplexity: Any = summary["perplexity"]
    single: dict[str, float] = {
        "correlation_final_loss_confidence": pearson(loss, confidence).value,
        "correlation_confidence_top5": pearson(confidence, summary["final_top5"].to_list()).value,
        "context_efficiency_short_seq": efficiency["short_seq"],
        "context_efficiency_baseline": efficiency["baseline"],
        "perplexity_ratio_worst_to_best": perplexity.max() / perplexity.min(),
        "loss_ratio_worst_to_best": max(loss) / min(loss),
        "small_model_faster_percent": _percent_faster()["baseline"],
    }
    of_each = {("convergence_improvement", str(name)): x for name, x in convergence.items()}
    return {(claim, ""): value for claim, value in single.items()} | of_each


def _percent_faster() -> dict[str, float]:
    """By how many per cent the small model's recorded steps/s exceed those of each."""
    speed: Any = published.summary().set_index("configuration")["steps_per_second"]
    return (100 * (speed["small_model"] / speed - 1)).to_dict()


def _judge_claim(claim: str, printed: Any, follows: float) -> tuple[bool, str]:
    """Whether a claim holds, and if not, what else gives its figure."""
    if np.isnan(follows):
        recorded = [m for m in published.measures() if claim.removeprefix("lowest_") in m]
        return False, f"recorded measures of that name: {', '.join(recorded) or 'none'}"
    digits = -int(Decimal(str(printed)).as_tuple().exponent)
    if round(follows, digits) == printed:
        return True, ""
    faster = _percent_faster() if claim == "small_model_faster_percent" else {}
    against = [name for name, percent in faster.items() if round(percent, digits) == printed]
    return False, f"it is against {', '.join(against)}" if against else "nothing recorded gives it"


SECTION = Section[Sequence[Run]](
    name="contradictions",
    title="Where the paper contradicts itself",
    applies=lambda runs: any(map(published.has_studied, runs)),
    tables={"contradictions": ("Contradictions", contradictions)},
)
