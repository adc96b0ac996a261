"""Tables for a terminal of 100 columns: the paper's, those of `verify`, and a search's."""

from typing import Any

import pandas as pd
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from quarterhour.analysis.chapters.paper.comparison import TABLE_COLUMNS, Comparison
from quarterhour.analysis.chapters.paper.tables import TABLES
from quarterhour.analysis.chapters.search import results as search
from quarterhour.analysis.chapters.search.results import SearchResults
from quarterhour.analysis.chapters.verify import Verdict, why_unjudged

_NUMBERS = {name: str(number) for number, name in enumerate(TABLES, start=1)}
_STYLES = {Verdict.REPRODUCED: "green", Verdict.DRIFT: "yellow", Verdict.FAILED: "bold red"}


def comparison_table(comparison: Comparison) -> Group:
    """A table of the paper: our figures, and beside them the paper's, dimmed."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("configuration", overflow="fold")
    columns = [_printed_column(comparison, name) for name in comparison.ours]
    for header, _ in columns:
        table.add_column(Text(header), no_wrap=True)
    for row, configuration in enumerate(comparison.ours.index):
        table.add_row(Text(configuration), *(cells[row] for _, cells in columns))
    unfinished = "; ".join(f"{name} {note}" for name, note in comparison.unfinished.items() if note)
    said = (comparison.note, unfinished and f"unfinished: {unfinished}")
    notes = [Text(line) for line in said if line]
    return Group(Text(comparison.heading, style="bold"), table, *notes, "")


def _printed_column(comparison: Comparison, name: str) -> tuple[str, list[Text]]:
    """Header and cells of one width, padded here: rich has no heading over two columns."""
    column, ours, paper = comparison.printed(name)
    ours, paper = ["ours", *ours], ["paper", *paper] if paper else [""] * (len(ours) + 1)
    paper_width = max(map(len, paper))
    lines = column.header.replace(", ", ",\n").split("\n")
    ours_width = max(*map(len, ours), max(map(len, lines)) - paper_width - 1)
    heads, *cells = [
        Text.assemble(our.rjust(ours_width), " ", (their.rjust(paper_width), "dim"))
        for our, their in zip(ours, paper, strict=True)
    ]
    return "\n".join([*(f"{line:^{len(heads)}}" for line in lines), heads.plain]), cells


def cells_table(cells: pd.DataFrame) -> Group:
    """The cells that can be judged, and how many cannot for which reason."""
    judged = cells.loc[cells["status"] != Verdict.NOT_COMPARABLE]
    judged = judged.loc[~judged["setting"]]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in (
        "table",
        "configuration",
        "measure",
        "paper",
        "ours",
        "interval",
        "n",
        "verdict",
    ):
        is_number = header in ("paper", "ours", "interval", "n")
        justify = "right" if is_number else "left"
        table.add_column(header, no_wrap=header != "measure", justify=justify)
    for cell in judged.to_dict("records"):
        column = TABLE_COLUMNS[cell["column"]]
        figures = (cell[name] for name in ("published", "ours", "low", "high"))
        paper, ours, low, high = (_figure(figure, column.decimals) for figure in figures)
        place = (_NUMBERS[cell["table"]], cell["configuration"], column.header)
        interval = low and f"[{low}, {high}]"
        table.add_row(*place, paper, ours, interval, str(cell["n"]), _coloured(cell["status"]))
    tolerances = [tolerance for tolerance in judged["tolerance"].unique() if tolerance]
    legend = Text(f"interval: {'; '.join(tolerances)}. DRIFT: within twice its width.\n")
    shown = [table] * bool(len(judged)) + [legend] * bool(tolerances)
    return Group(*shown, _reasons(cells))


def orderings_table(orderings: pd.DataFrame) -> Table:
    """What became of the claims of order."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("ranked by")
    for header in ("best:\npaper", "ours", "verdict", "order:\nverdict"):
        table.add_column(header, no_wrap=True)
    counts = sorted({*orderings["n"]})
    n = " to ".join(dict.fromkeys(map(str, (counts[0], counts[-1]))))
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
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(justify="right")
    for status, reason, number in why_unjudged(cells):
        table.add_row(str(number), _coloured(Verdict(status)), Text(reason))
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
    best = search.best_trials(results)
    table = Table("setting", *best.index, box=None)
    for name in best:
        values = (f"{x:.4g}" if isinstance(x, float) else str(x) for x in best[name])
        table.add_row(str(name), *values)
    return table


def seed_table(results: SearchResults) -> Table:
    """`seed_comparison` to read."""
    table = Table("trial", "fresh seeds", f"mean {results.objective}", box=None)
    table.add_column("minus best of the six", justify="right")
    table.add_column("at 95 %")
    for row in search.seed_comparison(results).to_dict("records"):
        difference = _figure(row["difference"], "+.4f")
        verdict = row["verdict"] if difference else "best of the six"
        half = _figure((row["high"] - row["low"]) / 2, ".4f")
        difference += half and f" ± {half}"
        table.add_row(row["trial"], str(row["n"]), f"{row['mean']:.4f}", difference, verdict)
    return table


def spent_text(results: SearchResults) -> str:
    """`spent` as a sentence."""
    steps, tokens, flops, seconds = search.spent(results)
    return (
        f"spent {steps:,.0f} steps, {tokens:,.0f} tokens, {flops:.3g} FLOPs,"
        f" {seconds:,.0f} device-seconds of training"
    )
