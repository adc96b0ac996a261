"""Figures of a search: how it came to its best, and what its settings do.

Optuna computes the importances. It is not asked to draw: its matplotlib figures need pyplot, put
all slices in one row, and cannot tell the six reference points from what the sampler proposed.
"""

import functools
from itertools import combinations
from typing import Any

import numpy as np
import optuna
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from quarterhour.analysis.chapters.search.results import SearchResults, search_results
from quarterhour.analysis.plots import (
    BEST_COLOUR,
    COLOURS,
    NOTE_COLOUR,
    PROPOSED_COLOUR,
    add_legend,
    add_note,
    figure_and_axes,
    interval,
    plain_log,
)  # fmt: skip
from quarterhour.analysis.runs import Run

_LOG_RATIO = 100  # a range of this ratio or more is drawn and weighed on a log scale
_SLICES_A_ROW = 4
_TREES = 32  # half of Optuna's number takes half the time
_FEW_CURVES = 30  # more are drawn as pixels, and fainter
_TRIAL = ["configuration", "seed"]


def parameters(run: Run) -> dict[str, BaseDistribution]:
    """What the search ranges over, by dotted name: settings in which complete trials differ.

    One that is an earlier one times a constant, as d_ff is of d_model, is left out.
    """
    complete: Any = _complete(search_results(run))
    domains = run.experiment.get("domains", {})
    ends = pd.DataFrame({path: pd.Series(ends) for path, ends in domains.items()})
    known = pd.concat([complete, ends.reindex(columns=complete.columns)], ignore_index=True)
    found: dict[str, BaseDistribution] = {}
    for path in (name for name in known if str(name).startswith(("model.", "optim.", "data."))):
        differs = complete[path].nunique() > 1
        if differs and not any(_is_multiple(known, path, other) for other in found):
            found[str(path)] = _distribution(known[path].dropna().unique().tolist())
    return found


@functools.lru_cache(maxsize=1)
def importances(run: Run) -> pd.DataFrame:
    """Share of the objective's variance that each setting explains, by fANOVA on complete trials.

    `trials` is how many trials it rests on; with about as few as there are settings, it says
    little. Conditional settings count with their default where they do not apply.
    """
    results, ranges = search_results(run), parameters(run)
    complete = _complete(results)
    study = _study(complete, results.objectives, ranges)
    shares: dict[str, dict[str, float]] = {}
    for number, objective in enumerate(results.objectives):
        shares[objective] = dict.fromkeys(ranges, float("nan"))
        if complete[objective].nunique() > 1:
            shares[objective] = get_param_importances(
                study,
                evaluator=FanovaImportanceEvaluator(n_trees=_TREES, seed=0),
                target=lambda trial, number=number: trial.values[number],
            )
    return pd.DataFrame(shares).rename_axis("setting").assign(trials=len(complete))


def optimisation_history(run: Run) -> Figure | None:
    """Objective of each trial by its number, and the best so far; pruned trials at their last."""
    results = search_results(run)
    shown = [name for name in results.objectives if any(results.searched[name].notna())]
    if not shown:
        return None
    figure, _ = figure_and_axes((8, 4 * len(shown)), len(shown))
    for axes, objective in zip(figure.axes, shown, strict=True):
        _draw_history(axes, results, objective)
        axes.set(xlabel="trial", ylabel=objective)
    add_legend(figure, figure.axes[0])
    return figure


def importance_bars(run: Run) -> Figure | None:
    """fANOVA importances of the settings, and the number of trials that they rest on."""
    shares: Any = importances(run)
    objectives = [name for name in search_results(run).objectives if any(shares[name].notna())]
    if not objectives:
        return None
    height = 1.2 + 0.3 * len(shares)
    figure, _ = figure_and_axes((7 * len(objectives), height), 1, len(objectives))
    for axes, objective in zip(figure.axes, objectives, strict=True):
        ordered = shares[objective].sort_values()
        bars = axes.barh(list(ordered.index), ordered, color=COLOURS["large_batch"])
        axes.bar_label(bars, fmt=" %.2f")
        axes.margins(x=0.1)
        axes.set(xlabel=f"share of the variance of {objective}")
    add_note(figure, f"fANOVA on {shares['trials'].iloc[0]} complete trials")
    return figure


def learning_curves(run: Run) -> Figure | None:
    """Objective of every trial by tokens seen; those that were stopped early are faint."""
    results = search_results(run)
    objective = results.objective
    rows = _curves(run, results)
    if rows.empty:
        return None
    figure, axes = figure_and_axes((8, 5))
    complete = rows["status"] == "COMPLETE"
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
    add_legend(figure, axes)
    return figure


def parallel_coordinates(run: Run) -> Figure | None:
    """The settings of the complete trials as lines, coloured by objective, the better on top."""
    results, ranges = search_results(run), parameters(run)
    ranked = _complete(results)
    if len(ranked) < 2 or not ranges:
        return None
    figure, axes = figure_and_axes((max(8, 0.9 * len(ranges)), 5.5))
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
    add_note(figure, f"{len(ranked)} complete trials; at each axis' ends the bounds of its range")
    return figure


def slices(run: Run) -> Figure | None:
    """The objective against each setting, one dot a complete trial, later ones darker."""
    results, ranges = search_results(run), parameters(run)
    complete = _complete(results)
    if complete.empty or not ranges:
        return None
    rows = -(-len(ranges) // _SLICES_A_ROW)
    figure, _ = figure_and_axes((14, 2.8 * rows), rows, _SLICES_A_ROW)
    number = complete["configuration"].astype(int)
    order = ScalarMappable(Normalize(number.min(), number.max()), "viridis_r")
    for axes, (path, kind) in zip(figure.axes, ranges.items(), strict=False):
        values = complete[path]
        if isinstance(kind, CategoricalDistribution):
            values = values.astype(str)
        axes.scatter(values, complete[results.objective], c=order.to_rgba(number), s=16)
        axes.set(xlabel=path, ylabel=results.objective)
        if getattr(kind, "log", False):
            plain_log(axes.xaxis)
            axes.xaxis.set_minor_locator(LogLocator(subs=(3,)))  # there is no room for more labels
    for axes in figure.axes[len(ranges) :]:
        axes.remove()
    figure.colorbar(order, ax=figure.axes, label="trial", pad=0.01)
    return figure


def pareto_front(run: Run) -> Figure | None:
    """Complete trials by each pair of objectives; a line joins those that none is better than."""
    results = search_results(run)
    complete = _complete(results)
    pairs = list(combinations(results.objectives, 2))
    if not pairs or complete.empty:
        return None
    figure, _ = figure_and_axes((7 * len(pairs), 5), 1, len(pairs))
    for axes, pair in zip(figure.axes, pairs, strict=True):
        _draw_trials(axes, results, complete, *pair)
        study = _study(complete, {name: results.objectives[name] for name in pair}, {})
        best = [trial.number for trial in study.best_trials]
        front = complete.iloc[best].sort_values(pair[0])
        axes.plot(front[pair[0]], front[pair[1]], color=BEST_COLOUR, zorder=1, label="front")
        axes.set(xlabel=pair[0], ylabel=pair[1])
    add_legend(figure, figure.axes[0])
    return figure


def front(run: Run) -> pd.DataFrame:
    """The trials that none is better than: as good in all objectives, and better in one."""
    results = search_results(run)
    complete = _complete(results)
    best = _study(complete, results.objectives, {}).best_trials if len(complete) else []
    shown: Any = complete.iloc[[trial.number for trial in best]]
    return shown.set_index("configuration")[["origin", *results.objectives]].rename_axis("trial")


def fresh_seeds(run: Run) -> Figure | None:
    """The best trials and the best of the six, trained again with seeds the search had not used.

    Dots are seeds, bars the mean with its 95 % interval.
    """
    results = search_results(run)
    fresh: Any = results.fresh.loc[results.fresh["status"] == "COMPLETE"]
    fresh = fresh.dropna(subset=[results.objective])
    if fresh.empty:
        return None
    means = interval(fresh.groupby("configuration")[results.objective]).sort_values("mean")
    origins = fresh.drop_duplicates("configuration").set_index("configuration")["origin"]
    figure, axes = figure_and_axes((7, 1.6 + 0.5 * len(means)))
    rows: list[Any] = means.reset_index().to_dict("records")
    for place, row in enumerate(rows):
        name = row["configuration"]
        colour = COLOURS.get(origins[name], PROPOSED_COLOUR)
        values = fresh.loc[fresh["configuration"] == name, results.objective]
        axes.plot(values, [place] * len(values), "o", color=colour, alpha=0.6)
        half = None if row["n"] == 1 else row["high"] - row["mean"]
        axes.errorbar(
            row["mean"], place, xerr=half, fmt="|", color=colour, capsize=4, markersize=14
        )
    labels = [f"{name} {origins[name]} (n = {n})" for name, n in means["n"].items()]
    axes.set_yticks(range(len(means)), labels)
    axes.invert_yaxis()
    axes.margins(y=0.2)
    axes.set(xlabel=results.objective)
    return figure


def _complete(results: SearchResults) -> Any:
    """The complete trials that have all objectives, the best first."""
    return results.ranked().dropna(subset=[*results.objectives])


def _curves(run: Run, results: SearchResults) -> Any:
    """Rows of the search's own trials that have the objective, with status and origin."""
    rows: Any = run.rows.reindex(columns=[*_TRIAL, "tokens", results.objective]).dropna()
    return rows.merge(results.searched[[*_TRIAL, "status", "origin"]], on=_TRIAL)


def _study(
    complete: Any, objectives: dict[str, str], ranges: dict[str, BaseDistribution]
) -> optuna.Study:
    """The complete trials as a study in memory, in their order."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions: Any = list(objectives.values())
    study = optuna.create_study(directions=directions)
    for trial in complete.to_dict("records"):
        params = {path: trial[path] for path in ranges}
        values = [trial[name] for name in objectives]
        study.add_trial(optuna.create_trial(params=params, distributions=ranges, values=values))
    return study


def _is_multiple(known: Any, path: Any, other: Any) -> bool:
    """Whether a setting is always the other times a constant, at the ends of their ranges too."""
    both = known[[path, other]].dropna().map(lambda value: pd.to_numeric(value, errors="coerce"))
    ratios = both[path] / both[other]
    return bool(np.allclose(ratios, ratios.iloc[0]))


def _distribution(values: list[Any]) -> BaseDistribution:
    """The range or the choices that these values span."""
    if any(isinstance(value, str | bool) for value in values):
        return CategoricalDistribution(sorted(values))
    low, high = min(values), max(values)
    if all(float(value).is_integer() for value in values):
        return IntDistribution(int(low), int(high))
    return FloatDistribution(low, high, log=low > 0 and high / low >= _LOG_RATIO)


def _position(values: pd.Series, kind: Any) -> Any:
    """Where a parallel axis from 0 to 1 has these values."""
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
    complete = searched["status"] == "COMPLETE"
    cut = searched.loc[~complete]
    number = cut["configuration"].astype(int)
    axes.plot(number, cut[objective], "x", color=PROPOSED_COLOUR, alpha=0.5, label="not complete")
    numbered = searched.loc[complete].assign(trial=searched["configuration"].astype(int))
    _draw_trials(axes, results, numbered, "trial", objective)
    minimize = results.objectives[objective] == "minimize"
    values = numbered.sort_values("trial").set_index("trial")[objective]
    best = values.cummin() if minimize else values.cummax()
    axes.step(best.index, best, where="post", color=BEST_COLOUR, label="best so far", zorder=1)


def _draw_trials(axes: Axes, results: SearchResults, trials: pd.DataFrame, x: str, y: str) -> None:
    """A dot a trial, the six in their colours."""
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
