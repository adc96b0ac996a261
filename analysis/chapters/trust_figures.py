"""Figures of what the paper leaves out: equal costs, learning by heart, calibration, scaling."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from quarterhour.analysis.chapters.calibration import calibration, reliability
from quarterhour.analysis.chapters.equal_cost import VIEWS, equal_cost
from quarterhour.analysis.chapters.memorisation import gap_over_time
from quarterhour.analysis.chapters.paper.figures import Panel, curves
from quarterhour.analysis.chapters.scaling import AXES, LAW, fits, law, points
from quarterhour.analysis.plots import (
    BEST_COLOUR,
    COLOURS,
    NOTE_COLOUR,
    PROPOSED_COLOUR,
    add_legend,
    add_note,
    colours,
    figure_and_axes,
    plain_log,
    plain_number,
)
from quarterhour.analysis.runs import Run

_LOOKS = (("o", "-"), ("s", "--"), ("D", "-."), ("^", ":"))  # of data, one after the other

MEMORISATION_PANELS = (
    Panel(column="eval_loss", label="loss on leaky windows (nats)"),
    Panel(column="heldout_loss", label="held-out loss (nats)"),
    Panel(column="gap", label="gap: held-out - leaky (nats)"),
)


def memorisation_gap(run: Run) -> Figure | None:
    """Loss on the study's validation windows, which overlap training; on unseen documents; the gap.

    A rising gap is training text learned by heart.
    """
    gaps = replace(run, rows=gap_over_time(run))
    return curves(gaps, MEMORISATION_PANELS, size=(12, 4), n_columns=3)


def equal_cost_losses(run: Run) -> Figure | None:
    """Held-out loss of the configurations at equal steps, tokens, FLOPs and device-seconds.

    Numbers are ranks; a hollow dot is interpolated on a curve whose schedule was made for another
    length. Seconds on a shared device are left out.
    """
    table = equal_cost(run)
    ranked: Any = table.loc[table["rank"].notna()]
    if ranked.empty:
        return None
    names = list(dict.fromkeys(table["configuration"]))
    figure, _ = figure_and_axes((13, 1.6 + 0.4 * len(names)), 1, len(VIEWS))
    for axes, view in zip(figure.axes, VIEWS, strict=True):
        own = ranked.loc[ranked["view"] == view]
        _draw_view(axes, own.to_dict("records"), names)
        axes.set(title=f"equal {view}", xlabel="held-out loss (nats)")
        if len(own):
            axes.set_xlabel(f"held-out loss (nats)\nat {plain_number(own['cost'].iloc[0])}")
        else:
            axes.set(xticks=[], xlabel="")
            axes.text(0.5, 0.5, "device shared:\nnot ranked", transform=axes.transAxes, ha="center")
    for axes in figure.axes[1:]:
        axes.tick_params(labelleft=False)
    add_note(figure, "numbers: ranks; hollow: interpolated; bars: 95 % over seeds")
    return figure


def _draw_view(axes: Axes, rows: list[dict[str, Any]], names: list[str]) -> None:
    own = colours(names)
    for row in rows:
        name = row["configuration"]
        half = row["high"] - row["heldout_loss"] if row["n"] > 1 else None
        axes.errorbar(
            row["heldout_loss"], names.index(name), xerr=half, fmt="o", color=own[name],
            markerfacecolor="white" if row["interpolated"] else own[name], capsize=3,
        )  # fmt: skip
        place = (row["heldout_loss"], names.index(name))
        axes.annotate(f"{row['rank']:.0f}", place, (0, 6), textcoords="offset points", ha="center")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.7)
    axes.margins(x=0.15)


def reliability_diagram(run: Run) -> Figure | None:
    """Accuracy of the tokens in each bin of confidence, at the last evaluation, all seeds together.

    On the diagonal a model is right as often as it is confident; ECE is the expected calibration
    error. Larger dots hold more tokens.
    """
    bins: Any = reliability(run)
    if bins.empty:
        return None
    errors: Any = calibration(run).set_index("configuration")["ece"]
    figure, axes = figure_and_axes((6.5, 6))
    axes.plot([0, 1], [0, 1], "--", color=NOTE_COLOUR, label="calibrated")
    own_colours = colours(run.trials["configuration"])
    for name, own in bins.dropna().groupby("configuration", sort=False):
        colour, label = own_colours[name], f"{name}, ECE {errors[name]:.3f}"
        axes.plot(own["confidence"], own["accuracy"], color=colour, label=label)
        sizes = 100 * own["tokens"] / own["tokens"].sum()
        axes.scatter(own["confidence"], own["accuracy"], sizes + 5, color=colour)
    axes.set(xlabel="confidence (mean of the bin)", ylabel="accuracy", aspect="equal")
    add_legend(figure, axes)
    return figure


def scaling_laws(runs: Sequence[Run]) -> Figure | None:
    """Held-out loss of the complete configurations against parameters, tokens and FLOPs.

    Lines are the power laws with an offset, where there are points enough; data that differ have
    markers and lines that differ.
    """
    measured: Any = points(runs)
    if measured.empty:
        return None
    named = COLOURS | {"another": PROPOSED_COLOUR}
    shown_as = measured["configuration"].where(measured["configuration"].isin(COLOURS), "another")
    figure, (first, *_) = figure_and_axes((13, 4.5), 1, len(AXES))
    for name in shown_as.unique():
        first.plot([], [], "o", color=named[name], label=name)
    add_legend(figure, first)
    laws: Any = fits(runs)
    for axes, axis in zip(figure.axes, AXES, strict=True):
        found = laws.loc[laws["axis"].eq(axis) & laws["reason"].eq("")]
        _draw_points_and_laws(axes, axis, measured.assign(colour=shown_as.map(named)), found)
        axes.set(xlabel=axis, ylabel="held-out loss (nats)")
        plain_log(axes.xaxis)
    return figure


def _draw_points_and_laws(axes: Axes, axis: str, measured: pd.DataFrame, laws: Any) -> None:
    by_data: Any = measured.groupby("data", sort=False)
    lines: list[Line2D] = []
    for (data, own), (marker, style) in zip(by_data, cycle(_LOOKS), strict=False):
        axes.scatter(own[axis], own["heldout_loss"], 25, own["colour"], marker=marker)
        which = f"{', '.join(own['run'].unique())}: " if by_data.ngroups > 1 else ""
        for row in laws.loc[laws["data"] == data].to_dict("records"):
            lines.append(_law(axes, own[axis], row, style, which))
    if lines:
        axes.legend(handles=lines, frameon=False)
    else:
        axes.set_title("no fit", color=NOTE_COLOUR, fontsize="medium")


def _law(axes: Axes, x: pd.Series, row: dict[str, Any], style: str, which: str) -> Line2D:
    """Draw a fitted law over the range of x that it was fitted to."""
    between = np.geomspace(x.min(), x.max(), 200)
    exponent, *bounds = (row[f"exponent{end}"] for end in ("", "_low", "_high"))
    label = which + "exponent {:.2f} [{:.2f}, {:.2f}]".format(exponent, *bounds)
    losses = law(between, *(row[name] for name in LAW))
    return axes.plot(between, losses, style, color=BEST_COLOUR, label=label)[0]
