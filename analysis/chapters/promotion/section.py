"""Who goes on from a promotion's stages, what was spent, and whether noise was promoted."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quarterhour.analysis import formats, plots
from quarterhour.analysis.chapters.promotion.results import (
    FAILED,
    GOES_ON,
    SPARED,
    TIES,
    WINS,
    candidates,
    cost_of_all,
    rule,
    stage_noise,
    stages,
    standings,
)
from quarterhour.analysis.chapters.run import remarks
from quarterhour.analysis.runs import Run
from quarterhour.analysis.sections import Section, Table
from quarterhour.tune.run_folder import COLUMNS, HELDOUT_LOSS, counted


def rule_told(told: dict[str, Any]) -> str:
    """The rule, in words."""
    allowed = "seed noise allows at 95 % (pooled over the stage's candidates)"
    if told["margin"] is not None:
        allowed = f"{told['margin']:g} nats"
    keep = ", ".join(f"{n} from {b}" for n, b in zip(told["keep"], told["budgets"], strict=False))
    return (
        f"The rule, fixed before the first trial: the best by mean held-out loss go on ({keep});"
        f" so does whoever is worse than the last of them by no more than {allowed}."
    )


def sentences(run: Run) -> list[str]:
    """Who won, what was spent, and what a stricter rule would have done."""
    table: Any = standings(run)
    said = [_of_stage(run, stage) for stage in sorted(table["stage"].unique())]
    if not said:
        said = ["The first stage has not ended."]
    return [rule_told(rule(run)), *said, *_stricter(run), *_costs(run), *remarks(run)]


def _of_stage(run: Run, stage: int) -> str:
    table: Any = standings(run)
    own = table.loc[table["stage"] == stage]
    noise = stage_noise(run, stage)
    said = f"At {own['budget'].iloc[0]}, {counted(len(own), 'candidate')}: "
    best = ", ".join(own.loc[own["outcome"].isin([GOES_ON, WINS]), "candidate"])
    near = ", ".join(own.loc[own["outcome"].isin([SPARED, TIES]), "candidate"])
    failed = ", ".join(own.loc[own["outcome"] == FAILED, "candidate"])
    is_last = stage == len(rule(run)["keep"])
    said += f"{best or 'none'} {'has the lowest mean' if is_last else 'go on'}"
    if near:
        said += f"; {near} cannot be told from {'it' if is_last else 'the last of them'}"
        said += "" if is_last else " and go on too"
    said += f"; failed: {failed}" * bool(failed)
    if not noise.freedom:
        return f"{said}. One seed each: nothing says how much is seed noise."
    return f"{said}. Seeds have a standard deviation of {noise.deviation:.3f} nats."


def _stricter(run: Run) -> list[str]:
    """Whether the winner would have been dropped by a stricter rule."""
    table: Any = standings(run)
    won = table.loc[table["outcome"] == WINS, "candidate"]
    if won.empty:
        return []
    ranks = table.loc[table["candidate"] == won.iloc[0]].iloc[:-1]
    keep = dict(enumerate(rule(run)["keep"]))
    places = ", ".join(f"{row.rank:.0f} at {row.budget}" for row in ranks.itertuples(name="Row"))
    spared = [row["budget"] for row in ranks.to_dict("records") if row["rank"] > keep[row["stage"]]]
    said = f"The winner {won.iloc[0]} had rank {places}: "
    if spared:
        return [f"{said}without the allowance for noise it would have been dropped at {spared[0]}."]
    strictest = max(ranks.to_dict("records"), key=lambda row: row["rank"] / keep[row["stage"]])
    if strictest["rank"] == 1:
        return [f"{said}a rule that keeps the best alone would have kept it at each stage."]
    return [
        f"{said}a rule that keeps fewer than {strictest['rank']:.0f} at {strictest['budget']} would"
        " have dropped it."
    ]


def _costs(run: Run) -> list[str]:
    spent = stages(run)
    if len(spent) <= len(rule(run)["keep"]):
        return []
    flops, seconds = spent["flops"].sum(), spent["seconds"].sum()
    all_ = cost_of_all(run)
    return [
        f"Spent {flops:.3g} training FLOPs and {seconds:,.0f} device-seconds, adopted trials not"
        f" counted. To train all {len(candidates(run))} candidates at the last budget with its"
        f" seeds would cost {all_['flops']:.3g} FLOPs and {all_['seconds']:,.0f} device-seconds"
        " (calculated from their cost at the first)."
    ]


def standings_table(run: Run) -> Table:
    """Mean held-out loss (nats) of each candidate at each budget, with its 95 % interval by the
    stage's pooled seed noise, its rank there, and what became of it. The winner stands first."""
    table: Any = standings(run)
    order = table.sort_values(["stage", "rank"], ascending=[False, True])["candidate"]
    cells = {
        budget: {row["candidate"]: _cell(row) for row in own.to_dict("records")}
        for budget, own in table.groupby("budget", sort=False)
    }
    last = table.drop_duplicates("candidate", keep="last").set_index("candidate")
    ended = {
        name: row["outcome"] + f" at {row['budget']}" * (row["outcome"] not in (WINS, TIES))
        for name, row in last.to_dict("index").items()
    }
    shown = pd.DataFrame(cells | {"outcome": ended}).reindex(order.drop_duplicates())
    return Table(frame=table, cells=formats.texts(shown.rename_axis("candidate").fillna("")))


def _cell(row: dict[Any, Any]) -> str:
    if pd.isna(row["mean"]):
        return "failed"
    half = f" ± {row['high'] - row['mean']:.3f}" * pd.notna(row["high"])
    return f"{row['mean']:.3f}{half} · rank {row['rank']:.0f}, n = {row['n']}"


def ranks(run: Run) -> Figure | None:
    """Ranks of the candidates from stage to stage. A line that ends was dropped there; a hollow dot
    goes on only because seed noise, or the margin, does not tell it from the last that does."""
    table: Any = standings(run)
    if table.empty:
        return None
    names = [*table.loc[table["stage"] == 0, "candidate"]]
    own_colours = plots.colours(names)
    size = (max(plots.SINGLE, 2.4 * table["stage"].nunique()), 1.6 + 0.3 * len(names))
    figure, axes = plots.figure_and_axes(size)
    for name, own in table.groupby("candidate", sort=False):
        _draw_ranks(axes, own, own_colours[str(name)])
    budgets = table.drop_duplicates("stage")["budget"]
    axes.set_xticks(range(len(budgets)), budgets)
    axes.set_yticks(range(1, len(names) + 1))
    axes.set(ylabel=f"rank by {COLUMNS[HELDOUT_LOSS].label}", ylim=(len(names) + 0.5, 0.5))
    axes.set_xlim(-0.9, len(budgets) - 0.1)
    return figure


def _draw_ranks(axes: Axes, own: Any, colour: str) -> None:
    axes.plot(own["stage"], own["rank"], color=colour, linewidth=2, zorder=1)
    for row in own.to_dict("records"):
        face = "white" if row["outcome"] in (SPARED, TIES) else colour
        axes.plot(row["stage"], row["rank"], "o", color=colour, markerfacecolor=face, markersize=7)
    first, last = own.iloc[0], own.iloc[-1]
    ends = ((first, (-8, 0), "right"), (last, (8, 0), "left"))
    for row, offset, side in ends[: 1 + (last["stage"] > first["stage"])]:
        place = (row["stage"], row["rank"])
        text: Any = {"textcoords": "offset points", "ha": side, "va": "center"}
        axes.annotate(row["candidate"], place, offset, **text)


PROMOTION = Section[Run](
    name="promotion",
    title="Who goes on",
    applies=lambda run: bool(run.experiment.get("promotion")),
    sentences=sentences,
    figures={"ranks": ("Ranks from stage to stage", ranks)},
    tables={
        "standings": ("Candidates at each budget", standings_table),
        "stages": ("Stages", stages),
    },
)
