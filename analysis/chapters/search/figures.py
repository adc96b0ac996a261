"""Figures of a search: how it came to its best, and what its settings do.

Optuna does not draw them: its matplotlib figures need pyplot, put all slices in one row, and do not
tell the six reference points from what the sampler proposed.
"""

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator
from optuna.distributions import CategoricalDistribution

from quarterhour.analysis import plots
from quarterhour.analysis.chapters.search.results import SearchResults, search_results
from quarterhour.analysis.chapters.search.tables import importances, non_dominated, parameters
from quarterhour.analysis.plots import BEST_COLOUR, COLOURS, NOTE_COLOUR, PROPOSED_COLOUR
from quarterhour.analysis.runs import Run
from quarterhour.analysis.statistics import mean_intervals
from quarterhour.tune.run_folder import TRIAL, Status

_SLICES_A_ROW = 4
_FEW_CURVES = 30  # more are drawn as pixels, and fainter


def optimisation_history(run: Run) -> Figure | None:
    """Objective of each trial by its number, pruned ones at their last row, and the best so far."""
    results = search_results(run)
    shown = [name for name in results.objectives if any(results.searched[name].notna())]
    if not shown:
        return None
    figure, _ = plots.figure_and_axes((8, 4 * len(shown)), len(shown))
    for axes, objective in zip(figure.axes, shown, strict=True):
        _draw_history(axes, results, objective)
        axes.set(xlabel="trial", ylabel=objective)
    plots.add_legend(figure, figure.axes[0])
    return figure


def importance_bars(run: Run) -> Figure | None:
    """fANOVA importances of the settings, and the number of trials that they rest on."""
    shares: Any = importances(run)
    objectives = [name for name in search_results(run).objectives if any(shares[name].notna())]
    if not objectives:
        return None
    height = 1.2 + 0.3 * len(shares)
    figure, _ = plots.figure_and_axes((7 * len(objectives), height), 1, len(objectives))
    for axes, objective in zip(figure.axes, objectives, strict=True):
        ordered = shares[objective].sort_values()
        bars = axes.barh(list(ordered.index), ordered, color=COLOURS["large_batch"])
        axes.bar_label(bars, fmt=" %.2f")
        axes.margins(x=0.1)
        axes.set(xlabel=f"share of the variance of {objective}")
    plots.add_note(figure, f"fANOVA on {shares['trials'].iloc[0]} complete trials")
    return figure


def learning_curves(run: Run) -> Figure | None:
    """Objective of every trial by tokens seen; those that were stopped early are faint."""
    results = search_results(run)
    objective = results.objective
    rows: Any = run.rows.reindex(columns=[*TRIAL, "tokens", objective]).dropna()
    rows = rows.merge(results.searched[[*TRIAL, "status", "origin"]], on=TRIAL)
    if rows.empty:
        return None
    figure, axes = plots.figure_and_axes((8, 5))
    complete = rows["status"] == Status.COMPLETE
    of_six = rows["origin"].isin(results.reference)
    _draw_curves(axes, rows.loc[~complete], objective, PROPOSED_COLOUR, 0.25, "not complete")
    proposed = rows.loc[complete & ~of_six]
    _draw_curves(axes, proposed, objective, PROPOSED_COLOUR, 0.8, "complete, proposed")
    for name, own in rows.loc[complete & of_six].groupby("origin", sort=False):
        _draw_curves(axes, own, objective, COLOURS.get(str(name), NOTE_COLOUR), 1, str(name))
    for best in results.ranked()["configuration"].head(1):
        own = rows.loc[rows["configuration"] == best]
        _draw_curves(axes, own, objective, BEST_COLOUR, 1, f"best, trial {best}", width=3)
    axes.autoscale()
    axes.set(xlabel="tokens", ylabel=objective)
    axes.xaxis.set_major_formatter(EngFormatter())
    plots.add_legend(figure, axes)
    return figure


def parallel_coordinates(run: Run) -> Figure | None:
    """The settings of the complete trials as lines, coloured by objective, the better on top."""
    results, ranges = search_results(run), parameters(run)
    ranked = results.measured()
    if len(ranked) < 2 or not ranges:
        return None
    figure, axes = plots.figure_and_axes((max(8, 0.9 * len(ranges)), 5.5))
    positions = np.column_stack([_position(ranked[path], kind) for path, kind in ranges.items()])
    lines = [np.column_stack([range(len(ranges)), line]) for line in positions[::-1]]
    drawn = LineCollection(lines, array=ranked[results.objective][::-1], cmap="viridis", alpha=0.7)
    axes.add_collection(drawn)
    figure.colorbar(drawn, ax=axes, label=results.objective, pad=0.01)
    labels = [f"{path.rpartition('.')[2]}\n{_bound(kind, 0)}" for path, kind in ranges.items()]
    axes.set_xticks(range(len(ranges)), labels, rotation=60, ha="right")
    for place, kind in enumerate(ranges.values()):
        axes.text(place, 1.02, _bound(kind, -1), ha="left", va="bottom", rotation=60, fontsize=8)
    axes.set(xlim=(-0.2, len(ranges) - 0.8), ylim=(-0.02, 1.02), yticks=[])
    plots.add_note(
        figure, f"{len(ranked)} complete trials; at each axis' ends the bounds of its range"
    )
    return figure


def slices(run: Run) -> Figure | None:
    """The objective against each setting, one dot a complete trial, later ones darker."""
    results, ranges = search_results(run), parameters(run)
    complete = results.measured()
    if complete.empty or not ranges:
        return None
    rows = -(-len(ranges) // _SLICES_A_ROW)
    figure, _ = plots.figure_and_axes((14, 2.8 * rows), rows, _SLICES_A_ROW)
    number = complete["configuration"].astype(int)
    order = ScalarMappable(Normalize(number.min(), number.max()), "viridis_r")
    for axes, (path, kind) in zip(figure.axes, ranges.items(), strict=False):
        values = complete[path]
        if isinstance(kind, CategoricalDistribution):
            values = values.astype(str)
        axes.scatter(values, complete[results.objective], c=order.to_rgba(number), s=16)
        axes.set(xlabel=path, ylabel=results.objective)
        if getattr(kind, "log", False):
            plots.plain_log(axes.xaxis)
            axes.xaxis.set_minor_locator(LogLocator(subs=(3,)))  # there is no room for more labels
    for axes in figure.axes[len(ranges) :]:
        axes.remove()
    figure.colorbar(order, ax=figure.axes, label="trial", pad=0.01)
    return figure


def pareto_front(run: Run) -> Figure | None:
    """Complete trials by each pair of objectives; a line joins those that no other beats."""
    results = search_results(run)
    complete = results.measured()
    pairs = list(combinations(results.objectives, 2))
    if not pairs or complete.empty:
        return None
    figure, _ = plots.figure_and_axes((7 * len(pairs), 5), 1, len(pairs))
    for axes, pair in zip(figure.axes, pairs, strict=True):
        _draw_trials(axes, results, complete, *pair)
        objectives = {name: results.objectives[name] for name in pair}
        front = non_dominated(complete, objectives).sort_values(pair[0])
        axes.plot(front[pair[0]], front[pair[1]], color=BEST_COLOUR, zorder=1, label="front")
        axes.set(xlabel=pair[0], ylabel=pair[1])
    plots.add_legend(figure, figure.axes[0])
    return figure


def fresh_seeds(run: Run) -> Figure | None:
    """The best trials and the best of the six, trained again with seeds the search had not used.

    Dots are seeds; bars are means with their 95 % intervals.
    """
    results = search_results(run)
    fresh: Any = results.fresh.loc[results.fresh["status"] == Status.COMPLETE]
    fresh = fresh.dropna(subset=[results.objective])
    if fresh.empty:
        return None
    by_trial = fresh.groupby("configuration")[results.objective]
    means: Any = mean_intervals(by_trial).sort_values("mean")
    origins = fresh.drop_duplicates("configuration").set_index("configuration")["origin"]
    figure, axes = plots.figure_and_axes((7, 1.6 + 0.5 * len(means)))
    for place, row in enumerate(means.itertuples()):
        colour = COLOURS.get(origins[row.Index], PROPOSED_COLOUR)
        values = fresh.loc[fresh["configuration"] == row.Index, results.objective]
        axes.plot(values, [place] * len(values), "o", color=colour, alpha=0.6)
        half = None if row.n == 1 else row.high - row.mean
        axes.errorbar(row.mean, place, xerr=half, fmt="|", color=colour, capsize=4, markersize=14)
    labels = [f"{name} {origins[name]} (n = {n})" for name, n in means["n"].items()]
    axes.set_yticks(range(len(means)), labels)
    axes.invert_yaxis()
    axes.margins(y=0.2)
    axes.set(xlabel=results.objective)
    return figure


def _position(values: pd.Series, kind: Any) -> Any:
    """The places of these values on an axis from 0 to 1."""
    if isinstance(kind, CategoricalDistribution):
        return values.map(kind.choices.index) / (len(kind.choices) - 1)
    scale = np.log if getattr(kind, "log", False) else np.asarray
    low, high = scale(kind.low), scale(kind.high)
    return (scale(values.astype(float)) - low) / (high - low)


def _bound(kind: Any, end: int) -> str:
    """The lowest (0) or the highest (-1) value of a range, or the choice at that end."""
    if isinstance(kind, CategoricalDistribution):
        return str(kind.choices[end])
    return f"{(kind.low, kind.high)[end]:g}"


def _draw_history(axes: Axes, results: SearchResults, objective: str) -> None:
    searched = results.searched.dropna(subset=[objective])
    searched = searched.assign(trial=searched["configuration"].astype(int)).sort_values("trial")
    complete = searched["status"] == Status.COMPLETE
    cut, ended = searched.loc[~complete].set_index("trial"), searched.loc[complete]
    axes.plot(cut[objective], "x", color=PROPOSED_COLOUR, alpha=0.5, label="not complete")
    _draw_trials(axes, results, ended, "trial", objective)
    values = ended.set_index("trial")[objective]
    best = values.cummin() if results.objectives[objective] == "minimize" else values.cummax()
    axes.step(best.index, best, where="post", color=BEST_COLOUR, label="best so far", zorder=1)


def _draw_trials(axes: Axes, results: SearchResults, trials: pd.DataFrame, x: str, y: str) -> None:
    """One dot a trial, the six in their colours."""
    proposed = trials.loc[~trials["origin"].isin(results.reference)]
    axes.plot(proposed[x], proposed[y], "o", color=PROPOSED_COLOUR, label="complete, proposed")
    for name in results.reference:
        own = trials.loc[trials["origin"] == name]
        if len(own):
            axes.plot(own[x], own[y], "D", color=COLOURS.get(name, NOTE_COLOUR), label=name)


def _draw_curves(
    axes: Axes, rows: Any, objective: str, colour: str, alpha: float, label: str,
    width: float = 1.5,
) -> None:  # fmt: skip
    """All curves in one collection."""
    curves = [own[["tokens", objective]].to_numpy() for _, own in rows.groupby("configuration")]
    if curves:
        few = len(curves) <= _FEW_CURVES
        drawn = LineCollection(curves, colors=colour, linewidths=width, label=label)
        drawn.set(rasterized=not few, alpha=alpha if few else alpha / 2)
        axes.add_collection(drawn)
