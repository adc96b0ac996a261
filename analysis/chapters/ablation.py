"""Which settings matter: the effects of an ablation's factors, and what is more than seed noise."""

from typing import Any

import numpy as np
import pandas as pd
import scipy  # imports scipy.special and scipy.stats where they are first used
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quarterhour.analysis import formats, plots
from quarterhour.analysis.measures import final_rows
from quarterhour.analysis.runs import Run
from quarterhour.analysis.sections import Section, Table
from quarterhour.analysis.statistics import CONFIDENCE, holm
from quarterhour.tune.run_folder import COLUMNS, HELDOUT_LOSS

POWER = 0.8
_ONE_AT_A_TIME = "one-at-a-time"
_BOUNDS = ["difference", "low", "high"]


def effects(run: Run) -> pd.DataFrame:
    """Each `effect` on held-out loss (nats), the largest first: the `difference` that it makes, its
    95 % interval from `low` to `high`, `p`, `p_corrected` for all effects, the verdict by that, and
    the effects that the design cannot tell it from (`aliases`).

    A linear model is fitted to the complete trials. Its noise is that between seeds, pooled over
    cells with `freedom` degrees of freedom: without several seeds in a cell there are no
    intervals. `detectable` is the smallest effect that is found with a power of 80 %.
    """
    design = run.experiment["ablation"]
    losses = final_rows(run, [HELDOUT_LOSS]).dropna(subset=[HELDOUT_LOSS])
    coded = _model(losses, design["effects"])
    columns = ["effect", *_BOUNDS, "p", "p_corrected", "verdict", "freedom", "detectable"]
    if np.linalg.matrix_rank(coded) < coded.shape[1]:
        return pd.DataFrame(columns=[*columns, "aliases"])
    y = losses[HELDOUT_LOSS].to_numpy(float)
    inverse = np.linalg.inv(coded.T @ coded)
    found = (inverse @ coded.T @ y)[1:]
    noise, freedom = pooled_noise(losses)
    errors = noise * np.sqrt(np.diag(inverse))[1:]
    t = scipy.special.stdtrit(freedom, (1 + CONFIDENCE) / 2) if freedom else np.nan
    table = pd.DataFrame({"effect": [*design["effects"]], "difference": found})
    table = table.assign(low=found - t * errors, high=found + t * errors, freedom=freedom)
    table["p"] = 2 * scipy.special.stdtr(freedom, -np.abs(found / errors)) if freedom else np.nan
    table["p_corrected"] = _corrected(table["p"].to_numpy(float), design["design"])
    table["verdict"] = [_verdict(row) for row in table.to_dict("records")]
    power = scipy.special.stdtrit(freedom, POWER) if freedom else np.nan
    table["detectable"] = (t + power) * errors
    table["aliases"] = ["; ".join(told["aliases"]) for told in design["effects"].values()]
    order = np.argsort(-np.abs(found), kind="stable")
    return table.iloc[order].loc[:, [*columns, "aliases"]].reset_index(drop=True)


def pooled_noise(losses: pd.DataFrame) -> tuple[float, int]:
    """The standard deviation between seeds of equal settings, and its degrees of freedom.

    s² = Σ(x - mean)² / Σ(n - 1) over the cells; NaN without two seeds anywhere.
    """
    by_cell: Any = losses.groupby("configuration")[HELDOUT_LOSS]
    freedom = int((by_cell.size() - 1).sum())
    squares = float(((losses[HELDOUT_LOSS] - by_cell.transform("mean")) ** 2).sum())
    return (float(np.sqrt(squares / freedom)) if freedom else np.nan), freedom


def _model(losses: pd.DataFrame, told: dict[str, Any]) -> np.ndarray:
    """The model's matrix: an intercept, and a column an effect; a row a trial."""
    cells = losses["configuration"]
    codes = [cells.map(effect["codes"]).to_numpy(float) for effect in told.values()]
    return np.nan_to_num(np.column_stack([np.ones(len(cells)), *codes]))


def _corrected(p: np.ndarray, design: str) -> np.ndarray:
    """Holm's correction for comparisons with one reference; for a screen, of the false discovery
    rate (Benjamini and Hochberg 1995)."""
    if np.isnan(p).any() or not len(p):
        return p
    return holm(p) if design == _ONE_AT_A_TIME else scipy.stats.false_discovery_control(p)


def _verdict(row: dict[Any, Any]) -> str:
    if np.isnan(row["p"]):
        return "one seed: cannot be judged"
    if row["p_corrected"] > 1 - CONFIDENCE:
        return "within seed noise"
    return "lowers the loss" if row["difference"] < 0 else "raises the loss"


def correction(run: Run) -> str:
    """How verdicts allow for the number of effects."""
    if run.experiment["ablation"]["design"] == _ONE_AT_A_TIME:
        return "Holm's correction for all comparisons with the reference"
    return "Benjamini and Hochberg's correction: 5 % false discoveries"


def sentences(run: Run) -> list[str]:
    """What has an effect, and what could have been found."""
    table, told = effects(run), run.experiment["ablation"]
    begun = f"Design {told['design']} of {len(told['cells'])} cells, each trial {told['budget']}."
    if table.empty:
        return [f"{begun} Effects cannot be told yet: trials are missing."]
    first = table.iloc[0]
    if np.isnan(first["p"]):
        return [
            f"{begun} The largest effect is {first['effect']}: {first['difference']:+.3f} nats.",
            "One seed a cell: whether that is more than seed noise cannot be told. The command"
            " that began the run, with --seeds 3, trains two more of each and none again.",
        ]
    sure = table.loc[table["verdict"] != "within seed noise"]
    said = [f"{row['effect']} {row['difference']:+.3f}" for row in sure.to_dict("records")]
    return [
        f"{begun} {len(sure)} of {len(table)} effects are more than seed noise"
        f" ({correction(run)}){': ' * bool(said)}{'; '.join(said)}.",
        f"With these seeds, an effect of {table['detectable'].max():.3f} nats is found with a power"
        f" of {100 * POWER:.0f} % before the correction; seeds of equal settings have a standard"
        f" deviation of {pooled_noise(final_rows(run, [HELDOUT_LOSS]))[0]:.3f} nats"
        f" ({first['freedom']} degrees of freedom).",
    ]


def effects_table(run: Run) -> Table:
    """What each change does to the held-out loss (nats), the largest first, with its 95 % interval.
    An effect of two settings, with ×, is half the change of one's effect by the other. What the
    design cannot tell an effect from stands as its aliases."""
    table = effects(run)
    shown = table.drop(columns=["freedom", "detectable"])
    cells = formats.texts(shown)
    figures = formats.texts(pd.DataFrame({"": shown[_BOUNDS].to_numpy().ravel()}))
    cells[_BOUNDS] = figures.to_numpy().reshape(-1, len(_BOUNDS))
    for name in ("p", "p_corrected"):
        cells[formats.header(name)] = [formats.chance(p) for p in table[name]]
    return Table(frame=table, cells=cells, notes=[f"Verdicts: {correction(run)}."])


def effects_figure(run: Run) -> Figure | None:
    """What each change does to the held-out loss, the largest first; bars are 95 % intervals of
    each effect alone."""
    table: Any = effects(run)
    if table.empty:
        return None
    figure, axes = plots.figure_and_axes((9, 1.4 + 0.3 * len(table)))
    axes.axvline(0, color=plots.NOTE_COLOUR, linewidth=1)
    plots.draw_intervals(axes, table["effect"], *(table[name] for name in _BOUNDS))
    axes.set(xlabel=f"difference in {COLUMNS[HELDOUT_LOSS].header}")
    return figure


def half_normal(run: Run) -> Figure | None:
    """Sizes of the effects of a screen against what as many effects of nothing but noise would have
    (Daniel 1959): those that stand out above a line through the small ones are real."""
    table: Any = effects(run)
    if len(table) < 4 or run.experiment["ablation"]["design"] == _ONE_AT_A_TIME:
        return None
    figure, axes = plots.figure_and_axes((plots.SINGLE, 4.2))
    sizes = table["difference"].abs().to_numpy()[::-1]
    places = (np.arange(len(sizes)) + 0.5) / len(sizes)
    quantiles = scipy.special.ndtri((1 + places) / 2)
    axes.plot(quantiles, sizes, "o", color=plots.PROPOSED_COLOUR)
    _name_largest(axes, quantiles[::-1], sizes[::-1], table["effect"].to_list())
    axes.set(xlabel="quantile of a half-normal distribution", ylabel="size of the effect (nats)")
    return figure


def _name_largest(axes: Axes, x: np.ndarray, y: np.ndarray, names: list[str]) -> None:
    for at, size, name in [*zip(x, y, names, strict=True)][:4]:
        axes.annotate(name, (at, size), (-6, 0), textcoords="offset points", ha="right")


SECTION = Section[Run](
    name="ablation",
    title="Which settings matter",
    applies=lambda run: bool(run.experiment.get("ablation")),
    sentences=sentences,
    figures={
        "effects": ("Effects", effects_figure),
        "half_normal": ("Effects against noise", half_normal),
    },
    tables={"effects": ("Effects on held-out loss", effects_table)},
)
