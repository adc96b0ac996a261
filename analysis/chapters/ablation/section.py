"""Which settings matter: the effects of an ablation's settings, and what exceeds seed noise."""

import shlex
from typing import Any

import numpy as np
import pandas as pd
import scipy  # imports scipy.special where it is first used
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quarterhour.analysis import plots
from quarterhour.analysis.chapters.ablation.effects import (
    AS_TRAINED,
    EQUAL_FLOPS,
    NOISE,
    POWER,
    budgets,
    chosen_trials,
    effects,
    is_one_at_a_time,
    noise_of,
    rates,
    variants,
)
from quarterhour.analysis.chapters.run import remarks
from quarterhour.analysis.runs import Run, typed_path
from quarterhour.analysis.sections import Section, Table
from quarterhour.tune.run_folder import COLUMNS, HELDOUT_LOSS, TRIAL, counted


def sentences(run: Run) -> list[str]:
    """What has an effect at each budget, what could have been found, and the run's remarks."""
    design = run.experiment["ablation"]
    rows = run.rows.reindex(columns=[*TRIAL, "flops"])
    flops: Any = rows.groupby(TRIAL)["flops"].max()
    begun = (
        f"Design {design['design']} of {len(design['cells'])} cells;"
        f" {counted(len(run.trials), 'trial')}, {flops.sum():.3g} training FLOPs."
    )
    said = [text for budget in budgets(run) for text in _of_budget(run, budget)]
    return [begun, *said, *_of_rates(run), *_next(run), *remarks(run)]


def _of_budget(run: Run, budget: str) -> list[str]:
    table: Any = effects(run)
    table = table.loc[(table["budget"] == budget) & (table["at"] == AS_TRAINED)]
    if table.empty:
        return [f"At {budget}, effects cannot be told yet: trials are missing."]
    first = table.iloc[0]
    if np.isnan(first["p"]):
        effect = f"{first['effect']}: {first['difference']:+.3f} nats"
        said = f"At {budget}, the largest effect is {effect}."
        if first["freedom"]:
            return [said, "Seeds make no difference, so nothing says what is more than noise."]
        return [
            said,
            "One seed a cell: whether that is more than seed noise cannot be told. The command"
            " that began the run, with --seeds 3, trains two more of each and none again.",
        ]
    sure = table.loc[table["verdict"] != NOISE]
    told = [f"{row['effect']} {row['difference']:+.3f}" for row in sure.to_dict("records")]
    trials = chosen_trials(run)
    noise = noise_of(trials.loc[trials["budget"] == budget])
    return [
        f"At {budget}, {len(sure)} of {len(table)} effects are more than seed noise"
        f" ({correction(run)}){': ' * bool(told)}{'; '.join(told)}.",
        f"There, an effect of {table['detectable'].max():.3f} nats is found with a power"
        f" of {100 * POWER:.0f} % before the correction; seeds of equal settings have a standard"
        f" deviation of {noise.deviation:.3f} nats ({noise.freedom} degrees of freedom).",
    ]


def _of_rates(run: Run) -> list[str]:
    """That each cell has its own learning rate, and which of them may have a better one."""
    table: Any = rates(run)
    if table["rate"].nunique() < 2:
        return []
    edges = table.loc[table["at_edge"]]
    cells = ", ".join(f"{row.cell} at {row.budget} (x{row.rate:g})" for row in edges.itertuples())
    said = (
        "Each cell is compared at the best of its own learning rates, which the same seeds chose."
    )
    edge = f" The best was the smallest or largest tried, so a better may lie beyond, of {cells}."
    return [said + edge * bool(cells)]


def _next(run: Run) -> list[str]:
    """The command that searches on, from the best cell, among the settings that have an effect."""
    design, budget = run.experiment["ablation"], budgets(run)[-1]
    table: Any = effects(run)
    here = (table["budget"] == budget) & (table["at"] == AS_TRAINED) & table["p"].notna()
    sure = table.loc[here & (table["verdict"] != NOISE) & (table["aliases"] == ""), "effect"]
    free = [path for name in sure for path in design["effects"][name].get("paths", ())]
    if not free:
        return []
    trials = chosen_trials(run)
    losses: Any = trials.loc[trials["budget"] == budget].groupby(["cell", "rate"])[HELDOUT_LOSS]
    best = dict(zip(("cell", "rate"), losses.mean().idxmin(), strict=True)) | {"budget": budget}
    name = next(name for name, told in variants(run).items() if told == best)
    folders = run.trials.loc[run.trials["configuration"] == name, "folder"]
    words = ["--around", typed_path(folders.iloc[0]), "--free", ",".join(dict.fromkeys(free))]
    command = shlex.join(["quarterhour", "search", *words, "--budget", budget])
    return [f"To search on from the best cell among the settings that have an effect: {command}"]


def correction(run: Run) -> str:
    """How verdicts allow for the number of effects."""
    if is_one_at_a_time(run):
        return "Holm's correction for all comparisons with the reference"
    return "Benjamini and Hochberg's correction: 5 % false discoveries"


def effects_table(run: Run) -> Table:
    """What each change does to the held-out loss (nats), the largest first, with its 95 % interval.
    An effect of two settings, with ×, is half the change of one's effect by the other. What the
    design cannot tell an effect from stands as its aliases."""
    table: Any = effects(run)
    views = table.groupby(["budget", "at"], sort=False)
    cells = {
        f"{budget}, {at}": {row["effect"]: _cell(row) for row in own.to_dict("records")}
        for (budget, at), own in views
    }
    aliases = dict(zip(table["effect"], table["aliases"], strict=True))
    shown = pd.DataFrame(cells).rename_axis("effect").reset_index()
    shown["aliases"] = [aliases[effect] for effect in shown["effect"]]
    if not any(aliases.values()):
        shown = shown.drop(columns="aliases")
    notes = [f"noise: {NOISE} ({correction(run)})."]
    if generators := run.experiment["ablation"].get("generators"):
        notes.append(f"Generators of the design: {'; '.join(generators)}.")
    if EQUAL_FLOPS in set(table["at"]):
        notes.append(
            f"{EQUAL_FLOPS}: read off the curves where the cheapest trial of the budget ends, in"
            " the middle of the others' schedules."
        )
    return Table(frame=table, cells=shown.astype(str), notes=notes)


def _cell(row: dict[Any, Any]) -> str:
    half = row["high"] - row["difference"]
    text = f"{row['difference']:+.3f}" + f" ± {half:.3f}" * (not np.isnan(half))
    return text + " (noise)" * (row["verdict"] == NOISE)


def effects_figure(run: Run) -> Figure | None:
    """What each change does to the held-out loss; the largest at the last budget stand first. Bars
    are 95 % intervals of each effect alone."""
    table: Any = effects(run)
    several = len(budgets(run)) > 1
    if several:
        table = table.loc[table["at"] == AS_TRAINED]
    if table.empty:
        return None
    series = [*table.groupby(["budget", "at"], sort=False)]
    names = [*dict.fromkeys([*series[-1 * several][1]["effect"], *table["effect"]])]
    figure, axes = plots.figure_and_axes((9, 1.6 + 0.2 * len(names) * (1 + len(series))))
    axes.axvline(0, color=plots.NOTE_COLOUR, linewidth=1)
    for n, ((budget, at), own) in enumerate(series):
        apart = 0.6 * ((n + 0.5) / len(series) - 0.5)
        places = [names.index(effect) + apart for effect in own["effect"]]
        bars = np.nan_to_num([own["difference"] - own["low"], own["high"] - own["difference"]])
        colour = plots.ORDER(n / max(1, len(series) - 1))
        style: Any = {"fmt": "o", "capsize": 3, "color": colour, "label": f"{budget}, {at}"}
        axes.errorbar(own["difference"], places, xerr=bars, **style)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set(xlabel=f"difference in {COLUMNS[HELDOUT_LOSS].header}")
    if len(series) > 1:
        plots.add_legend(figure, axes)
    return figure


def half_normal(run: Run) -> Figure | None:
    """Sizes of the effects of a screen against what as many effects of nothing but noise would have
    (Daniel 1959): those that stand out above a line through the small ones are real."""
    table: Any = effects(run)
    table = table.loc[table["at"] == AS_TRAINED]
    if table["effect"].nunique() < 4 or is_one_at_a_time(run):
        return None
    told = [*table.groupby("budget", sort=False)]
    size = (plots.SINGLE * min(2, len(told)), 4.2)
    figure, _ = plots.figure_and_axes(size, 1, len(told), sharey=True, squeeze=False)
    for axes, (budget, own) in zip(figure.axes, told, strict=True):
        sizes = own["difference"].abs().to_numpy()[::-1]
        places = (np.arange(len(sizes)) + 0.5) / len(sizes)
        quantiles = scipy.special.ndtri((1 + places) / 2)
        axes.plot(quantiles, sizes, "o", color=plots.PROPOSED_COLOUR)
        _name_largest(axes, quantiles[::-1], sizes[::-1], own["effect"].to_list())
        axes.set(title=budget, xlabel="quantile of a half-normal distribution")
    figure.axes[0].set_ylabel("size of the effect (nats)")
    return figure


def _name_largest(axes: Axes, x: np.ndarray, y: np.ndarray, names: list[str]) -> None:
    for at, size, name in [*zip(x, y, names, strict=True)][:4]:
        axes.annotate(name, (at, size), (-6, 0), textcoords="offset points", ha="right")


ABLATION = Section[Run](
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
