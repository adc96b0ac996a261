"""What all figures share: their colours, their axes, legends and notes."""

import textwrap
from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogFormatter

from quarterhour.analysis.chapters.paper.published import SIX

# Okabe and Ito's palette without its yellow; the colour-blind can tell these apart.
_SIX_COLOURS = ("#000000", "#D55E00", "#56B4E9", "#0072B2", "#009E73", "#CC79A7")
COLOURS: dict[str, str] = dict(zip(SIX, _SIX_COLOURS, strict=True))
"""The colour of each of the six in every figure."""
OTHER_COLOURS = ("#E69F00", "#7F7F7F", "#9C6B3C", "#8E5BB5", "#66A61E", "#C9304A")
PROPOSED_COLOUR = "#8DA0B3"
"""Of a search's trials that are none of the six."""
BEST_COLOUR = "#E69F00"
"""Of the best of many: the best trial, a front, a fitted law."""
ORDER = LinearSegmentedColormap.from_list("order", ("#8E5BB5", "#A9A3AD", "#1B9E5A"))
"""Of figures from low to high: all of it can be read on white and on black."""
NOTE_COLOUR = "#555555"
"""Of remarks in a figure."""
SINGLE = 5.5
"""Inches of a figure of one panel, which fits a phone."""
STYLE: Any = {
    "figure.dpi": 72,  # as svg has it: a text is measured once for its layout and its drawing
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "legend.handlelength": 2.8,  # a dashed line is seen to be one
    "grid.alpha": 0.25,
    "font.size": 10,
    "text.hinting": "none",  # widths that grow with the resolution, as the layout takes them
    "text.parse_math": False,  # a name with a dollar sign is no formula
    "svg.hashsalt": "quarterhour",  # equal figures are equal files
    "svg.fonttype": "path",  # text as outlines looks the same wherever it is opened
}
"""Of all figures, while they are made and drawn."""
TICKS = 5  # at most, on a linear axis
_NOTE_WIDTH = 14  # characters an inch
_LEGEND_INCHES, _CHARACTER_INCHES = 0.7, 0.085  # of an entry, and of each of its characters
_LEGEND_LINES, _LEGEND_LINE_INCHES = 6, 0.22  # that every figure has room for, and of a further one


def colours(configurations: Iterable[str]) -> dict[str, str]:
    """The colour of each configuration: the six have their own, others take the rest.

    Where those are too few, the others are spread over a scale that the colour-blind can read.
    """
    names = list(dict.fromkeys(configurations))
    others = [name for name in names if name not in SIX]
    own = OTHER_COLOURS[: len(others)]
    if len(others) > len(own):
        own = [to_hex(colour) for colour in colormaps["viridis"](np.linspace(0, 0.9, len(others)))]
    return {name: COLOURS[name] if name in SIX else own[others.index(name)] for name in names}


def figure_and_axes(
    size: tuple[float, float], n_rows: int = 1, n_columns: int = 1, **subplots: Any
) -> tuple[Figure, Any]:
    """A Figure and its axes: an array where there are several."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(n_rows, n_columns, **subplots)
    for each in figure.axes:
        each.locator_params(nbins=TICKS)
    return figure, axes


def add_note(figure: Figure, text: str) -> None:
    """Put a remark below the axes, so that the picture alone says what it leaves out."""
    lines = textwrap.fill(text, int(figure.get_figwidth() * _NOTE_WIDTH))
    figure.supxlabel(lines, fontsize="small", color=NOTE_COLOUR)


def add_legend(figure: Figure, axes: Axes) -> None:
    """Put a legend of what these axes show above them."""
    handles, labels = axes.get_legend_handles_labels()
    width = _LEGEND_INCHES + _CHARACTER_INCHES * max(map(len, labels), default=0)
    columns = max(1, int(figure.get_figwidth() / width))
    lines = -(-len(labels) // columns) - _LEGEND_LINES
    figure.set_figheight(figure.get_figheight() + max(0, lines) * _LEGEND_LINE_INCHES)
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)


def draw_intervals(axes: Axes, names: Any, middle: Any, low: Any, high: Any) -> None:
    """Draw a row a name from the top down: a dot, and a bar from `low` to `high` if known."""
    places = range(len(middle))
    bars = np.nan_to_num([middle - low, high - middle])
    axes.errorbar(middle, places, xerr=bars, fmt="o", color=_SIX_COLOURS[3], capsize=4)
    axes.set_yticks(places, names)
    axes.set_ylim(len(middle) - 0.5, -0.5)


def plain_number(x: float) -> str:
    """7, 0.003 or 2.5M."""
    return f"{x:g}" if x < 1e4 else EngFormatter(sep="")(float(f"{x:.4g}"))


def plain_log(axis: Axis) -> None:
    """Give the axis a log scale whose ticks read 6, 7 and 2M, not 6 x 10^0."""
    (axis.axes.set_xscale if axis is axis.axes.xaxis else axis.axes.set_yscale)("log")
    axis.set_major_formatter(_PlainLogFormatter())
    axis.set_minor_formatter(_PlainLogFormatter(minor_thresholds=(1.3, 0.5)))


class _PlainLogFormatter(LogFormatter):
    """Labels the ticks that LogFormatter would, in plain numbers."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return plain_number(x) if super().__call__(x, pos) else ""
