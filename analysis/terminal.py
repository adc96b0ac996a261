"""Tables for a terminal of 100 columns: the paper's, those of `verify`, and a search's."""

from typing import Any

import pandas as pd
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from quarterhour.analysis.chapters.paper.comparison import TABLE_COLUMNS, Comparison
from quarterhour.analysis.chapters.paper.tables import TABLES
from quarterhour.analysis.chapters.search.results import (
    SearchResults,
    best_trials,
    seed_comparison,
    spent,
)
from quarterhour.analysis.chapters.verify import Verdict

_NUMBERS = {name: str(number) for number, name in enumerate(TABLES, start=1)}
_STYLES = {Verdict.REPRODUCED: "green", Verdict.DRIFT: "yellow", Verdict.FAILED: "bold red"}


def comparison_table(comparison: Comparison) -> Group:
    """A table of the paper: ours, and dimmed beside it the paper's figure."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("\nconfiguration", overflow="fold")
    columns = [_printed_column(comparison, name) for name in comparison.ours]
    for header, _ in columns:
        table.add_column(Text(header), no_wrap=True)
    for row, configuration in enumerate(comparison.ours.index):
        table.add_row(Text(configuration), *(cells[row] for _, cells in columns))
    said: list[Text] = []
    if note := comparison.note:
        said.append(Text(note))
    unfinished = [f"{name} {note}" for name, note in comparison.unfinished.items() if note]
    if unfinished:
        said.append(Text(f"unfinished: {'; '.join(unfinished)}"))
    return Group(Text(comparison.heading, style="bold"), table, *said, "")


def _printed_column(comparison: Comparison, name: str) -> tuple[str, list[Text]]:
    """Header and cells of equal width, padded here: rich has no heading over two columns."""
    column, ours, paper = comparison.printed(name)
    ours, paper = ["ours", *ours], ["paper", *paper] if paper else [""] * (len(ours) + 1)
    paper_width = max(map(len, paper))
    ours_width = max(*map(len, ours), len(column.header) - paper_width - 1)
    heads, *cells = [
        Text.assemble(our.rjust(ours_width), " ", (their.rjust(paper_width), "dim"))
        for our, their in zip(ours, paper, strict=True)
    ]
    return f"{column.header:^{len(heads)}}\n{heads.plain}", cells


def cells_table(cells: pd.DataFrame) -> Group:
    """The cells that can be judged; the others by their reason."""
    judged = cells.loc[cells["status"] != Verdict.NOT_COMPARABLE]
    judged = judged.loc[~judged["setting"]]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("table", "configuration", "measure"):
        table.add_column(header, no_wrap=True)
    for header in ("paper", "ours", "interval", "n"):
        table.add_column(header, no_wrap=True, justify="right")
    table.add_column("verdict", no_wrap=True)
    for cell in judged.to_dict("records"):
        column = TABLE_COLUMNS[cell["column"]]
        paper, ours, low, high = (
            _figure(cell[name], column.decimals) for name in ("published", "ours", "low", "high")
        )
        table.add_row(
            *(_NUMBERS[cell["table"]], cell["configuration"], column.header, paper, ours),
            low and f"[{low}, {high}]",
            *(str(cell["n"]), _coloured(cell["status"])),
        )
    tolerances = [tolerance for tolerance in judged["tolerance"].unique() if tolerance]
    legend = Text(f"interval: {'; '.join(tolerances)}. DRIFT: within twice its width.\n")
    shown = [table] * bool(len(judged)) + [legend] * bool(tolerances)
    return Group(*shown, _reasons(cells))


def orderings_table(orderings: pd.DataFrame) -> Table:
    """What became of the claims of order."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for header in ("\nranked by", "best:\npaper", "\nours", "\nverdict", "order:\nverdict"):
        table.add_column(header, no_wrap=True)
    n = " to ".join(
        str(n) for n in sorted({*orderings["n"]})[:: max(1, len({*orderings["n"]}) - 1)]
    )
    table.add_column(f"rank correlation\nover {n}", no_wrap=True, justify="right")
    claims = orderings.to_dict("records")
    for order, best in zip(claims[::2], claims[1::2], strict=True):
        name, column = order["table"], order["column"]
        rho, low, high = (_figure(order[bound], ".2f") for bound in ("correlation", "low", "high"))
        table.add_row(
            *(f"{_NUMBERS[name]} {TABLE_COLUMNS[column].header}", best["published"], best["ours"]),
            *(_coloured(claim["status"]) for claim in (best, order)),
            rho and f"{rho} [{low}, {high}]",
        )
    return table


def _reasons(cells: pd.DataFrame) -> Table:
    """Why cells are not comparable or missing, and how many for each reason."""
    each = cells.assign(reason=cells["reason"].str.split("; ")).explode("reason")
    each = each.loc[each["reason"] != ""]
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(justify="right")
    for _ in ("status", "reason"):
        table.add_column()
    for (status, reason), number in each.value_counts(["status", "reason"], sort=True).items():
        table.add_row(str(number), _coloured(status), Text(reason))
    return table


def _figure(value: Any, decimals: str) -> str:
    return "" if pd.isna(value) else format(value, decimals)


def _coloured(status: Verdict) -> Text:
    return Text(status, style=_STYLES.get(status, "dim"))


def states_table(results: SearchResults) -> Table:
    """Trials by state."""
    table = Table("state", "trials", box=None)
    for status, count in results.searched["status"].value_counts().items():
        table.add_row(str(status), str(count))
    return table


def best_table(results: SearchResults) -> Table:
    """`best_trials` to read, a column each."""
    best = best_trials(results)
    table = Table("setting", *best.index, box=None)
    for name in best:
        table.add_row(str(name), *[_text(value) for value in best[name]])
    return table


def seed_table(results: SearchResults) -> Table:
    """`seed_comparison` to read."""
    table = Table("trial", "fresh seeds", f"mean {results.objective}", box=None)
    table.add_column("minus best of the six", justify="right")
    table.add_column("at 95 %")
    for row in seed_comparison(results).to_dict("records"):
        difference, verdict = "", "best of the six"
        if not pd.isna(row["difference"]):
            difference = f"{row['difference']:+.4f}"
            if not pd.isna(row["low"]):
                difference += f" ± {(row['high'] - row['low']) / 2:.4f}"
            verdict = row["verdict"]
        table.add_row(row["trial"], str(row["n"]), f"{row['mean']:.4f}", difference, verdict)
    return table


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def spent_text(results: SearchResults) -> str:
    """`spent` as a sentence."""
    steps, tokens, flops, seconds = spent(results)
    return (
        f"spent {steps:,.0f} steps, {tokens:,.0f} tokens, {flops:.3g} FLOPs,"
        f" {seconds:,.0f} device-seconds of training"
    )
