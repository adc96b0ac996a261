"""A run's tables beside the published ones, and the marks of what is not comparable."""

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from quarterhour.analysis import formats
from quarterhour.analysis.chapters.paper import published
from quarterhour.analysis.chapters.paper.tables import TABLES
from quarterhour.analysis.measures import mean_over_seeds, summarise
from quarterhour.analysis.runs import Run
from quarterhour.analysis.sections import Table
from quarterhour.tune.run_folder import COLUMNS, EVAL_LOSS, Status


@dataclass(frozen=True, kw_only=True)
class TableColumn:
    """A column's header and decimals; a `setting` is shown beside the published one, unjudged."""

    header: str
    decimals: str = ".3f"
    setting: bool = False


_TOP5 = COLUMNS["train_batch_top5_accuracy"].label
_VALIDATION = COLUMNS[EVAL_LOSS].label
_LAST_EVALUATION = f"{_VALIDATION}, study's last"
TABLE_COLUMNS = {
    "d_model": TableColumn(header="d_model", decimals=".0f", setting=True),
    "n_heads": TableColumn(header="heads", decimals=".0f", setting=True),
    "n_layers": TableColumn(header="layers", decimals=".0f", setting=True),
    "batch_size": TableColumn(header="batch", decimals=".0f", setting=True),
    "learning_rate": TableColumn(header="lr", decimals=".3g", setting=True),
    "seq_len": TableColumn(header="seq_len", decimals=".0f", setting=True),
    "tokens_per_step": TableColumn(header="tokens/step", decimals=",.0f", setting=True),
    "total_tokens": TableColumn(header="total tokens", decimals=",.0f", setting=True),
    "tokens_millions": TableColumn(header="tokens (M)", decimals=".2f", setting=True),
    "trials_on_device": TableColumn(header="trials/device", decimals=".3g", setting=True),
    "train_loss_last": TableColumn(header=COLUMNS["train_loss_last"].label),
    "study_eval_loss": TableColumn(header=_LAST_EVALUATION),
    "accuracy": TableColumn(header=COLUMNS["train_batch_accuracy"].label),
    "perplexity": TableColumn(header=COLUMNS["train_batch_perplexity"].label, decimals=".2f"),
    "initial_top5": TableColumn(header=f"{_TOP5}, first step"),
    "final_top5": TableColumn(header=f"{_TOP5}, study's last"),
    "improvement": TableColumn(header="improvement"),
    "top1_gap": TableColumn(header="top-1 gap"),
    "steps_per_second": TableColumn(header="steps/s", decimals=".2f"),
    "memory_usage": TableColumn(header="memory"),
    "tokens_per_second": TableColumn(header="tokens/s", decimals=",.0f"),
    "loss_per_million_tokens": TableColumn(header="loss per M tokens", decimals=".4f"),
    "step_time_mean_s": TableColumn(header="step time (s)", decimals=".4f"),
    "step_time_std_s": TableColumn(header="std (s)", decimals=".4f"),
    "initial_val_loss": TableColumn(header=f"{_VALIDATION}, first step", decimals=".2f"),
    "final_val_loss": TableColumn(header=_LAST_EVALUATION, decimals=".2f"),
    "val_accuracy": TableColumn(header=COLUMNS["eval_accuracy"].label),
    "val_perplexity": TableColumn(header=COLUMNS["eval_perplexity"].label, decimals=".2f"),
}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A table of a run beside the published one; rows are configurations.

    `ours` is unrounded, NaN where missing. `published` is as printed: NaN for a configuration that
    the study does not have, and without the columns that the paper's table lacks. `marked` has the
    shape of `published` and tells which measured figures are not comparable. Each row has its
    `seeds`, the number of trials that ours is the mean of; `not_comparable`, the reasons for the
    marks; and `unfinished`, the trials that did not get to their end. `reasons` sums up those of
    all rows: the kinds of difference, and what holds for a column in any run.
    """

    number: int
    name: str
    ours: pd.DataFrame
    published: pd.DataFrame
    marked: pd.DataFrame
    seeds: pd.Series
    not_comparable: pd.Series
    unfinished: pd.Series
    reasons: list[str]

    @property
    def heading(self) -> str:
        """Number and title, and how many seeds ours are the mean of where there are several."""
        title = f"Table {self.number} · {TABLES[self.name][0]}"
        begun = [seeds for seeds in self.seeds if seeds]
        few, many = min(begun, default=1), max(begun, default=1)
        are_settings = all(self.printed(name)[0].setting for name in self.ours)
        if many == 1 or are_settings:
            return title
        return f"{title} · mean of {many if few == many else f'{few} to {many}'} seeds"

    @property
    def note(self) -> str:
        """What the marks say, or "" where there are none."""
        marked = self.marked.to_numpy().any()
        return f"* not comparable: {'; '.join(self.reasons)}" if marked else ""

    def frame(self) -> pd.DataFrame:
        """What the csv holds: each column `x` of ours, followed by the paper's `x_published`."""
        frame = pd.DataFrame({"seeds": self.seeds}).rename_axis("configuration")
        for column in self.ours:
            frame[column] = self.ours[column]
            if column in self.published:
                frame[f"{column}_published"] = self.published[column]
        return frame.assign(not_comparable=self.not_comparable, unfinished=self.unfinished)

    def as_table(self) -> Table:
        """The table for the report."""
        return Table(
            frame=self.frame().reset_index(),
            cells=self.texts(),
            notes=[self.note] * bool(self.note),
            title=self.heading,
        )

    def texts(self) -> pd.DataFrame:
        """The table as text, for files and the page: after each column of ours the paper's."""
        cells = {"configuration": list(self.ours.index)}
        for name in self.ours:
            column, ours, paper = self.printed(name)
            cells[column.header] = ours
            if paper:
                cells[f"{column.header}, paper"] = paper
        return pd.DataFrame(cells, dtype=str)

    def printed(self, name: str) -> tuple[TableColumn, list[str], list[str]]:
        """A column's figures as text: ours, and the paper's with their marks, if it has any."""
        column = TABLE_COLUMNS.get(name, TableColumn(header=name))
        absent = "-" if column.setting else "missing"
        ours = [_printed(figure, column, absent) for figure in self.ours[name]]
        if name not in self.published:
            return column, ours, []
        stars = ["*" if mark else " " * any(self.marked[name]) for mark in self.marked[name]]
        figures = (_printed(figure, column, "-") for figure in self.published[name])
        return column, ours, [*map("".join, zip(figures, stars, strict=True))]


def beside_published(run: Run) -> list[Comparison]:
    """The run's tables in the paper's order, without those that have none of its configurations."""
    tables = [compare(run, name) for name in TABLES]
    return [table for table in tables if len(table.ours)]


def compare(run: Run, name: str) -> Comparison:
    """The run's table of that name beside the published one."""
    means = mean_over_seeds(summarise(run))
    ours = TABLES[name][1](means)
    tables = published.tables() if published.has_studied(run) else {}
    printed = tables.get(name, pd.DataFrame())
    measured = [column for column in printed if not TABLE_COLUMNS[column].setting]
    never = [column for column in measured if column in published.COLUMN_REASONS]
    never_reasons = list(dict.fromkeys(published.COLUMN_REASONS[column] for column in never))
    studied = ours.index.intersection(printed.index) if measured else ours.index[:0]
    own = {row: [*published.differences(run, row).values()] for row in studied}
    differing = [row for row in studied if own[row]]
    kinds = [f"other {', '.join(published.differences(run, *studied))}"] if differing else []
    marked = pd.DataFrame(False, index=ours.index, columns=printed.columns)
    marked.loc[studied, never] = True
    marked.loc[differing, measured] = True
    not_comparable = pd.Series({row: "; ".join(own[row] + never_reasons) for row in studied})
    return Comparison(
        number=list(TABLES).index(name) + 1,
        name=name,
        ours=ours,
        published=printed.reindex(ours.index),
        marked=marked,
        seeds=means.loc[:, "seeds"].reindex(ours.index),
        not_comparable=not_comparable.reindex(ours.index, fill_value=""),
        unfinished=unfinished_notes(run).reindex(ours.index, fill_value=""),
        reasons=kinds + never_reasons,
    )


def unfinished_notes(run: Run) -> pd.Series:
    """What kept the trials of each configuration from their end; those that got there have none."""
    notes = [_unfinished_note(trial) for trial in run.trials.to_dict("records")]
    trials = run.trials.assign(note=notes).loc[lambda trials: trials["note"] != ""]
    return trials.groupby("configuration")["note"].agg("; ".join)


def _unfinished_note(trial: dict[Hashable, Any]) -> str:
    """What kept the trial from its last step, or "" if it got there and its loss is a number."""
    if trial["status"] == Status.WAITING:
        return f"seed {trial['seed']} WAITING"
    done, steps = trial["steps_done"], trial.get("budget.steps", float("nan"))
    if trial["status"] == Status.COMPLETE and done == steps and not trial["diverged"]:
        return ""
    state = trial["status"] + " and diverged" * trial["diverged"]
    reason = f": {trial['reason']}" if isinstance(trial["reason"], str) else ""
    # A damaged trial does not tell its settings.
    where = f" at step {done:,} of {steps:,.0f}" if steps > 0 else ""
    return f"seed {trial['seed']} {state}{where}{reason}"


def write_csv(comparisons: list[Comparison], folder: Path) -> list[Path]:
    """Write each table to `folder` (made if need be), ours to ten digits, and return the files.

    An empty cell of ours is a missing figure; an empty cell of `_published` says that the paper has
    none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {folder / f"table{table.number}_{table.name}.csv": table for table in comparisons}
    for file, table in files.items():
        file.unlink(missing_ok=True)  # which may be a link that somebody has put there
        formats.write_csv(table.frame(), file)
    return list(files)


def _printed(figure: float | str, column: TableColumn, absent: str) -> str:
    if isinstance(figure, str):
        return figure
    return absent if pd.isna(figure) else format(figure, column.decimals)
