"""How the loss falls with parameters, tokens and FLOPs: power laws with an offset, over runs."""

from collections.abc import Sequence
from functools import cache
from itertools import cycle
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
import scipy  # imports scipy.optimize where there is something to fit
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from quarterhour.analysis import formats, plots
from quarterhour.analysis.chapters.paper.published import SIX
from quarterhour.analysis.measures import final_rows, settings_but
from quarterhour.analysis.runs import Run
from quarterhour.analysis.sections import Section, Table
from quarterhour.analysis.statistics import CONFIDENCE, mean_intervals
from quarterhour.tune.run_folder import COLUMNS, HELDOUT_LOSS, TRIAL

AXES = ("parameters", "tokens", "flops")
LAW = ("offset", "factor", "exponent")  # E, A and alpha of L = E + A · x^-alpha
MIN_POINTS = len(LAW) + 2
TOO_FEW = f"fewer than {MIN_POINTS} points differ in size or budget alone: {{}}"
OTHERS = "other names"
SAME = 0.02  # costs that differ by a smaller share are one: budgets are equal to a step
RESAMPLES = 200
SEED = 0
SLOWEST, FASTEST = 1e-3, 10  # exponents; beyond them, a line or a step fits as well
MAX_EVALUATIONS = 60
_SIZE = ("model.d_model", "model.n_heads", "model.n_layers", "model.d_ff")
_LOOKS = (("o", "-"), ("s", "--"), ("D", "-."), ("^", ":"))  # of data, in turn


def points(runs: Sequence[Run]) -> pd.DataFrame:
    """Each complete configuration of each run: `data` (the fingerprint), `n` seeds, and the means
    over these of `parameters`, `tokens` and `flops` of training, and `heldout_loss`, with its 95 %
    interval from `low` to `high`. What a run has adopted from another of them counts once.
    `settings` numbers the sets of all other settings: where it is equal, configurations differ in
    size or budget alone.
    """
    known: set[Any] = set()
    tables = [pd.DataFrame(columns=["data", "settings"])]
    for run in sorted(runs, key=lambda run: run.trials["adopted_from"].notna().sum()):
        copies = run.trials["adopted_from"].notna() & run.trials["key"].isin([*known])
        known |= {*run.trials["key"]}
        tables.append(_points(run, run.trials.loc[copies, TRIAL]))
    table = pd.concat(tables, ignore_index=True)
    return table.assign(settings=pd.factorize(table["settings"])[0] + 1)


def _points(run: Run, copies: pd.DataFrame) -> pd.DataFrame:
    final = final_rows(run, ["tokens", "flops", HELDOUT_LOSS]).dropna(subset=[HELDOUT_LOSS])
    settings = run.trials.reindex(columns=[*TRIAL, "origin", "parameters"]).assign(
        settings=settings_but(run, "budget", *_SIZE)
    )
    trials = final.merge(settings, on=TRIAL).merge(copies, how="left_anti", on=TRIAL)
    figures = trials.astype(dict.fromkeys([*AXES, HELDOUT_LOSS], float))
    by_configuration: Any = figures.groupby("configuration", sort=False)
    intervals = mean_intervals(by_configuration[HELDOUT_LOSS])[["n", "low", "high"]]
    means = by_configuration[[*AXES, HELDOUT_LOSS]].mean().join(intervals)
    means = means.assign(origin=by_configuration["origin"].first())
    means = means.assign(settings=by_configuration["settings"].first(), run=run.folder.name)
    return means.assign(data=run.experiment["data"].get("fingerprint", "")).reset_index()


def fits(runs: Sequence[Run]) -> pd.DataFrame:
    """For each set of `data` and each `axis`, L = E + A · x^-alpha (Hoffmann et al. 2022, one
    variable at a time) through the lowest held-out loss (nats) at each x: `offset` E, `factor` A,
    `exponent` alpha, each with `…_low` and `…_high`, and the number of `points`.

    The 95 % intervals come from 200 resamples of the residuals, always the same. With fewer than
    five points (those within 2 % of each other are one), or where no law is found, there is no fit,
    and `reason` says why. The points differ in size or budget alone: of several sets of such points
    it is the largest.
    """
    rows: list[dict[str, Any]] = []
    for data, of_data in points(runs).groupby("data", sort=False):
        alike = [own for _, own in of_data.groupby("settings", sort=False)]
        for axis in AXES:
            most = max((_envelope(own, axis) for own in alike), key=lambda points: len(points[0]))
            rows.append({"data": data, "axis": axis} | _fit(*most))
    bounds = [f"{name}{end}" for name in LAW for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["data", "axis", "points", *bounds, "reason"])


def fits_table(runs: Sequence[Run]) -> Table:
    """Through the lowest held-out loss at each cost: a power law with an offset, E + A · x^-alpha,
    for each axis, with 95 % intervals. Where there is none, the reason is given."""
    return _of_one_corpus(fits(runs).dropna(axis="columns", how="all"))


def points_table(runs: Sequence[Run]) -> Table:
    """Each complete configuration of each run, with the means over its n seeds; a search's trial
    counts with its fresh seeds and with the one that chose it. Where settings has the same number,
    configurations differ in size or budget alone."""
    return _of_one_corpus(points(runs).dropna(axis="columns", how="all"))


def _of_one_corpus(table: Any) -> Table:
    """Without the data's fingerprint where it is the same for all."""
    shown = table if table["data"].nunique() > 1 else table.drop(columns="data")
    return Table(frame=table, cells=formats.texts(shown))


def law(x: np.ndarray, offset: float, factor: float, exponent: float) -> np.ndarray:
    """E + A · x^-alpha."""
    return offset + factor * x**-exponent


def _envelope(measured: pd.DataFrame, axis: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Each x, ascending, and the lowest loss there."""
    table = measured.loc[:, [axis, HELDOUT_LOSS]].dropna().sort_values([axis])
    groups: list[float] = []
    for x in table[axis]:
        groups.append(groups[-1] if groups and x <= groups[-1] * (1 + SAME) else x)
    best: Any = table.reset_index(drop=True).groupby(groups)
    lowest = table.iloc[best[HELDOUT_LOSS].idxmin().to_numpy()]
    return tuple(lowest[axis]), tuple(lowest[HELDOUT_LOSS])


@cache  # a report asks twice: for its table and for its figure
def _fit(at: tuple[float, ...], losses: tuple[float, ...]) -> dict[str, Any]:
    if len(at) < MIN_POINTS:
        return {"points": len(at), "reason": TOO_FEW.format(len(at))}
    x, loss = np.array(at), np.array(losses)
    scale = float(np.exp(np.mean(np.log(x))))  # around it, A and alpha are hardly tied together
    start = (0.9 * loss.min(), max(float(np.ptp(loss)), 1e-3), 0.5)
    fitted = _parameters(x / scale, loss, start)
    laws = [] if fitted is None else _resampled(x / scale, loss, fitted)
    if fitted is None or len(laws) < RESAMPLES * CONFIDENCE:
        return {"points": len(x), "reason": "the points determine no power law with an offset"}
    tail = (1 - CONFIDENCE) / 2
    bounds = np.quantile([_unscaled(p, scale) for p in laws], [tail, 1 - tail], axis=0)
    row: dict[str, Any] = {"points": len(x), "reason": ""}
    for name, value, (low, high) in zip(LAW, _unscaled(fitted, scale), bounds.T, strict=True):
        row |= {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}
    return row


def _resampled(x: np.ndarray, loss: np.ndarray, fitted: np.ndarray) -> list[np.ndarray]:
    """The law fitted to resampled residuals, as often as it converged; it ends where that is rare.

    The residuals are enlarged: the law has taken degrees of freedom from them.
    """
    expected = law(x, *fitted)
    residuals = (loss - expected) * np.sqrt(len(x) / (len(x) - len(LAW)))
    rng = np.random.default_rng(SEED)
    laws: list[np.ndarray] = []
    for tried in range(RESAMPLES):
        found = _parameters(x, expected + rng.choice(residuals, len(x)), fitted)
        if found is not None:
            laws.append(found)
        elif tried + 1 - len(laws) > RESAMPLES * (1 - CONFIDENCE):
            break
    return laws


def _parameters(x: np.ndarray, loss: np.ndarray, start: Any) -> np.ndarray | None:
    """Least squares with E and A at least 0; None where it converges to no falling law."""
    bounds = ([0, 0, SLOWEST], [np.inf, np.inf, FASTEST])
    try:
        found = scipy.optimize.curve_fit(
            law, x, loss, p0=start, bounds=bounds, max_nfev=MAX_EVALUATIONS
        )[0]
    except RuntimeError:
        return None
    return found if SLOWEST * 1.01 < found[2] < FASTEST * 0.99 else None


def _unscaled(law_parameters: np.ndarray, scale: float) -> tuple[float, float, float]:
    offset, factor, exponent = law_parameters
    return offset, factor * scale**exponent, exponent


def scaling_laws(runs: Sequence[Run]) -> Figure | None:
    """Held-out loss of the complete configurations against parameters, tokens and FLOPs.

    Bars are 95 % intervals over seeds. Lines are power laws with an offset, where there are points
    enough. Each set of data has its own
    markers and lines.
    """
    measured: Any = points(runs)
    if measured.empty:
        return None
    named = plots.COLOURS | {OTHERS: plots.PROPOSED_COLOUR}
    names = measured["origin"].fillna(measured["configuration"])
    shown_as = names.where(names.isin(SIX), OTHERS)
    figure, (first, *_) = plots.figure_and_axes((11, 4.2), 1, len(AXES))
    for name in shown_as.unique():
        first.plot([], [], "o", color=named[name], label=name)
    plots.add_legend(figure, first)
    laws: Any = fits(runs)
    for axes, axis in zip(figure.axes, AXES, strict=True):
        of_axis = laws.loc[laws["axis"].eq(axis)]
        _draw_points_and_laws(axes, axis, measured.assign(colour=shown_as.map(named)), of_axis)
        axes.set(xlabel=f"{formats.header(axis)}, log", ylabel=COLUMNS[HELDOUT_LOSS].header)
        plots.plain_log(axes.xaxis)
        axes.xaxis.set_minor_locator(LogLocator(subs=(3,)))  # there is no room for more labels
    return figure


def _draw_points_and_laws(axes: Axes, axis: str, measured: pd.DataFrame, laws: Any) -> None:
    by_data: Any = measured.groupby("data", sort=False)
    lines: list[Line2D] = []
    for (data, own), (marker, style) in zip(by_data, cycle(_LOOKS), strict=False):
        axes.vlines(own[axis], own["low"], own["high"], own["colour"], linewidth=1)
        axes.scatter(own[axis], own[HELDOUT_LOSS], 25, own["colour"], marker=marker)
        which = f"{', '.join(own['run'].unique())}: " if by_data.ngroups > 1 else ""
        for row in laws.loc[laws["data"].eq(data) & laws["reason"].eq("")].to_dict("records"):
            lines.append(_law(axes, own[axis], row, style, which))
    if lines:
        axes.legend(handles=lines, frameon=False)
    else:
        why = f"no fit: {'; '.join(laws['reason'].unique())}"
        axes.set_title(fill(why, 44), color=plots.NOTE_COLOUR, fontsize="small")


def _law(axes: Axes, x: pd.Series, row: dict[str, Any], style: str, which: str) -> Line2D:
    """Draw a fitted law over the range of x that it was fitted to."""
    between = np.geomspace(x.min(), x.max(), 200)
    found = "exponent {exponent:.2f} [{exponent_low:.2f}, {exponent_high:.2f}]".format(**row)
    losses = law(between, *(row[name] for name in LAW))
    return axes.plot(between, losses, style, color=plots.BEST_COLOUR, label=which + found)[0]


SECTION = Section[Sequence[Run]](
    name="scaling",
    title="Scaling",
    applies=lambda runs: len(points(runs)[[*AXES]].drop_duplicates()) > 1,
    tables={
        "scaling_fits": ("Power laws with an offset", fits_table),
        "scaling_points": ("What they are fitted to", points_table),
    },
    figures={"scaling": ("Held-out loss against size", scaling_laws)},
)
