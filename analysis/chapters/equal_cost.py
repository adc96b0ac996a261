"""The configurations at equal cost: equal steps, tokens, FLOPs or seconds on the device."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quarterhour.analysis import plots
from quarterhour.analysis.measures import final_rows
from quarterhour.analysis.runs import Run
from quarterhour.analysis.sections import Section, compares_configurations
from quarterhour.analysis.statistics import mean_interval
from quarterhour.tune.run_folder import COLUMNS, HELDOUT_LOSS, TRAIN_LOSS, TRIAL, TRIALS_ON_DEVICE

VIEWS = {"steps": "step", "tokens": "tokens", "flops": "flops", "device-seconds": "seconds"}
"""The kinds of cost, and the column of a row that counts each from the trial's start."""

_LOSSES = [HELDOUT_LOSS, TRAIN_LOSS]
_ROW = [*VIEWS.values(), TRIALS_ON_DEVICE, *_LOSSES]
_COLUMNS = [
    *("view", "cost", "configuration", "n", HELDOUT_LOSS, "low", "high", TRAIN_LOSS),
    *("interpolated", "steps", "shared", TRIALS_ON_DEVICE, "rank"),
]

_Trial = dict[str, np.ndarray]  # a trial's rows, by column


def equal_cost(run: Run) -> pd.DataFrame:
    """Losses at the same `cost`, by `view` (the kind of cost) and `configuration`, the best first.

    `cost` is the largest that all complete trials reach. `heldout_loss` has its 95 % interval over
    `n` seeds; `train_loss` is of the window that ends there. Where every seed ends at this cost, to
    a step, both are of the last row. Else they are `interpolated` on the curves, linearly in the
    logarithm of the cost, and the schedule was made for another length. `rank` is by held-out loss;
    `rank_at_equal_steps` is among the same configurations. Seconds on a device that several trials
    `shared` have no rank and set no cost. `remark` says this in words.
    """
    trials = _complete_trials(run)
    rows = [row for view in VIEWS for row in _view(view, trials)]
    table = pd.DataFrame(rows, columns=_COLUMNS)
    at_steps = table.loc[table["view"] == "steps"].set_index("configuration")["rank"]
    among = table["configuration"].map(at_steps).where(table["rank"].notna())
    table["rank_at_equal_steps"] = among.groupby(table["view"]).rank()
    return table.assign(remark=[_remark(row) for row in table.to_dict("records")])


def rank_changes(run: Run) -> pd.DataFrame:
    """Each configuration's ranks by kind of cost, in the order at equal steps; `changes` says
    whether any of them differs from it."""
    table = equal_cost(run)
    ranks = table.pivot(index="configuration", columns="view", values="rank")
    ranks = ranks.reindex(columns=list(VIEWS)).rename_axis(columns=None)
    moved = table["rank"].notna() & (table["rank"] != table["rank_at_equal_steps"])
    ranks = ranks.assign(changes=moved.groupby(table["configuration"]).any())
    return ranks.sort_values(["steps"], kind="stable").reset_index()


def equal_cost_losses(run: Run) -> Figure | None:
    """Held-out loss of the configurations at equal steps, tokens, FLOPs and device-seconds.

    Numbers are ranks. A hollow dot is interpolated on a curve whose schedule was made for another
    length. Seconds on a shared device are left out.
    """
    table = equal_cost(run)
    ranked: Any = table.loc[table["rank"].notna()]
    if ranked.empty:
        return None
    names = list(dict.fromkeys(table["configuration"]))
    label = COLUMNS[HELDOUT_LOSS].header
    figure, _ = plots.figure_and_axes((13, 1.6 + 0.4 * len(names)), 1, len(VIEWS))
    for axes, view in zip(figure.axes, VIEWS, strict=True):
        own = ranked.loc[ranked["view"] == view]
        _draw_view(axes, own.to_dict("records"), names)
        axes.set(title=f"equal {view}", xlabel=label)
        if len(own):
            axes.set_xlabel(f"{label}\nat {plots.plain_number(own['cost'].iloc[0])}")
        else:
            axes.set(xticks=[], xlabel="")
            axes.text(0.5, 0.5, "device shared:\nnot ranked", transform=axes.transAxes, ha="center")
    for axes in figure.axes[1:]:
        axes.tick_params(labelleft=False)
    plots.add_note(figure, "numbers: ranks; hollow: interpolated; bars: 95 % over seeds")
    return figure


def _complete_trials(run: Run) -> dict[str, list[_Trial]]:
    """The trials that ended with a held-out loss, by configuration."""
    final = final_rows(run, [HELDOUT_LOSS]).dropna(subset=[HELDOUT_LOSS])
    keys = {*final[TRIAL].itertuples(index=False, name=None)}
    by_trial: Any = run.rows.reindex(columns=[*TRIAL, *_ROW]).groupby(TRIAL, sort=False)
    trials: dict[str, list[_Trial]] = {}
    for key, trial in by_trial:
        if key in keys:
            values = {column: trial[column].to_numpy(float) for column in _ROW}
            trials.setdefault(key[0], []).append(values)
    return trials


def _view(view: str, trials: dict[str, list[_Trial]]) -> list[dict[str, Any]]:
    """The configurations at the largest cost of this kind that all reach, the best first."""
    column = VIEWS[view]
    sharing = {name: _most(seeds, TRIALS_ON_DEVICE) for name, seeds in trials.items()}
    shared = {name: view == "device-seconds" and n > 1 for name, n in sharing.items()}
    own = [trial for name, seeds in trials.items() if not shared[name] for trial in seeds]
    cost = min((trial[column][-1] for trial in own), default=np.nan)
    # Equal budgets are equal to a step; the costliest trial has the costliest step.
    step_cost = max((trial[column][-1] / trial["step"][-1] for trial in own), default=np.nan)
    rows: list[dict[str, Any]] = []
    for name, seeds in trials.items():
        interpolated = any(trial[column][-1] - cost >= step_cost for trial in seeds)
        at_cost = cost if interpolated else None
        heldout, train = ([_loss(t, which, column, at_cost) for t in seeds] for which in _LOSSES)
        figures = (view, cost, name, *mean_interval(heldout), float(np.mean(train)))
        how = (interpolated, _most(seeds, "step"), shared[name], sharing[name])
        rows.append(dict(zip(_COLUMNS, figures + how, strict=False)))
    rows.sort(key=lambda row: (row["shared"], np.isnan(row[HELDOUT_LOSS]), row[HELDOUT_LOSS]))
    for rank, row in enumerate(rows, start=1):
        row["rank"] = np.nan if row["shared"] or np.isnan(row[HELDOUT_LOSS]) else rank
    return rows


def _most(trials: list[_Trial], column: str) -> float:
    return float(max(trial[column].max() for trial in trials))


def _loss(trial: _Trial, loss: str, column: str, cost: float | None) -> float:
    """The loss of the last row, or at `cost` between two measured ones; NaN before the first."""
    if cost is None:
        return float(trial[loss][-1])
    known = ~np.isnan(trial[loss])
    costs, losses = trial[column][known], trial[loss][known]
    return float(np.interp(np.log(cost), np.log(costs), losses, left=np.nan))


def _remark(row: dict[str, Any]) -> str:
    remarks: list[str] = []
    if row["shared"]:
        remarks.append(f"{row[TRIALS_ON_DEVICE]:g} trials shared the device: not ranked")
    elif row["interpolated"]:
        remarks.append(f"interpolated: its schedule was made for {row['steps']:,.0f} steps")
    if row["rank"] > 0 and row["rank"] != row["rank_at_equal_steps"]:
        remarks.append(f"{row['rank']:.0f}, at equal steps {row['rank_at_equal_steps']:.0f}")
    return "; ".join(remarks)


def _draw_view(axes: Axes, rows: list[dict[str, Any]], names: list[str]) -> None:
    own = plots.colours(names)
    for row in rows:
        name = row["configuration"]
        place = (row[HELDOUT_LOSS], names.index(name))
        half = row["high"] - row[HELDOUT_LOSS] if row["n"] > 1 else None
        face = "white" if row["interpolated"] else own[name]
        axes.errorbar(*place, xerr=half, fmt="o", color=own[name], markerfacecolor=face, capsize=3)
        axes.annotate(f"{row['rank']:.0f}", place, (0, 6), textcoords="offset points", ha="center")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.7)
    axes.margins(x=0.15)


SECTION = Section[Run](
    name="equal_cost",
    title="At equal cost",
    applies=compares_configurations,
    tables={
        "rank_changes": ("Ranks at equal cost", rank_changes),
        "equal_cost": ("Losses at equal cost", equal_cost),
    },
    figures={"equal_cost": ("Losses at equal cost", equal_cost_losses)},
)
