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

from quarterhour.analysis import plots
from quarterhour.analysis.chapters.search.results import (
    CORRECTION,
    SearchResults,
    search_results,
    seed_comparison,
    spoken,
)
from quarterhour.analysis.chapters.search.tables import (
    importances,
    non_dominated,
    parameters,
    proposed,
)
from quarterhour.analysis.plots import BEST_COLOUR, COLOURS, NOTE_COLOUR, PROPOSED_COLOUR
from quarterhour.analysis.runs import Run
from quarterhour.tune.run_folder import COLUMNS, TRIAL, Status

_SLICES_A_ROW = 4
_FEW_CURVES = 30  # more are drawn as pixels, and fainter


def optimisation_history(run: Run) -> Figure | None:
    """Objective of each trial by its number, pruned ones at their last row, and the best so far."""
    results = search_results(run)
    shown = [name for name in results.objectives if any(results.searched[name].notna())]
    if not shown:
        return None
    figure, _ = plots.figure_and_axes((plots.SINGLE, 3.8 * len(shown)), len(shown))
    for axes, objective in zip(figure.axes, shown, strict=True):
        _draw_history(axes, results, objective)
        axes.set(xlabel="trial", ylabel=_label(objective))
    plots.add_legend(figure, figure.axes[0])
    return figure


def importance_intervals(run: Run) -> Figure | None:
    """fANOVA importances of the settings, with the 95 % intervals of a jackknife over trials."""
    shares: Any = importances(run)
    if shares.empty:
        return None
    by_objective = dict([*shares.groupby("objective", sort=False)])
    size = (plots.SINGLE * len(by_objective), 1.4 + 0.28 * shares["setting"].nunique())
    figure, _ = plots.figure_and_axes(size, 1, len(by_objective))
    for axes, (objective, own) in zip(figure.axes, by_objective.items(), strict=True):
        plots.draw_intervals(axes, own["setting"], own["share"], own["low"], own["high"])
        axes.set(xlabel=f"share of the variance of {_label(objective)}", xlim=(-0.02, 1.02))
    plots.add_note(figure, f"fANOVA on {len(proposed(run))} complete proposals")
    return figure


def learning_curves(run: Run) -> Figure | None:
    """Objective of every trial by tokens seen; those that were stopped early are faint."""
    results = search_results(run)
    objective = results.objective
    rows: Any = run.rows.reindex(columns=[*TRIAL, "tokens", objective]).dropna()
    rows = rows.merge(results.searched[[*TRIAL, "status", "origin"]], on=TRIAL)
    if rows.empty:
        return None
    figure, axes = plots.figure_and_axes((plots.SINGLE, 4.2))
    complete = rows["status"] == Status.COMPLETE
    of_six = rows["origin"].isin(results.reference)
    _draw_curves(axes, rows.loc[~complete], objective, PROPOSED_COLOUR, 0.5, "not complete")
    proposed = rows.loc[complete & ~of_six]
    _draw_curves(axes, proposed, objective, PROPOSED_COLOUR, 0.8, "complete, proposed")
    for name, own in rows.loc[complete & of_six].groupby("origin", sort=False):
        _draw_curves(axes, own, objective, COLOURS.get(str(name), NOTE_COLOUR), 1, str(name))
    for best in results.ranked()["configuration"].head(1):
        own = rows.loc[rows["configuration"] == best]
        _draw_curves(axes, own, objective, BEST_COLOUR, 1, f"best, trial {best}", width=3)
    axes.autoscale()
    axes.set(xlabel="tokens", ylabel=_label(objective))
    axes.xaxis.set_major_formatter(EngFormatter())
    plots.add_legend(figure, axes)
    return figure


def parallel_coordinates(run: Run) -> Figure | None:
    """The settings of the complete trials as lines, coloured by objective, the better drawn over
    the worse; the best is dashed, with dots. At the ends of an axis are the bounds of its range."""
    results, ranges = search_results(run), parameters(run)
    ranked = results.measured()
    if len(ranked) < 2 or not ranges:
        return None
    figure, axes = plots.figure_and_axes((1.5 + 1.1 * len(ranges), 4.5))
    positions = np.column_stack([_position(ranked[path], kind) for path, kind in ranges.items()])
    lines = [np.column_stack([range(len(ranges)), line]) for line in positions[::-1]]
    values = ranked[results.objective][::-1]
    drawn = LineCollection(lines, array=values, cmap=plots.ORDER, alpha=0.7)
    axes.add_collection(drawn)
    best = f"best, trial {spoken(ranked.iloc[0])}"
    axes.plot(positions[0], "o--", color=BEST_COLOUR, linewidth=2.5, label=best)
    figure.colorbar(drawn, ax=axes, label=_label(results.objective), pad=0.01)
    names = [path.rpartition(".")[2].replace("_", "\n") for path in ranges]
    lowest, highest = ([_bound(kind, end) for kind in ranges.values()] for end in (0, -1))
    axes.set_xticks(range(len(ranges)), map("{}\n\n{}".format, lowest, names))
    for place, (text, kind) in enumerate(zip(highest, ranges.values(), strict=True)):
        axes.text(place, 1.03, text, ha="center", va="bottom")
        _name_choices(axes, place, kind)
    axes.set(xlim=(-0.4, len(ranges) - 0.6), ylim=(-0.02, 1.02), yticks=[])
    plots.add_legend(figure, axes)
    return figure


def slices(run: Run) -> Figure | None:
    """The objective against each setting, one dot a complete trial, coloured by its number."""
    results, ranges = search_results(run), parameters(run)
    complete = results.measured()
    if complete.empty or not ranges:
        return None
    rows = -(-len(ranges) // _SLICES_A_ROW)
    figure, _ = plots.figure_and_axes((12, 2.6 * rows), rows, _SLICES_A_ROW)
    number = complete["configuration"].astype(int)
    order = ScalarMappable(Normalize(number.min(), number.max()), plots.ORDER)
    for axes, (path, kind) in zip(figure.axes, ranges.items(), strict=False):
        values = complete[path]
        if choices := getattr(kind, "choices", ()):
            values = values.map(choices.index)
            names = [str(choice).replace("-", "-\n") for choice in choices]
            axes.set_xticks(range(len(names)), names, fontsize="x-small")
        axes.scatter(values, complete[results.objective], c=order.to_rgba(number), s=16)
        axes.set(xlabel=path)
        if getattr(kind, "log", False):
            plots.plain_log(axes.xaxis)
            axes.xaxis.set_minor_locator(LogLocator(subs=(3,)))  # there is no room for more labels
        elif isinstance(getattr(kind, "step", None), int):
            axes.locator_params("x", integer=True)
    for axes in figure.axes[len(ranges) :]:
        axes.remove()
    figure.colorbar(order, ax=figure.axes, label="trial", pad=0.01)
    figure.supylabel(_label(results.objective))
    return figure


def pareto_front(run: Run) -> Figure | None:
    """Complete trials by each pair of objectives; a line joins those that no other beats."""
    results = search_results(run)
    complete = results.measured()
    pairs = list(combinations(results.objectives, 2))
    if not pairs or complete.empty:
        return None
    figure, _ = plots.figure_and_axes((plots.SINGLE * len(pairs), 4.2), 1, len(pairs))
    for axes, pair in zip(figure.axes, pairs, strict=True):
        _draw_trials(axes, results, complete, *pair)
        objectives = {name: results.objectives[name] for name in pair}
        front = non_dominated(complete, objectives).sort_values(pair[0])
        axes.plot(front[pair[0]], front[pair[1]], color=BEST_COLOUR, zorder=1, label="front")
        axes.set(xlabel=_label(pair[0]), ylabel=_label(pair[1]))
    plots.add_legend(figure, figure.axes[0])
    return figure


def fresh_seeds(run: Run) -> Figure | None:
    """How the best trials differ from the best of the six, or what was searched around, with seeds
    that the search had not used.

    Small dots are seeds: each one's difference from the mean of the latter.
    """
    results = search_results(run)
    compared: Any = seed_comparison(results)
    if compared.empty:
        return None
    figure, axes = plots.figure_and_axes((plots.SINGLE, 1.5 + 0.45 * len(compared)))
    axes.axvline(0, color=plots.NOTE_COLOUR, linewidth=1)
    origins = results.searched.set_index("configuration")["origin"]
    names = [f"{name} {origins[name]} (n = {n})" for name, n in compared[["trial", "n"]].to_numpy()]
    middle, low, high = (compared[name] for name in ("difference", "low", "high"))
    plots.draw_intervals(axes, names, middle, low, high)
    reference = compared.loc[compared["difference"].isna(), "mean"].item()
    fresh: Any = results.fresh.loc[results.fresh["status"] == Status.COMPLETE]
    for place, name in enumerate(compared["trial"].astype(str)):
        seeds = fresh.loc[fresh["configuration"] == name, results.objective] - reference
        colour = COLOURS.get(str(origins[name]), PROPOSED_COLOUR)
        axes.plot(seeds, [place + 0.18] * len(seeds), "o", color=colour, alpha=0.7, markersize=4)
    axes.set(xlabel=f"{_label(results.objective)}, difference from {results.standard}")
    plots.add_note(figure, f"small dots: seeds; bars: {CORRECTION}")
    return figure


def _label(objective: str) -> str:
    return COLUMNS[objective].header


def _position(values: pd.Series, kind: Any) -> Any:
    """The places of these values on an axis from 0 to 1."""
    if hasattr(kind, "choices"):
        return values.map(kind.choices.index) / (len(kind.choices) - 1)
    scale = np.log if getattr(kind, "log", False) else np.asarray
    low, high = scale(kind.low), scale(kind.high)
    return (scale(values.astype(float)) - low) / (high - low)


def _name_choices(axes: Axes, place: int, kind: Any) -> None:
    """The choices between the first and the last, beside their places on an axis."""
    between = getattr(kind, "choices", ())[1:-1]
    for number, choice in enumerate(between, start=1):
        at = (place, number / (len(between) + 1))
        axes.annotate(choice, at, (5, 0), textcoords="offset points", va="center", fontsize="small")


def _bound(kind: Any, end: int) -> str:
    """The lowest (0) or the highest (-1) value of a range, or the choice at that end."""
    if hasattr(kind, "choices"):
        return str(kind.choices[end])
    return plots.plain_number((kind.low, kind.high)[end])


def _draw_history(axes: Axes, results: SearchResults, objective: str) -> None:
    searched = results.searched.dropna(subset=[objective])
    searched = searched.assign(trial=searched["configuration"].astype(int)).sort_values("trial")
    complete = searched["status"] == Status.COMPLETE
    cut, ended = searched.loc[~complete].set_index("trial"), searched.loc[complete]
    axes.plot(cut[objective], "x", color=PROPOSED_COLOUR, label="not complete", mew=1.5)
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
