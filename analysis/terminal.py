"""Tables for a terminal: the paper's, those of `verify`, and a search's."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Literal, NamedTuple

import pandas as pd
from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from quarterhour.analysis import formats
from quarterhour.analysis import sections as chapter
from quarterhour.analysis.chapters.paper.comparison import TABLE_COLUMNS, Comparison
from quarterhour.analysis.chapters.paper.tables import TABLES
from quarterhour.analysis.chapters.search import results as search
from quarterhour.analysis.chapters.search.results import SearchResults
from quarterhour.analysis.chapters.verify import RULE, Verdict, why_unjudged
from quarterhour.tune.run_folder import counted

_NUMBERS = {name: str(number) for number, name in enumerate(TABLES, start=1)}
_STYLES = {Verdict.REPRODUCED: "green", Verdict.DRIFT: "yellow", Verdict.FAILED: "bold red"}


class _Column(NamedTuple):
    """A column, whose header may have several lines."""

    header: str
    cells: Sequence[str | Text]
    justify: Literal["left", "right"] = "left"

    @property
    def width(self) -> int:
        lines = [line for text in (self.header, *self.cells) for line in str(text).splitlines()]
        return max(map(cell_len, lines), default=0)


class _Wide:
    """A table that a narrow terminal shows in parts, each of which has the first column."""

    def __init__(self, columns: Sequence[_Column], *, boxed: bool = True) -> None:
        self._columns = columns
        self._box = box.SIMPLE_HEAD if boxed else None

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        for part in self._parts(options.max_width):
            table = Table(box=self._box, pad_edge=False)
            for column in part:
                table.add_column(Text(column.header), justify=column.justify, no_wrap=True)
            for cells in zip_longest(*(column.cells for column in part)):
                table.add_row(*cells)
            yield table

    def _parts(self, width: int) -> list[list[_Column]]:
        first, *others = self._columns
        gap, edges = (3, 2) if self._box else (2, 0)
        parts = [[first]]
        for column in others:
            taken = edges + sum(gap + one.width for one in parts[-1]) + column.width
            if taken > width and len(parts[-1]) > 1:
                parts.append([first])
            parts[-1].append(column)
        return parts


def comparison_table(comparison: Comparison) -> Group:
    """A table of the paper: our figures, and beside them the paper's, dimmed."""
    columns = [_printed_column(comparison, name) for name in comparison.ours]
    table = _Wide([_Column("configuration", [*map(Text, comparison.ours.index)]), *columns])
    unfinished = "; ".join(f"{name} {note}" for name, note in comparison.unfinished.items() if note)
    said = (comparison.note, unfinished and f"unfinished: {unfinished}")
    notes = [Text(line) for line in said if line]
    return Group(Text(comparison.heading, style="bold"), table, *notes, "")


def _printed_column(comparison: Comparison, name: str) -> _Column:
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
    header = [*(f"{line:^{len(heads)}}" for line in lines), heads.plain]
    return _Column("\n".join(header), cells)


def cells_table(cells: pd.DataFrame) -> Group:
    """The cells that can be judged, and how many cannot for which reason."""
    judged = cells.loc[cells["status"] != Verdict.NOT_COMPARABLE]
    judged = judged.loc[~judged["setting"]]
    shown: list[RenderableType] = []
    for (name, column), of_column in judged.groupby(["table", "column"], sort=False):
        title = Text(f"Table {_NUMBERS[name]} · {TABLE_COLUMNS[column].header}", style="bold")
        rows = [_judged_row(cell) for cell in of_column.to_dict("records")]
        headers = ("configuration", "verdict", "paper", "ours", "interval", "n")
        shown += [title, _Wide(_columns(headers, rows, right=headers[2:]))]
    tolerances = [tolerance for tolerance in judged["tolerance"].unique() if tolerance]
    legend = Text(f"interval: {'; '.join(tolerances)}. {RULE}\n")
    return Group(*shown, *[legend] * bool(tolerances), _reasons(cells))


def _judged_row(cell: Mapping[Any, Any]) -> tuple[str | Text, ...]:
    decimals = TABLE_COLUMNS[cell["column"]].decimals
    figures = (cell[name] for name in ("published", "ours", "low", "high"))
    paper, ours, low, high = (_figure(figure, decimals) for figure in figures)
    verdict, interval = _coloured(cell["status"]), low and f"[{low}, {high}]"
    return cell["configuration"], verdict, paper, ours, interval, str(cell["n"])


def _columns(
    headers: Sequence[str], rows: Sequence[Sequence[str | Text]], right: Sequence[str]
) -> list[_Column]:
    """Columns of rows; those called `right` are figures."""
    return [
        _Column(header, [row[n] for row in rows], "right" if header in right else "left")
        for n, header in enumerate(headers)
    ]


def orderings_table(orderings: pd.DataFrame) -> RenderableType:
    """What became of the claims of order."""
    counts = sorted({*orderings["n"]})
    n = " to ".join(dict.fromkeys(map(str, (counts[0], counts[-1]))))
    correlation = f"rank correlation\nover {n}"
    rows: list[tuple[str | Text, ...]] = []
    claims = orderings.to_dict("records")
    for order, best in zip(claims[::2], claims[1::2], strict=True):
        name, column = order["table"], order["column"]
        rho, low, high = (_figure(order[bound], ".2f") for bound in ("correlation", "low", "high"))
        ranked_by = f"{_NUMBERS[name]} {TABLE_COLUMNS[column].header}".replace(", ", ",\n  ")
        verdicts = (_coloured(claim["status"]) for claim in (best, order))
        bests = (best["published"], best["ours"])
        rows.append((ranked_by, *verdicts, *bests, rho and f"{rho} [{low}, {high}]"))
    headers = ("ranked by", "best:\nverdict", "order:\nverdict", "best:\npaper", "ours")
    return _Wide(_columns((*headers, correlation), rows, right=(correlation,)))


def _reasons(cells: pd.DataFrame) -> Table:
    """Why cells are not comparable or missing, and how many for each reason."""
    reasons = why_unjudged(cells)
    title = "cells by reason; one can have several" if len(reasons) > 1 else None
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column(justify="right")
    for status, reason, number in reasons:
        table.add_row(str(number), _coloured(Verdict(status)), Text(reason))
    return table


def _figure(value: Any, decimals: str) -> str:
    return "" if pd.isna(value) else format(value, decimals)


def _coloured(status: Verdict) -> Text:
    return Text(status, style=_STYLES.get(status, "dim"))


def states_table(results: SearchResults) -> Table:
    """Trials by state."""
    table = Table("state", "trials", box=None, pad_edge=False)
    for status, count in results.searched["status"].value_counts().items():
        table.add_row(str(status), str(count))
    return table


def best_table(results: SearchResults) -> RenderableType | None:
    """`best_trials` to read, a column each; None where there are none."""
    best = search.best_trials(results)
    columns = [
        _Column(str(number), [f"{x:.4g}" if isinstance(x, float) else str(x) for x in trial])
        for number, trial in zip(best.index, best.to_numpy().tolist(), strict=True)
    ]
    settings = _Column("setting", [*map(str, best)])
    return _Wide([settings, *columns], boxed=False) if columns else None


def seed_table(results: SearchResults) -> RenderableType | None:
    """`seed_comparison` to read; None where there is none."""
    rows: list[tuple[str, ...]] = []
    for row in search.seed_comparison(results).to_dict("records"):
        difference = _figure(row["difference"], "+.4f")
        verdict = row["verdict"] if difference else results.standard
        half = _figure((row["high"] - row["low"]) / 2, ".4f")
        difference += half and f" ± {half}"
        rows.append((row["trial"], verdict, difference, f"{row['mean']:.4f}", str(row["n"])))
    less = results.standard.removeprefix("the ").replace("best ", "best\n")
    figures = (f"less {less}", f"mean\n{results.objective}", "fresh\nseeds")
    columns = _columns(("\ntrial", "\nat 95 %", *figures), rows, right=figures)
    return _Wide(columns, boxed=False) if rows else None


def printed(table: chapter.Table) -> Group:
    """A table of the report's; figures to the right, notes below."""
    cells, notes = table.cells, [Text(note) for note in table.notes]
    numeric = formats.numeric_headers(cells)
    columns = [
        _Column(name, cells[name].to_list(), "right" if name in numeric else "left")
        for name in cells
    ]
    return Group(*[_Wide(columns, boxed=False)] * bool(len(cells)), *notes)


def spent_text(results: SearchResults) -> str:
    """`spent` as a sentence."""
    steps, tokens, flops, seconds = search.spent(results)
    fresh = len(results.fresh.loc[results.fresh["adopted_from"].isna()])
    included = f", {counted(fresh, 'trial')} with fresh seeds included" if fresh else ""
    return (
        f"spent {steps:,.0f} steps, {tokens:,.0f} tokens, {flops:.3g} FLOPs,"
        f" {seconds:,.0f} device-seconds of training{included}"
    )
