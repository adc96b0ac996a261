"""The study's figures of a run, with the published series beside ours where they compare.

Lines and dots are means over seeds, with 95 % intervals (Student t) from two seeds on.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quarterhour.analysis import plots
from quarterhour.analysis.chapters.paper import published
from quarterhour.analysis.measures import counted_trials, summarise
from quarterhour.analysis.runs import Run
from quarterhour.analysis.statistics import mean_intervals
from quarterhour.tune.run_folder import (
    COLUMNS,
    EVAL_LOSS,
    TRAIN_LOSS,
    TRIAL,
    TRIALS_ON_DEVICE,
    Status,
)

_POINTS = 20  # of the study's training-loss figure: every 100th of 2,000 steps


class Panel(NamedTuple):
    """One pair of axes of a figure of curves: a column of the rows by optimizer steps.

    Without a `label` it has that of the column. A `signed` measure can be negative; the bands of
    the others end at zero.
    """

    column: str
    label: str = ""
    log: bool = False
    signed: bool = False


TRAINING_PANELS = (
    Panel(column=TRAIN_LOSS),
    Panel(column="learning_rate"),
    Panel(column="grad_norm", log=True),
    Panel(column="step_seconds"),
    Panel(column="train_batch_accuracy"),
    Panel(column="train_batch_perplexity", log=True),
    Panel(column="train_batch_confidence"),
    Panel(column="train_batch_top5_accuracy"),
)
VALIDATION_PANELS = (
    Panel(column=EVAL_LOSS, log=True),
    Panel(column="eval_accuracy"),
    Panel(column="eval_perplexity", log=True),
)


def over_seeds(run: Run, column: str) -> pd.DataFrame:
    """Means of a column of the rows by configuration and step, where all seeds have it."""
    rows = run.rows[[*TRIAL, "step", column]].dropna().merge(_counted(run), on=TRIAL)
    means = mean_intervals(rows.groupby(["configuration", "step"])[column])
    seeds = means.groupby("configuration")["n"].transform("max")
    return means.loc[means["n"] == seeds]


def training_loss(run: Run) -> Figure | None:
    """Training loss at every twentieth of the run (the study's every 100th step), on a log axis."""
    if run.rows.empty:
        return None
    budget = run.trials.set_index(TRIAL)[["budget.steps", "budget.report_every"]]
    rows = run.rows.join(budget, on=TRIAL)
    report_every = rows["budget.report_every"]
    every = (rows["budget.steps"] / _POINTS / report_every).round().clip(lower=1) * report_every
    thinned = replace(run, rows=run.rows.loc[(rows["step"] - 1) % every == 0])
    panel = Panel(column="train_loss_last", label="training loss of single steps (nats)", log=True)
    return curves(thinned, [panel], size=(plots.SINGLE, 4.2))


def training_curves(run: Run) -> Figure | None:
    """Loss, learning rate, gradient norm and step time; then the measures on the training batch."""
    return curves(run, TRAINING_PANELS, size=(14, 6.5), n_columns=4)


def validation_curves(run: Run) -> Figure | None:
    """Loss, accuracy and perplexity on the study's validation windows, which overlap training."""
    return curves(run, VALIDATION_PANELS, size=(12, 4), n_columns=3)


def final_performance(run: Run) -> Figure | None:
    """Final training loss, and accuracy on the training batch at the study's last evaluation."""
    labels = {
        "train_loss_last": COLUMNS["train_loss_last"].header,
        "accuracy": COLUMNS["train_batch_accuracy"].header,
    }
    return _dots(run, labels)


def throughput(run: Run) -> Figure | None:
    """Steps per second over all steps but the first."""
    return _dots(run, {"steps_per_second": "steps per second"})


def convergence(run: Run) -> Figure | None:
    """How far the training loss fell from the first quarter of the steps to the last: more is a
    longer fall, not a lower loss."""
    return _dots(run, {"improvement": "(early - late) ÷ early training loss"})


def efficiency(run: Run) -> Figure | None:
    """Training loss against the seconds that the trial has trained."""
    if run.rows.empty or over_seeds(run, TRAIN_LOSS).empty:
        return None
    figure, axes = plots.figure_and_axes((plots.SINGLE, 4.2))
    curves = over_seeds(run, TRAIN_LOSS).assign(seconds=over_seeds(run, "seconds")["mean"])
    for name, colour, own in _by_colour(run, curves):
        _draw_curve(axes, own.set_index("seconds"), colour, name)
    axes.set(xlabel="device-seconds of training", ylabel=COLUMNS[TRAIN_LOSS].header)
    plots.plain_log(axes.yaxis)
    plots.add_legend(figure, axes)
    not_drawn = "the published clock did not wait for its GPU: not drawn"
    plots.add_note(figure, f"{_sharing_note(run)}; {not_drawn}")
    return figure


def curves(
    run: Run, panels: Sequence[Panel], *, size: tuple[float, float], n_columns: int = 1
) -> Figure | None:
    """One panel a measure, one line a configuration; None where no row has any of the measures."""
    measured = run.rows.dropna(axis="columns", how="all").columns
    if not any(panel.column in measured for panel in panels):
        return None
    n_rows = -(-len(panels) // n_columns)
    figure, _ = plots.figure_and_axes(size, n_rows, n_columns, sharex=True, squeeze=False)
    recorded = published.rows()
    for axes, panel in zip(figure.axes, panels, strict=False):
        if panel.column in measured:
            _draw_panel(axes, run, recorded, panel)
        else:
            axes.text(0.5, 0.5, "missing", transform=axes.transAxes, ha="center")
        label = panel.label or COLUMNS[panel.column].header
        axes.set(ylabel=f"{label}, log" if panel.log else label)
    for axes in figure.axes[-n_columns:]:
        axes.set_xlabel(COLUMNS["step"].header)
    plots.add_legend(figure, next(axes for axes in figure.axes if axes.lines))
    plots.add_note(figure, _published_note(run))
    return figure


def _counted(run: Run) -> pd.DataFrame:
    """Configuration and seed of the trials that count in a mean: the tables', once begun."""
    begun = run.trials.loc[run.trials["status"] != Status.WAITING]
    return counted_trials(begun).loc[:, TRIAL]


def _by_colour(run: Run, means: Any) -> Iterator[tuple[str, str, Any]]:
    """Each configuration that has means, its colour, and its means."""
    for name, colour in plots.colours(run.trials["configuration"]).items():
        if name in means.index.get_level_values(0):
            yield name, colour, means.loc[name]


def _draw_panel(axes: Axes, run: Run, recorded: pd.DataFrame, panel: Panel) -> None:
    recorded = recorded.reindex(columns=["configuration", "step", panel.column]).dropna()
    for name, colour, means in _by_colour(run, over_seeds(run, panel.column)):
        low = means["low"] if panel.signed else means["low"].clip(lower=0)
        _draw_curve(axes, means.assign(low=low), colour, name)
        theirs = recorded.loc[recorded["configuration"] == name].set_index("step")
        if len(theirs) and not published.differences(run, name):
            axes.plot(theirs[panel.column], "--", color=colour, linewidth=1)
    if panel.log:
        plots.plain_log(axes.yaxis)


def _draw_curve(axes: Axes, means: pd.DataFrame, colour: str, name: str) -> None:
    marker, label = "o" if len(means) < 30 else "", f"{name} (n = {means['n'].max()})"
    axes.plot(means["mean"], color=colour, label=label, marker=marker, markersize=3)
    if means["low"].notna().to_numpy().any():
        axes.fill_between(means.index, means["low"], means["high"], color=colour, alpha=0.2)


def _dots(run: Run, labels: dict[str, str]) -> Figure | None:
    """One panel a figure of the trials, one dot a configuration, and the published."""
    counted = _with_improvement(summarise(run)).merge(_counted(run), on=TRIAL)
    if counted.loc[:, list(labels)].isna().to_numpy().all():
        return None
    names = list(dict.fromkeys(counted["configuration"]))
    size = (plots.SINGLE * len(labels), 1.4 + 0.4 * len(names))
    figure, _ = plots.figure_and_axes(size, 1, len(labels))
    recorded = _with_improvement(published.summary()).set_index("configuration")
    every_name = pd.CategoricalDtype(names)  # a configuration without the figure is shown too
    compared = [n for n in names if n in published.SIX and not published.differences(run, n)]
    for axes, (column, label) in zip(figure.axes, labels.items(), strict=True):
        known = counted.dropna(subset=[column]).astype({"configuration": every_name})
        means = mean_intervals(known.groupby("configuration", observed=False)[column])
        theirs = recorded.loc[[] if column in published.COLUMN_REASONS else compared, column]
        _draw_dots(axes, means, theirs)
        axes.set(xlabel=label)
    reasons = [published.COLUMN_REASONS[c] for c in labels if c in published.COLUMN_REASONS]
    said = f"published not drawn: {reasons[0]}" if reasons else _published_note(run, "hollow")
    if "steps_per_second" in labels:
        said += f"; {_sharing_note(run)}"
    plots.add_note(figure, said)
    return figure


def _draw_dots(axes: Axes, means: Any, theirs: pd.Series) -> None:
    """A dot a configuration with its figure beside it; the published ones are hollow."""
    own = plots.colours(means.index)
    decimals = _decimals([*means["mean"], *theirs])
    rows: Any = means.itertuples()
    for place, row in enumerate(rows):
        name, colour = row.Index, own[row.Index]
        if row.n:
            half = row.high - row.mean if row.n > 1 else None
            axes.errorbar(row.mean, place, xerr=half, fmt="o", color=colour, capsize=4)
            _say(axes, row.mean, place, colour, decimals)
        else:
            axes.text(0.02, place, "missing", va="center", transform=axes.get_yaxis_transform())
        if name in theirs:
            axes.plot(theirs[name], place, "D", color=colour, fillstyle="none")
            _say(axes, theirs[name], place, plots.NOTE_COLOUR, decimals)
    axes.set_yticks(range(len(means)), [f"{name} (n = {n})" for name, n in means["n"].items()])
    axes.set_ylim(len(means) - 0.5, -0.7)
    axes.margins(x=0.15)


def _decimals(figures: Sequence[float]) -> int:
    """How many decimals give the largest figure four digits: all figures of a panel have them."""
    largest = max((abs(x) for x in figures if x), default=1.0)
    return max(0, 3 - math.floor(math.log10(largest))) if math.isfinite(largest) else 0


def _say(axes: Axes, x: Any, place: int, colour: str, decimals: int) -> None:
    said, above = f"{x:,.{decimals}f}", (0, 6)
    axes.annotate(said, (x, place), above, textcoords="offset points", ha="center", color=colour)


def _with_improvement(summary: pd.DataFrame) -> pd.DataFrame:
    return summary.assign(improvement=1 - summary["late_loss"] / summary["early_loss"])


def _published_note(run: Run, look: str = "dashed") -> str:
    """How the published series are drawn, or why they are not."""
    ours = [name for name in run.trials["configuration"].unique() if name in published.SIX]
    if not ours:
        return "the study has none of these configurations"
    kinds = published.differences(run, *ours)
    some = any(not published.differences(run, name) for name in ours)
    said = [f"{look}: published, one run"] * some
    said += [f"published not drawn, not comparable: other {', '.join(kinds)}"] * bool(kinds)
    return "; ".join(said)


def _sharing_note(run: Run) -> str:
    shared: Any = run.rows[TRIALS_ON_DEVICE].max()
    return f"up to {shared:.0f} trials shared the device" if shared > 1 else "each trial alone"
