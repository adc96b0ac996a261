"""What a run has come to, in a few sentences and one figure: the report opens with it."""

from typing import Any

import numpy as np
import pandas as pd

from quarterhour.analysis import plots
from quarterhour.analysis.chapters import equal_cost, seeds, verify
from quarterhour.analysis.chapters.memorisation import memorisation
from quarterhour.analysis.chapters.paper import published
from quarterhour.analysis.chapters.run import remarks
from quarterhour.analysis.chapters.search import figures, tables
from quarterhour.analysis.chapters.search import results as search
from quarterhour.analysis.runs import Run
from quarterhour.analysis.sections import Section, compares_configurations
from quarterhour.tune.run_folder import COLUMNS, EVAL_LOSS, HELDOUT_LOSS

ALIKE = 0.01  # what differs by a smaller share is not told apart


def sentences(run: Run) -> list[str]:
    """What the run has come to, and then what a reader has to know of it."""
    said = _of_a_search(run) if run.is_search else _of_configurations(run)
    return [sentence for sentence in said if sentence] + remarks(run)


def _of_configurations(run: Run) -> list[str]:
    table: Any = equal_cost.equal_cost(run)
    ranked = table.loc[table["rank"].notna()].groupby("view", sort=False)
    views = [(view, own.to_dict("records")) for view, own in ranked if len(own) > 1]
    if not views:
        return []
    # First what was really run at equal cost, rather than read off curves.
    run_first = min(views, key=lambda view: sum(row["interpolated"] for row in view[1]))
    views.insert(0, views.pop(views.index(run_first)))
    leaders = [_leader(view, own) for view, own in views]
    if table["shared"].any():
        leaders.append("Device-seconds are not ranked: trials shared the device.")
    return [leaders[0], " ".join(leaders[1:]), _certainty(run), _leak(run), _study(run)]


def _leader(view: str, ranked: list[dict[str, Any]]) -> str:
    """Who is best at an equal cost of this kind, by how much, and how that is known."""
    first, second = ranked[:2]
    lead = second[HELDOUT_LOSS] - first[HELDOUT_LOSS]
    cut = sum(row["interpolated"] for row in ranked)
    how = f"; {cut} of {len(ranked)} are read off curves in the middle of their schedules" * bool(
        cut
    )
    return (
        f"At {equal_cost.amount(view, first['cost'])} each, {first['configuration']} is best:"
        f" held-out loss {first[HELDOUT_LOSS]:.3f} nats, {lead:.3f} below"
        f" {second['configuration']}{how}."
    )


def _certainty(run: Run) -> str:
    """What of the ranks at equal steps may be seed noise."""
    if lacking := seeds.lacks_seeds(run):
        return lacking
    pairs: Any = seeds.pairwise(run)
    told = pairs.loc[pairs["verdict"].isin(["better", "worse"])]
    ties = pairs.loc[pairs["verdict"] == "tie"]
    losses: Any = seeds.trial_measures(run).groupby("configuration")[HELDOUT_LOSS]
    best = [*losses.mean().sort_values().index[:2]]
    tied = {*best} in [{row.one, row.other} for row in ties.itertuples()]
    tie = f" The best two, {' and '.join(best)}, are among the ties." * tied
    test = "(Welch's test, Holm's correction for all pairs)"
    if len(told) == len(pairs):
        return f"At equal steps, all {len(pairs)} pairs differ by more than seed noise {test}."
    return (
        f"At equal steps, {len(told)} of {len(pairs)} pairs differ by more than seed noise and"
        f" {len(ties)} tie {test}.{tie}"
    )


def _leak(run: Run) -> str:
    """How far the study's own validation loss misleads."""
    table: Any = memorisation(run).dropna(subset=["gap"])
    if len(table) < 2:
        return ""
    most, second, leaky = table.iloc[0], table.iloc[1], table.loc[table[EVAL_LOSS].idxmin()]
    honest = table.loc[table[HELDOUT_LOSS].idxmin(), "configuration"]
    same = leaky["configuration"] == honest
    whose = f"largest for {most['configuration']}"
    if most["gap"] - second["gap"] < ALIKE * abs(most["gap"]):
        whose = f"alike for {most['configuration']} and {second['configuration']}"
    return (
        f"On the study's validation windows, which overlap training, {leaky['configuration']} looks"
        f" best{' too' if same else f', on unseen documents {honest} is'}; the gap is {whose}. At"
        f" its last step {most['configuration']} has {most[EVAL_LOSS]:.3f} there and"
        f" {most[HELDOUT_LOSS]:.3f} held out."
    )


def _study(run: Run) -> str:
    """How the run stands to the published study."""
    if not published.has_studied(run):
        return ""
    if kinds := published.differences(run):
        return f"Not comparable with the published study: other {', '.join(kinds)}."
    cells = verify.verify_cells(run)
    numbers = verify.counts(cells.loc[~cells["setting"].astype(bool)])
    said = ", ".join(f"{n} {verdict}" for verdict, n in numbers.items() if n)
    return f"Of the published figures {said}."


def _of_a_search(run: Run) -> list[str]:
    results = search.search_results(run)
    ranked = results.ranked().dropna(subset=[results.objective])
    if ranked.empty:
        return []
    measure = COLUMNS[results.objective]
    first, six = ranked.iloc[0], results.best_of_reference()
    kind, _, amount = run.experiment["search"]["budget"].partition(":")
    is_six = len(results.reference) > 1
    given = "published configurations" if is_six else "searched around"
    of_six = ranked["origin"].isin(results.reference).sum()
    said = (
        f"The best of {len(ranked)} complete trials ({of_six} {given},"
        f" {len(ranked) - of_six} proposals), each of {float(amount):,.0f} {kind}, is"
        f" {search.spoken(first)}: {measure.label} {first[results.objective]:.4g}"
        f" {measure.unit}".rstrip()
    )
    if six is not None and six.name == first.name:
        said += f", {'one of the six' if is_six else 'itself'}: no proposal is better"
    elif six is not None:
        off = abs(first[results.objective] - six[results.objective])
        said += (
            f", {off:.3g} better than"
            f" {'the best of the six published configurations, ' * is_six}{search.spoken(six)}"
        )
    said += ". One seed chose the trial, and the same seed gave this figure, which flatters it."
    return [f"{said}{_other_costs(kind, ranked)}", *_confirmed(run), _what_decides(run)]


def _other_costs(kind: str, ranked: Any) -> str:
    """How far trials of equal budget differ in tokens, where those are not the budget."""
    least, most = np.nanmin(ranked["tokens"]), np.nanmax(ranked["tokens"])
    if kind == "tokens" or not most > least * (1 + ALIKE):
        return ""
    return (
        f" Equal {kind} are not equal tokens: the trials saw"
        f" {plots.plain_number(least)} to {plots.plain_number(most)}."
    )


def _confirmed(run: Run) -> list[str]:
    """What fresh seeds say of the best trials, and what they cannot."""
    results = search.search_results(run)
    compared = search.seed_comparison(results)
    if compared.empty:
        return [
            "Whether that is more than seed noise cannot be told yet: at its end, a search trains"
            f" its best trials and {results.standard} again with fresh seeds."
        ]
    others = compared.dropna(subset=["difference"])
    origins = results.searched.set_index("configuration")["origin"]
    said = [
        f"{row['trial']} {origins[row['trial']]} {row['mean']:.3f}, {row['difference']:+.3f}"
        + (f" [{row['low']:+.3f}, {row['high']:+.3f}]" * pd.notna(row["low"]))
        + f", {row['verdict']}"
        for row in others.to_dict("records")
    ]
    if not said:
        return [f"No trial is better than {results.standard}, and no other has fresh seeds."]
    return [
        f"The search trained its best trials and {results.standard} again, with up to"
        f" {compared['n'].max()} seeds that had chosen nothing. Means, and differences from the"
        f" latter: {'; '.join(said)} ({search.CORRECTION})."
        f" {results.remark_on_standard}".rstrip()
    ]


def _what_decides(run: Run) -> str:
    """Which setting explains most, if that can be told."""
    shares = tables.importances(run)
    if shares.empty:
        return tables.too_few(run)
    top = shares.iloc[0]
    share, low, high = (f"{100 * top[name]:.0f}" for name in ("share", "low", "high"))
    return (
        f"Of the settings {top['setting']} explains most: {share} % [{low}, {high}] of the variance"
        " between proposals (fANOVA)."
    )


def outcome(run: Run) -> Any:
    """The best against the best reference point with fresh seeds, or as long as there are none, how
    the search came to its best."""
    return figures.fresh_seeds(run) or figures.optimisation_history(run)


OPENING = Section[Run](
    name="results",
    title="Results",
    applies=compares_configurations,
    sentences=sentences,
    figures={"equal_cost": ("Held-out loss at equal cost", equal_cost.equal_cost_losses)},
)

SEARCH_OPENING = Section[Run](
    name="outcome",
    title="Results",
    applies=lambda run: run.is_search,
    sentences=sentences,
    figures={"outcome": ("The best with fresh seeds", outcome)},
)
