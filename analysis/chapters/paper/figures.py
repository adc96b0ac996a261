"""Figures of a run: the study's own, with the published series beside ours where they compare.

A figure is a function of a run and gives a matplotlib Figure, or None while there is nothing to
draw. Lines and bars are means over seeds, with 95 % intervals (Student t) from two seeds on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quarterhour.analysis.chapters.paper.published import (
    COLUMN_REASONS,
    SIX,
    differences,
    published_rows,
    published_summary,
)
from quarterhour.analysis.measures import counted_trials, summarise
from quarterhour.analysis.plots import (
    NOTE_COLOUR,
    add_legend,
    add_note,
    axis_label,
    colours,
    figure_and_axes,
    plain_log,
)  # fmt: skip
from quarterhour.analysis.runs import Run
from quarterhour.analysis.statistics import mean_intervals
from quarterhour.tune.run_folder import EVAL_LOSS, TRAIN_LOSS, TRIAL, TRIALS_ON_DEVICE, Status

_POINTS = 20  # of the study's training-loss figure: every 100th of 2,000 steps


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes of a figure of curves: a column of the rows by optimizer steps.

    Without a `label` it has the one that every row's column has.
    """

    column: str
    label: str = ""
    log: bool = False


TRAINING_PANELS = (
    Panel(column=TRAIN_LOSS, label="training loss (nats)"),
    Panel(column="learning_rate"),
    Panel(column="grad_norm"),
    Panel(column="step_seconds"),
    Panel(column="train_batch_accuracy"),
    Panel(column="train_batch_perplexity", log=True),
    Panel(column="train_batch_confidence"),
    Panel(column="train_batch_top5_accuracy"),
)
VALIDATION_PANELS = (
    Panel(column=EVAL_LOSS, label="validation loss (nats)", log=True),
    Panel(column="eval_accuracy", label="validation accuracy"),
    Panel(column="eval_perplexity", label="validation perplexity", log=True),
)


def over_seeds(run: Run, column: str) -> pd.DataFrame:
    """Means of a column of the rows by configuration and step, where all seeds have it."""
    rows = run.rows.merge(_counted(run), on=TRIAL)
    means = mean_intervals(rows.dropna(subset=[column]).groupby(["configuration", "step"])[column])
    seeds = means.groupby("configuration")["n"].transform("max")
    return means.loc[means["n"] == seeds]


def training_loss(run: Run) -> Figure | None:
    """Training loss at every twentieth of the run, on a log axis: the study's every 100th step."""
    if run.rows.empty:
        return None
    budget = run.trials.set_index(TRIAL)[["budget.steps", "budget.report_every"]]
    rows = run.rows.join(budget, on=TRIAL)
    report_every = rows["budget.report_every"]
    every = (rows["budget.steps"] / _POINTS / report_every).round().clip(lower=1) * report_every
    thinned = replace(run, rows=run.rows.loc[(rows["step"] - 1) % every == 0])
    panel = Panel(column="train_loss_last", label="training loss (nats)", log=True)
    return curves(thinned, [panel], size=(7, 4.5))


def training_curves(run: Run) -> Figure | None:
    """Loss, learning rate, gradient norm, step time; and the measures on the training batch."""
    return curves(run, TRAINING_PANELS, size=(14, 6.5), n_columns=4)


def validation_curves(run: Run) -> Figure | None:
    """Loss, accuracy and perplexity on the study's validation windows, which overlap training."""
    return curves(run, VALIDATION_PANELS, size=(12, 4), n_columns=3)


def final_performance(run: Run) -> Figure | None:
    """Final training loss, and accuracy on the training batch at the study's last evaluation."""
    labels = {
        "train_loss": "training loss of the last step (nats)",
        "accuracy": axis_label("train_batch_accuracy"),
    }
    return _bars(run, summarise(run), labels)


def throughput(run: Run) -> Figure | None:
    """Steps per second over all steps but the first."""
    return _bars(run, summarise(run), {"steps_per_second": "steps per second"})


def convergence(run: Run) -> Figure | None:
    """How far the training loss fell from the first quarter of the steps to the last."""
    labels = {"improvement": "(early - late) ÷ early training loss"}
    return _bars(run, _with_improvement(summarise(run)), labels)


def efficiency(run: Run) -> Figure | None:
    """Training loss against the seconds that the trial has trained."""
    if run.rows.empty or over_seeds(run, TRAIN_LOSS).empty:
        return None
    figure, axes = figure_and_axes((7, 4.5))
    losses, seconds = over_seeds(run, TRAIN_LOSS), over_seeds(run, "seconds")
    curves = losses.assign(seconds=seconds["mean"])
    for name, colour in colours(run.trials["configuration"]).items():
        if name in curves.index.get_level_values(0):
            _draw_curve(axes, curves.loc[name].set_index("seconds"), colour, _label(name, curves))
    axes.set(xlabel="device-seconds of training", ylabel="training loss (nats)")
    plain_log(axes.yaxis)
    add_legend(figure, axes)
    add_note(
        figure, f"{_sharing_note(run)}; the published clock did not wait for its GPU: not drawn"
    )
    return figure


def curves(
    run: Run, panels: Sequence[Panel], *, size: tuple[float, float], n_columns: int = 1
) -> Figure | None:
    """One panel a measure, one line a configuration; None where no row has any of the measures."""
    columns = [panel.column for panel in panels]
    measured = [
        name for name in columns if name in run.rows and run.rows[name].notna().to_numpy().any()
    ]
    if not measured:
        return None
    figure, _ = figure_and_axes(size, -(-len(panels) // n_columns), n_columns)
    published = published_rows()
    compared = [name for name in SIX if not differences(run, name)]
    published = published.loc[published["configuration"].isin(compared)]
    for axes, panel in zip(figure.axes, panels, strict=False):
        if panel.column in measured:
            _draw_panel(axes, run, published, panel)
        else:
            axes.text(0.5, 0.5, "missing", transform=axes.transAxes, ha="center")
        axes.set(xlabel=axis_label("step"), ylabel=panel.label or axis_label(panel.column))
    first = next(axes for axes in figure.axes if axes.lines)
    add_legend(figure, first)
    add_note(figure, _published_note(run))
    return figure


def _counted(run: Run) -> pd.DataFrame:
    """Configuration and seed of the trials that means are over: those of the tables, once begun."""
    begun = run.trials.loc[run.trials["status"] != Status.WAITING]
    return counted_trials(begun).loc[:, TRIAL]


def _label(name: str, means: pd.DataFrame) -> str:
    return f"{name} (n = {means.loc[name, 'n'].max()})"


def _draw_panel(axes: Axes, run: Run, published: pd.DataFrame, panel: Panel) -> None:
    means = over_seeds(run, panel.column)
    for name, colour in colours(run.trials["configuration"]).items():
        if name in means.index.get_level_values(0):
            _draw_curve(axes, means.loc[name], colour, _label(name, means))
            theirs = published.loc[published["configuration"] == name].set_index("step")
            if len(theirs) and panel.column in theirs:
                axes.plot(theirs[panel.column].dropna(), "--", color=colour, linewidth=1)
    if panel.log:
        plain_log(axes.yaxis)


def _draw_curve(axes: Axes, means: pd.DataFrame, colour: str, label: str) -> None:
    marker = "o" if len(means) < 30 else ""
    axes.plot(means["mean"], color=colour, label=label, marker=marker, markersize=3)
    axes.fill_between(means.index, means["low"], means["high"], color=colour, alpha=0.2)


def _bars(run: Run, summary: pd.DataFrame, labels: dict[str, str]) -> Figure | None:
    """One panel a column of `summary`, one bar a configuration, the published beside it."""
    counted = summary.merge(_counted(run), on=TRIAL)
    if counted.loc[:, list(labels)].isna().to_numpy().all():
        return None
    names = list(dict.fromkeys(counted["configuration"]))
    figure, _ = figure_and_axes((6.5 * len(labels), 1.4 + 0.5 * len(names)), 1, len(labels))
    published = _with_improvement(published_summary()).set_index("configuration")
    every_name = pd.CategoricalDtype(names)  # a configuration without the figure is shown too
    compared = [name for name in names if name in SIX and not differences(run, name)]
    for axes, (column, label) in zip(figure.axes, labels.items(), strict=True):
        known = counted.dropna(subset=[column]).astype({"configuration": every_name})
        means = mean_intervals(known.groupby("configuration", observed=False)[column])
        theirs = published.loc[[] if column in COLUMN_REASONS else compared, column]
        _draw_bars(axes, means, theirs)
        axes.set(xlabel=label)
    reasons = [COLUMN_REASONS[column] for column in labels if column in COLUMN_REASONS]
    said = f"published not drawn: {reasons[0]}" if reasons else _published_note(run, bars=True)
    shared = f"; {_sharing_note(run)}" if "steps_per_second" in labels else ""
    add_note(figure, said + shared)
    return figure


def _draw_bars(axes: Axes, means: pd.DataFrame, published: pd.Series) -> None:
    """Horizontal bars with their figures at the end; the published ones hatched."""
    height = 0.4 if len(published) else 0.7
    own = colours(means.index)
    rows: list[Any] = means.reset_index().to_dict("records")
    for place, row in enumerate(rows):
        name, colour = row["configuration"], own[row["configuration"]]
        error = row["high"] - row["mean"] if row["n"] > 1 else None
        bar = axes.barh(place, row["mean"], height, color=colour, xerr=error, capsize=3)
        if row["n"]:
            axes.bar_label(bar, fmt=" %.4g", padding=3)
        else:
            axes.text(0, place, " missing", va="center")
        if name in published:
            style: Any = {"color": "white", "edgecolor": colour, "hatch": "///"}
            hatched = axes.barh(place + height, published[name], height, **style)
            axes.bar_label(hatched, fmt=" %.4g", padding=3, color=NOTE_COLOUR)
    labels = [f"{row['configuration']} (n = {row['n']})" for row in rows]
    axes.set_yticks(range(len(rows)), labels)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.grid(visible=False, axis="y")


def _with_improvement(summary: pd.DataFrame) -> pd.DataFrame:
    return summary.assign(improvement=1 - summary["late_loss"] / summary["early_loss"])


def _published_note(run: Run, *, bars: bool = False) -> str:
    """How the published series are drawn, or why they are not."""
    ours = [name for name in run.trials["configuration"].unique() if name in SIX]
    if not ours:
        return "the study has none of these configurations"
    kinds = differences(run, *ours)
    drawn = f"{'hatched' if bars else 'dashed'}: published, one run"
    if not kinds:
        return drawn
    some = any(not differences(run, name) for name in ours)
    left_out = f"published not drawn, not comparable: other {', '.join(kinds)}"
    return f"{drawn}; {left_out}" if some else left_out


def _sharing_note(run: Run) -> str:
    shared: Any = run.rows[TRIALS_ON_DEVICE].max()
    return f"up to {shared:.0f} trials shared the device" if shared > 1 else "each trial alone"
