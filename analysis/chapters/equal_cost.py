"""The configurations at equal cost: equal steps, tokens, FLOPs or seconds on the device."""

from functools import lru_cache
from itertools import compress
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quarterhour.analysis import formats, plots
from quarterhour.analysis.measures import final_rows, settings_but
from quarterhour.analysis.runs import Run
from quarterhour.analysis.sections import Section, Table, compares_configurations
from quarterhour.analysis.statistics import mean_interval
from quarterhour.tune.run_folder import COLUMNS, HELDOUT_LOSS, TRAIN_LOSS, TRIAL, TRIALS_ON_DEVICE

VIEWS = {"steps": "step", "tokens": "tokens", "flops": "flops", "device-seconds": "seconds"}
"""The kinds of cost, and the column of a row that counts each from the trial's start."""
UNITS = {"flops": "FLOPs", "device-seconds": "s"}
"""The unit of a kind of cost, where it is not called so."""

_LOSSES = [HELDOUT_LOSS, TRAIN_LOSS]
_ROW = [*VIEWS.values(), TRIALS_ON_DEVICE, *_LOSSES]
_COLUMNS = [
    *("view", "cost", "configuration", "n", HELDOUT_LOSS, "low", "high", TRAIN_LOSS),
    *("interpolated", "steps", "shared", TRIALS_ON_DEVICE, "rank"),
]

TrialRows = dict[str, np.ndarray]  # a trial's rows, by column


@lru_cache(maxsize=1)
def equal_cost(run: Run) -> pd.DataFrame:
    """Losses at the same `cost`, by `view` (the kind of cost) and `configuration`, the best first.

    `cost` is the largest that all complete trials reach; where a run beside this one trained more
    of the same configurations to one cost, it is that. `heldout_loss` has its 95 % interval over
    `n` seeds; `train_loss` is of the window that ends there. Where a trial ends at this cost, to a
    step, both are of its last row. Else they are `interpolated` on the curves, linearly in the
    logarithm of the cost, and the schedule was made for another length. `rank` is by held-out loss;
    `rank_at_equal_steps` is among the same configurations. Seconds on a device that several trials
    `shared` have no rank and set no cost. `remark` says this in words.
    """
    trials, lent = complete_trials(run), _lent_trials(run)
    rows = [row for view in VIEWS for row in _view(view, trials, lent)]
    table = pd.DataFrame(rows, columns=_COLUMNS)
    at_steps = table.loc[table["view"] == "steps"].set_index("configuration")["rank"]
    among = table["configuration"].map(at_steps).where(table["rank"].notna())
    table["rank_at_equal_steps"] = among.groupby(table["view"]).rank()
    return table.assign(remark=[_remark(row) for row in table.to_dict("records")])


def amount(view: str, cost: float) -> str:
    """A cost with its unit, as in "8.192M tokens"."""
    return f"{plots.plain_number(cost)} {UNITS.get(view, view)}"


def side_by_side(run: Run) -> Table:
    """Held-out loss (nats) of each configuration at equal cost, with its 95 % interval over seeds
    and its rank. Where it says cut, no trial was made for this cost: the loss is read off a curve
    in the middle of its schedule."""
    table = equal_cost(run)
    ranked: Any = table.loc[table["rank"].notna()]
    cells: dict[str, Any] = {}
    for view, own in ranked.groupby("view", sort=False):
        texts = {row["configuration"]: _cell(row) for row in own.to_dict("records")}
        cells[f"at {amount(view, own['cost'].iloc[0])}"] = texts
    unranked = table.loc[table["shared"].astype(bool), ["view", "remark"]].drop_duplicates()
    notes = [f"{row.view}: {row.remark}" for row in unranked.itertuples()]
    shown = pd.DataFrame(cells).rename_axis("configuration").fillna("not ranked")
    return Table(frame=table, cells=formats.texts(shown), notes=notes)


def _cell(row: dict[str, Any]) -> str:
    half = f" ± {row['high'] - row[HELDOUT_LOSS]:.3f}" if row["n"] > 1 else ""
    return (
        f"{row[HELDOUT_LOSS]:.3f}{half} · rank {row['rank']:.0f}" + " · cut" * row["interpolated"]
    )


def equal_cost_losses(run: Run) -> Figure | None:
    """Held-out loss of the configurations at equal steps, tokens and FLOPs, and at equal seconds on
    the device if no trials shared it.

    Numbers are ranks. A hollow dot is read off a curve in the middle of its schedule.
    """
    table = equal_cost(run)
    ranked: Any = table.loc[table["rank"].notna()]
    if ranked.empty:
        return None
    names = list(dict.fromkeys(table["configuration"]))
    views = [view for view in VIEWS if view in set(ranked["view"])]
    size = (1.2 + 2.6 * len(views), 1.4 + 0.35 * len(names))
    figure, _ = plots.figure_and_axes(size, 1, len(views), sharex=True, squeeze=False)
    for axes, view in zip(figure.axes, views, strict=True):
        own = ranked.loc[ranked["view"] == view]
        _draw_view(axes, own.to_dict("records"), names)
        axes.set(title=f"at {amount(view, own['cost'].iloc[0])}")
        axes.set_xlabel(COLUMNS[HELDOUT_LOSS].header)
    for axes in figure.axes[1:]:
        axes.tick_params(labelleft=False)
    plots.add_note(figure, "numbers: ranks; hollow: schedule cut; bars: 95 % over seeds")
    return figure


def complete_trials(run: Run) -> dict[str, list[TrialRows]]:
    """The trials that ended with a held-out loss, by configuration."""
    final = final_rows(run, [HELDOUT_LOSS]).dropna(subset=[HELDOUT_LOSS])
    keys = {*final[TRIAL].itertuples(index=False, name=None)}
    rows = run.rows.reindex(columns=[*TRIAL, *_ROW])
    values, places = rows[_ROW].to_numpy(float), rows.groupby(TRIAL).indices
    trials: dict[str, list[TrialRows]] = {}
    for key in rows[TRIAL].drop_duplicates().itertuples(index=False, name=None):
        if key in keys:
            own = dict(zip(_ROW, values[places[key]].T, strict=True))
            trials.setdefault(key[0], []).append(own)
    return trials


def _lent_trials(run: Run) -> dict[str, list[TrialRows]]:
    """Trials of the runs beside this one, on the same data, that differ from ours by their budget.

    They stand under the name that the configuration has here.
    """
    names = dict(zip(settings_but(run, "budget"), run.trials["configuration"], strict=True))
    lent: dict[str, list[TrialRows]] = {}
    for other in run.beside:
        if other.experiment["data"].get("fingerprint") == run.experiment["data"].get("fingerprint"):
            known = other.trials["key"].isin(run.trials["key"])
            ours = dict(
                zip(other.trials["configuration"], settings_but(other, "budget"), strict=True)
            )
            wanted = {*other.trials.loc[~known, "configuration"]}
            for name, trials in complete_trials(other).items():
                if name in wanted and ours[name] in names:
                    lent.setdefault(names[ours[name]], []).extend(trials)
    return lent


def _view(
    view: str, trials: dict[str, list[TrialRows]], lent: dict[str, list[TrialRows]]
) -> list[dict[str, Any]]:
    """The configurations at the cost of this kind that most trials were made for, best first.

    Of several such costs it is the largest that all reach.
    """
    column = VIEWS[view]
    sharing = {name: _most(seeds, TRIALS_ON_DEVICE) for name, seeds in trials.items()}
    shared = {name: view == "device-seconds" and n > 1 for name, n in sharing.items()}
    usable = {n: [*own, *lent.get(n, [])] for n, own in trials.items() if not shared[n]}
    ends = {name: [trial[column][-1] for trial in own] for name, own in usable.items()}
    # Equal budgets are equal to a step; the costliest trial has the costliest step.
    own_trials = [trial for own in usable.values() for trial in own]
    step = max((trial[column][-1] / trial["step"][-1] for trial in own_trials), default=np.nan)
    reached = min((max(own) for own in ends.values()), default=np.nan)

    def made_for(cost: float, own: list[Any]) -> list[bool]:
        return [abs(end - cost) < step for end in own]

    costs = {end for own in ends.values() for end in own if end <= reached}
    cost = max(
        costs,
        key=lambda c: (sum(any(made_for(c, own)) for own in ends.values()), c),
        default=np.nan,
    )
    rows: list[dict[str, Any]] = []
    for name, own in trials.items():
        exact = made_for(cost, ends.get(name, []))
        seeds = [*compress(usable.get(name, []), exact)] or own
        at_cost = None if any(exact) or shared[name] else cost
        heldout, train = ([loss_at(t, which, column, at_cost) for t in seeds] for which in _LOSSES)
        figures = (view, cost, name, *mean_interval(heldout), float(np.mean(train)))
        how = (at_cost is not None, _most(seeds, "step"), shared[name], sharing[name])
        rows.append(dict(zip(_COLUMNS, figures + how, strict=False)))
    rows.sort(key=lambda row: (row["shared"], np.isnan(row[HELDOUT_LOSS]), row[HELDOUT_LOSS]))
    for rank, row in enumerate(rows, start=1):
        row["rank"] = np.nan if row["shared"] or np.isnan(row[HELDOUT_LOSS]) else rank
    return rows


def _most(trials: list[TrialRows], column: str) -> float:
    return float(max(trial[column].max() for trial in trials))


def loss_at(trial: TrialRows, loss: str, column: str, cost: float | None) -> float:
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
    tables={"equal_cost": ("Losses and ranks at equal cost", side_by_side)},
)
