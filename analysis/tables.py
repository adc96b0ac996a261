"""The paper's eight tables from a run, ours beside the published figures."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from analysis.published import COLUMN_REASONS, differences, published_tables
from analysis.runs import Run, last_evaluation

_TRIAL = ["configuration", "seed"]
_SETTINGS = {
    "model.d_model": "d_model",
    "model.n_heads": "n_heads",
    "model.n_layers": "n_layers",
    "data.batch_size": "batch_size",
    "optim.learning_rate": "learning_rate",
    "data.seq_len": "seq_len",
}
_BUDGET = {
    "budget.steps": "steps",
    "budget.max_steps": "max_steps",
    "budget.eval_every": "eval_every",
}
_ROW = [
    "step",
    "window_steps",
    "train_loss",
    "train_loss_last",
    "step_seconds",
    "step_seconds_std",
    "eval_loss",
    "eval_accuracy",
    "eval_perplexity",
    "train_batch_accuracy",
    "train_batch_perplexity",
    "train_batch_confidence",
    "train_batch_top5_accuracy",
    "peak_memory_bytes",
    "trials_on_device",
]


def summarise(run: Run) -> pd.DataFrame:
    """The figures that the tables are made of, one row per configuration and seed.

    The definitions are the study's, on the trial's own number of steps. `train_loss`: of the last
    step. `eval_loss`, `val_accuracy`, `val_perplexity` (on validation windows), `accuracy`,
    `perplexity`, `confidence`, `final_top5` (on that step's training batch): of the last
    evaluation that the reference makes. `initial_*`: of the first step. `early_loss`, `late_loss`:
    mean train loss of the first and the last quarter. `step_time_*`: seconds, over all steps but
    the first; the deviation is the population one. A figure whose rows are not there is NaN.
    """
    trials = run.trials.set_index(_TRIAL)
    settings = trials.reindex(columns=[*_SETTINGS, *_BUDGET]).astype(float)
    settings = settings.rename(columns=_SETTINGS | _BUDGET)
    rows = run.rows.reindex(columns=[*_TRIAL, *_ROW]).set_index(_TRIAL).astype(float)
    rows = rows.join(settings.loc[:, ["steps", "eval_every"]])
    step, steps = rows.loc[:, "step"], rows.loc[:, "steps"]
    evaluation = last_evaluation(steps, rows.loc[:, "eval_every"])
    first, evaluated = rows.loc[step == 1], rows.loc[step == evaluation + 1]
    step_time_mean, step_time_std = _step_time(rows.loc[step > 1])
    seen = settings.loc[:, ["steps", "max_steps"]].min(axis="columns")
    summary = trials.loc[:, ["status"]].join(settings.drop(columns=[*_BUDGET.values()]))
    return summary.assign(
        total_tokens=settings["batch_size"] * settings["seq_len"] * seen,
        train_loss=rows.loc[step == steps, "train_loss_last"],
        eval_loss=evaluated["eval_loss"],
        accuracy=evaluated["train_batch_accuracy"],
        perplexity=evaluated["train_batch_perplexity"],
        confidence=evaluated["train_batch_confidence"],
        initial_top5=first["train_batch_top5_accuracy"],
        final_top5=evaluated["train_batch_top5_accuracy"],
        initial_val_loss=first["eval_loss"],
        val_accuracy=evaluated["eval_accuracy"],
        val_perplexity=evaluated["eval_perplexity"],
        early_loss=_mean_loss(rows.loc[step <= steps // 4], settings.loc[:, "steps"] // 4),
        late_loss=_mean_loss(rows.loc[step > steps * 3 // 4], -(-settings.loc[:, "steps"] // 4)),
        steps_per_second=1 / step_time_mean,
        step_time_mean_s=step_time_mean,
        step_time_std_s=step_time_std,
        peak_memory_bytes=rows.loc[:, "peak_memory_bytes"].groupby(_TRIAL).max(),
        trials_on_device=rows.loc[:, "trials_on_device"].groupby(_TRIAL).max(),
    ).reset_index()


def _window_mean(values: pd.Series, window_steps: pd.Series) -> pd.Series:
    """Each trial's mean over steps, of values that are means over windows."""
    total: Any = (values * window_steps).groupby(_TRIAL).sum(skipna=False)
    return total / window_steps.groupby(_TRIAL).sum()


def _step_time(rows: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Mean and population deviation, in seconds, over single steps (law of total variance)."""
    seconds, window_steps = rows.loc[:, "step_seconds"], rows.loc[:, "window_steps"]
    mean = _window_mean(seconds, window_steps)
    squares = rows["step_seconds_std"] ** 2 + (seconds - mean.reindex(rows.index)) ** 2
    return mean, _window_mean(squares, window_steps) ** 0.5


def _mean_loss(rows: pd.DataFrame, quarter: pd.Series) -> pd.Series:
    """Mean train loss over these rows; NaN unless they cover each step of the quarter."""
    window_steps = rows.loc[:, "window_steps"]
    covered = window_steps.groupby(_TRIAL).sum()
    return _window_mean(rows.loc[:, "train_loss"], window_steps).where(covered.eq(quarter))


def mean_over_seeds(summary: pd.DataFrame) -> pd.DataFrame:
    """One row per configuration: the mean of its COMPLETE trials, or of all if none is complete.

    `seeds` says how many those are. A figure that one of them lacks is NaN, so that no mean is
    over fewer seeds than it says.
    """
    complete = summary["status"] == "COMPLETE"
    none_is = ~complete.groupby(summary["configuration"]).transform("any")
    by_configuration = summary.loc[complete | none_is].groupby("configuration", sort=False)
    seeds = by_configuration.size()
    return by_configuration.mean(numeric_only=True, skipna=False).assign(seeds=seeds)


def configurations(summary: pd.DataFrame) -> pd.DataFrame:
    """Table 1: what was set."""
    columns = ["d_model", "n_heads", "n_layers", "batch_size", "learning_rate", "seq_len"]
    return mean_over_seeds(summary).loc[:, columns]


def performance(summary: pd.DataFrame) -> pd.DataFrame:
    """Table 2: losses, and accuracy and perplexity on the training batch."""
    rows = mean_over_seeds(summary).sort_values("train_loss", kind="stable")
    return rows.loc[:, ["train_loss", "eval_loss", "accuracy", "perplexity"]]


def top5(summary: pd.DataFrame) -> pd.DataFrame:
    """Table 3: top-5 accuracy on the training batch; top-1 gap is top-5 less top-1 accuracy."""
    rows = mean_over_seeds(summary).sort_values("train_loss", kind="stable")
    return rows.loc[:, ["initial_top5", "final_top5"]].assign(
        improvement=rows["final_top5"] - rows["initial_top5"],
        top1_gap=rows["final_top5"] - rows["accuracy"],
    )


def sequence_length(summary: pd.DataFrame) -> pd.DataFrame:
    """Table 4: short_seq against baseline; memory is the measured peak, in GB of 10^9 bytes."""
    rows = mean_over_seeds(summary)
    rows = rows.loc[rows.index.isin(["short_seq", "baseline"])].sort_values(
        "seq_len", kind="stable"
    )
    memory = (rows["peak_memory_bytes"] / 1e9).map("{:.2f} GB".format, na_action="ignore")
    tokens_per_step = rows["batch_size"] * rows["seq_len"]
    return rows.loc[:, ["seq_len", "steps_per_second"]].assign(
        memory_usage=memory,
        tokens_per_second=rows["steps_per_second"] * tokens_per_step,
        trials_on_device=rows["trials_on_device"],
    )


def data_exposure(summary: pd.DataFrame) -> pd.DataFrame:
    """Table 5: tokens of a step and of the whole trial, repeated ones counted again."""
    rows = mean_over_seeds(summary)
    return rows.loc[:, ["batch_size", "seq_len"]].assign(
        tokens_per_step=rows["batch_size"] * rows["seq_len"], total_tokens=rows["total_tokens"]
    )


def normalized(summary: pd.DataFrame) -> pd.DataFrame:
    """Table 6: train loss over millions of tokens; it rewards more tokens by construction."""
    rows = mean_over_seeds(summary)
    millions = rows["total_tokens"] / 1e6
    table = pd.DataFrame({"final_loss": rows["train_loss"], "tokens_millions": millions})
    table = table.assign(loss_per_million_tokens=table["final_loss"] / millions)
    return table.sort_values("loss_per_million_tokens", kind="stable")


def efficiency(summary: pd.DataFrame) -> pd.DataFrame:
    """Table 7: steps per second, fastest first but never across differently shared devices."""
    rows = mean_over_seeds(summary).sort_values(
        ["trials_on_device", "steps_per_second"], ascending=[True, False], kind="stable"
    )
    return rows.loc[
        :, ["steps_per_second", "step_time_mean_s", "step_time_std_s", "trials_on_device"]
    ]


def validation(summary: pd.DataFrame) -> pd.DataFrame:
    """Table 8: loss, accuracy and perplexity on validation windows (they overlap training)."""
    rows = mean_over_seeds(summary)
    table = pd.DataFrame(
        {
            "initial_val_loss": rows["initial_val_loss"],
            "final_val_loss": rows["eval_loss"],
            "val_accuracy": rows["val_accuracy"],
            "val_perplexity": rows["val_perplexity"],
        }
    )
    return table.sort_values("final_val_loss", kind="stable")


TABLES: dict[str, tuple[str, Callable[[pd.DataFrame], pd.DataFrame]]] = {
    "configurations": ("Configurations", configurations),
    "performance": ("Performance", performance),
    "top5": ("Top-5 accuracy", top5),
    "sequence_length": ("Sequence length", sequence_length),
    "data_exposure": ("Data exposure", data_exposure),
    "normalized": ("Normalised by data exposure", normalized),
    "efficiency": ("Training efficiency", efficiency),
    "validation": ("Validation", validation),
}
"""Title and maker of every table, in the paper's order and under the names of its figures."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """How a column is headed and printed; a setting is shown beside the published one, unjudged."""

    header: str
    decimals: str = ".3f"
    setting: bool = False


COLUMNS = {
    "d_model": Column(header="d_model", decimals=".0f", setting=True),
    "n_heads": Column(header="heads", decimals=".0f", setting=True),
    "n_layers": Column(header="layers", decimals=".0f", setting=True),
    "batch_size": Column(header="batch", decimals=".0f", setting=True),
    "learning_rate": Column(header="lr", decimals=".3g", setting=True),
    "seq_len": Column(header="seq_len", decimals=".0f", setting=True),
    "tokens_per_step": Column(header="tokens/step", decimals=",.0f", setting=True),
    "total_tokens": Column(header="total tokens", decimals=",.0f", setting=True),
    "tokens_millions": Column(header="tokens (M)", decimals=".2f", setting=True),
    "trials_on_device": Column(header="trials/device", decimals=".3g", setting=True),
    "train_loss": Column(header="train loss"),
    "eval_loss": Column(header="eval loss"),
    "accuracy": Column(header="accuracy"),
    "perplexity": Column(header="perplexity", decimals=".2f"),
    "initial_top5": Column(header="initial"),
    "final_top5": Column(header="final"),
    "improvement": Column(header="improvement"),
    "top1_gap": Column(header="top-1 gap"),
    "steps_per_second": Column(header="steps/s", decimals=".2f"),
    "memory_usage": Column(header="memory"),
    "tokens_per_second": Column(header="tokens/s", decimals=",.0f"),
    "final_loss": Column(header="final loss"),
    "loss_per_million_tokens": Column(header="loss per M tokens", decimals=".4f"),
    "step_time_mean_s": Column(header="step time (s)", decimals=".4f"),
    "step_time_std_s": Column(header="std (s)", decimals=".4f"),
    "initial_val_loss": Column(header="initial loss", decimals=".2f"),
    "final_val_loss": Column(header="final loss", decimals=".2f"),
    "val_accuracy": Column(header="accuracy"),
    "val_perplexity": Column(header="perplexity", decimals=".2f"),
}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A table of a run beside the published one; rows are configurations.

    `ours` is unrounded, NaN where missing; `published` is as printed, NaN for a configuration that
    the study does not have, and lacks the columns that the paper's table lacks. `marked` has the
    shape of `published`: measured figures that are not comparable. By row: `seeds`, the number of
    trials that ours is the mean of; `not_comparable`, the reasons for the marks; `unfinished`, the
    trials that did not get to their end. `reasons` has those of all rows, each kind once.
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
        few, many = self.seeds.min(), self.seeds.max()
        seeds = many if few == many else f"{few} to {many}"
        title = f"Table {self.number} · {TABLES[self.name][0]}"
        return f"{title} · mean of {seeds} seeds" if many > 1 else title

    def frame(self) -> pd.DataFrame:
        """What the csv holds: each column `x` of ours, followed by the paper's `x_published`."""
        frame = pd.DataFrame({"seeds": self.seeds})
        for column in self.ours:
            frame[column] = self.ours[column]
            if column in self.published:
                frame[f"{column}_published"] = self.published[column]
        return frame.assign(not_comparable=self.not_comparable, unfinished=self.unfinished)


def beside_published(run: Run) -> list[Comparison]:
    """The run's tables in the paper's order, less those that none of its configurations is in."""
    summary, unfinished = summarise(run), _unfinished(run)
    tables = [
        _compare(run, summary, unfinished, number, name)
        for number, name in enumerate(TABLES, start=1)
    ]
    return [table for table in tables if len(table.ours)]


def _compare(
    run: Run, summary: pd.DataFrame, unfinished: pd.Series, number: int, name: str
) -> Comparison:
    ours = TABLES[name][1](summary)
    printed = published_tables().get(name, pd.DataFrame())
    measured = [column for column in printed if not COLUMNS[column].setting]
    never = [column for column in measured if column in COLUMN_REASONS]
    never_reasons = list(dict.fromkeys(COLUMN_REASONS[column] for column in never))
    studied = ours.index.intersection(printed.index) if measured else ours.index[:0]
    own = {configuration: differences(run, configuration) for configuration in studied}
    marked = pd.DataFrame(False, index=ours.index, columns=printed.columns)
    marked.loc[studied, never] = True
    marked.loc[[configuration for configuration in studied if own[configuration]], measured] = True
    not_comparable = pd.Series({row: "; ".join(own[row] + never_reasons) for row in studied})
    return Comparison(
        number=number,
        name=name,
        ours=ours,
        published=printed.reindex(ours.index),
        marked=marked,
        seeds=mean_over_seeds(summary).loc[:, "seeds"].reindex(ours.index),
        not_comparable=not_comparable.reindex(ours.index, fill_value=""),
        unfinished=unfinished.reindex(ours.index, fill_value=""),
        reasons=differences(run, *studied) + never_reasons if len(studied) else [],
    )


def _unfinished(run: Run) -> pd.Series:
    notes = [_unfinished_note(trial) for trial in run.trials.to_dict("records")]
    trials = run.trials.assign(note=notes).loc[lambda trials: trials["note"] != ""]
    return trials.groupby("configuration")["note"].agg("; ".join)


def _unfinished_note(trial: dict[Hashable, Any]) -> str:
    """What kept the trial from its last step, or "" if it got there and its loss is a number."""
    if trial["status"] == "WAITING":
        return f"seed {trial['seed']} WAITING"
    done, steps = trial["steps_done"], trial["budget.steps"]
    if trial["status"] == "COMPLETE" and done == steps and not trial["diverged"]:
        return ""
    state = trial["status"] + " and diverged" * trial["diverged"]
    reason = f": {trial['reason']}" if isinstance(trial["reason"], str) else ""
    return f"seed {trial['seed']} {state} at step {done:,} of {steps:,.0f}{reason}"


def write_csv(comparisons: list[Comparison], folder: Path) -> list[Path]:
    """Writes each table to `folder` (made if need be), ours to ten digits, and returns the files.

    An empty cell of ours is a missing figure, an empty cell of `_published` has none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"table{table.number}_{table.name}.csv" for table in comparisons]
    for table, file in zip(comparisons, files, strict=True):
        table.frame().to_csv(file, index_label="configuration", float_format="%.10g")
    return files


def render(comparison: Comparison) -> Group:
    """The table for a terminal of 100 columns: ours, and dimmed beside it the paper's figure."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("\nconfiguration", overflow="fold")
    columns = [_printed_column(comparison, name) for name in comparison.ours]
    for header, _ in columns:
        table.add_column(Text(header), no_wrap=True)
    for row, configuration in enumerate(comparison.ours.index):
        table.add_row(Text(configuration), *(cells[row] for _, cells in columns))
    notes: list[Text] = []
    if comparison.marked.to_numpy().any():
        notes.append(Text(f"* not comparable: {'; '.join(comparison.reasons)}"))
    unfinished = [f"{name} {note}" for name, note in comparison.unfinished.items() if note]
    if unfinished:
        notes.append(Text(f"unfinished: {'; '.join(unfinished)}"))
    return Group(Text(comparison.heading, style="bold"), table, *notes, "")


def _printed_column(comparison: Comparison, name: str) -> tuple[str, list[Text]]:
    """Header and cells of equal width, padded here: rich has no heading over two columns."""
    column = COLUMNS.get(name, Column(header=name))
    absent = "-" if column.setting else "missing"
    ours = ["ours", *(_printed(figure, column, absent) for figure in comparison.ours[name])]
    paper = [""] * len(ours)
    if name in comparison.published:
        marked = [bool(mark) for mark in comparison.marked[name]]
        stars = ["*" if mark else " " * any(marked) for mark in marked]
        figures = (_printed(figure, column, "-") for figure in comparison.published[name])
        paper = ["paper", *map("".join, zip(figures, stars, strict=True))]
    paper_width = max(map(len, paper))
    ours_width = max(*map(len, ours), len(column.header) - paper_width - 1)
    heads, *cells = [
        Text.assemble(our.rjust(ours_width), " ", (their.rjust(paper_width), "dim"))
        for our, their in zip(ours, paper, strict=True)
    ]
    return f"{column.header:^{len(heads)}}\n{heads.plain}", cells


def _printed(figure: float | str, column: Column, absent: str) -> str:
    if isinstance(figure, str):
        return figure
    return absent if pd.isna(figure) else format(figure, column.decimals)
