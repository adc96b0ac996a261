"""The effects of an ablation's settings on held-out loss, at each of its budgets."""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import scipy  # imports scipy.special and scipy.stats where they are first used

from quarterhour.analysis.chapters.equal_cost import complete_trials, loss_at
from quarterhour.analysis.runs import Run
from quarterhour.analysis.statistics import CONFIDENCE, Noise, holm, pooled_noise
from quarterhour.tune.run_folder import HELDOUT_LOSS, Status

POWER = 0.8
AS_TRAINED, EQUAL_FLOPS = "as trained", "equal FLOPs"
NOISE = "within seed noise"
_ALIKE = 1.01  # FLOPs that differ by less are equal
_FITTED = ["difference", "low", "high", "p", "p_corrected", "verdict", "freedom", "detectable"]
_COLUMNS = ["budget", "at", "effect", *_FITTED, "aliases"]


@functools.lru_cache(maxsize=1)  # each table, figure and sentence of the chapter asks for it
def effects(run: Run) -> pd.DataFrame:
    """Each `effect` on held-out loss (nats), the largest first: the `difference` that it makes, its
    95 % interval from `low` to `high`, `p`, `p_corrected` for all effects, the verdict by that, and
    the effects that the design cannot tell it from (`aliases`).

    That is for each `budget`, and `at` equal FLOPs where its cells differ in these: the losses are
    then read off the curves where the cheapest trial ends, in the middle of the others' schedules.
    A linear model is fitted to the complete trials. Its noise is that between seeds, pooled over
    cells with `freedom` degrees of freedom: without several seeds in a cell there are no
    intervals. `detectable` is the smallest effect that is found with a power of 80 %.
    """
    chosen = chosen_trials(run)
    tables = [
        fit_effects(run.experiment["ablation"], own, loss).assign(budget=budget, at=at)
        for budget, of_budget in chosen.groupby("budget", sort=False)
        for at, loss, own in _views(of_budget)
    ]
    known = [table for table in tables if len(table)]
    if not known:
        return pd.DataFrame(columns=_COLUMNS)
    return pd.concat(known, ignore_index=True).loc[:, _COLUMNS]


def _views(trials: Any) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """How the trials of a budget are compared, by which of their losses."""
    yield AS_TRAINED, HELDOUT_LOSS, trials
    if trials["flops"].max() > _ALIKE * trials["flops"].min():
        yield EQUAL_FLOPS, "loss_at_equal_flops", trials


def budgets(run: Run) -> list[str]:
    """The budgets of an ablation, as they were given."""
    return run.experiment["ablation"]["budget"].split(",")


def variants(run: Run) -> dict[str, dict[str, Any]]:
    """The `cell`, the `budget` and the `rate` (a factor on the learning rate) of each
    configuration."""
    told = run.experiment["ablation"]
    plain = {n: {"cell": n, "budget": told["budget"], "rate": 1.0} for n in told["cells"]}
    return told.get("variants") or plain


@functools.lru_cache(maxsize=1)
def rates(run: Run) -> pd.DataFrame:
    """Each cell's `mean` held-out loss at each learning `rate`, by `budget`, over `size` seeds.

    `best` marks the lowest, `at_edge` whether that is the smallest or largest rate that was tried.
    Cells with a trial that has not ended are left out.
    """
    trials = _trials(run)
    by_rate: Any = trials.groupby(["budget", "cell", "rate"], sort=False)[HELDOUT_LOSS]
    table = by_rate.agg(["mean", "size"]).reset_index()
    cells: Any = [table["budget"], table["cell"]]
    # A rate at which some seeds fail is not the best of a cell.
    whole = table["size"] == table["size"].groupby(cells).transform("max")
    best = table["mean"] == table["mean"].where(whole).groupby(cells).transform("min")
    tried = [trial["rate"] for trial in variants(run).values()]
    edges = {min(tried), max(tried)} if len({*tried}) > 1 else set[float]()
    return table.assign(best=best, at_edge=best & table["rate"].isin(edges))


@functools.lru_cache(maxsize=1)
def chosen_trials(run: Run) -> pd.DataFrame:
    """The complete trials that are compared, those of each cell's best learning rate: `budget`,
    `cell`, `rate`, `flops`, held-out loss, and `loss_at_equal_flops`."""
    best = rates(run)
    best = best.loc[best["best"], ["budget", "cell", "rate"]].drop_duplicates(["budget", "cell"])
    return _trials(run).merge(best, on=["budget", "cell", "rate"])


@functools.lru_cache(maxsize=1)
def _trials(run: Run) -> pd.DataFrame:
    known, begun = variants(run), run.trials["configuration"]
    unended = {*begun.loc[~run.trials["status"].isin([s for s in Status if s.ended])]}
    open_cells = {(known[n]["budget"], known[n]["cell"]) for n in unended if n in known}
    rows = [
        told | {"rows": rows, "flops": rows["flops"][-1], HELDOUT_LOSS: rows[HELDOUT_LOSS][-1]}
        for name, of_name in complete_trials(run).items()
        if (told := known.get(name)) and (told["budget"], told["cell"]) not in open_cells
        for rows in of_name
    ]
    columns = ["budget", "cell", "rate", "rows", "flops", HELDOUT_LOSS]
    trials = pd.DataFrame(rows, columns=columns)
    least: Any = trials.groupby("budget")["flops"].transform("min")
    cut = [
        loss_at(rows, HELDOUT_LOSS, "flops", flops)
        for rows, flops in zip(trials.pop("rows"), least, strict=True)
    ]
    return trials.assign(loss_at_equal_flops=cut)


def fit_effects(design: dict[str, Any], trials: pd.DataFrame, loss: str) -> pd.DataFrame:
    """The design's effects on this loss of trials with their `cell`, the largest first; empty where
    cells are missing that tell them apart."""
    coded = _model(trials, design["effects"])
    if np.linalg.matrix_rank(coded) < coded.shape[1]:
        return pd.DataFrame()
    inverse = np.linalg.inv(coded.T @ coded)
    found = (inverse @ coded.T @ trials[loss].to_numpy(float))[1:]
    noise = noise_of(trials, loss)
    known = noise.deviation > 0
    errors = noise.deviation * np.sqrt(np.diag(inverse))[1:] if known else found * np.nan
    half = noise.student() * errors
    table = pd.DataFrame({"effect": [*design["effects"]], "difference": found})
    table = table.assign(low=found - half, high=found + half, freedom=noise.freedom)
    t = np.abs(found / errors)
    table["p"] = 2 * scipy.special.stdtr(noise.freedom, -t) if known else np.nan
    table["p_corrected"] = _corrected(table["p"].to_numpy(float), design["design"])
    table["verdict"] = [_verdict(row) for row in table.to_dict("records")]
    table["detectable"] = half + noise.student(POWER) * errors
    table["aliases"] = ["; ".join(told["aliases"]) for told in design["effects"].values()]
    return table.iloc[np.argsort(-np.abs(found), kind="stable")]


def noise_of(trials: pd.DataFrame, loss: str = HELDOUT_LOSS) -> Noise:
    """How much seeds of equal cells differ."""
    return pooled_noise([[*own] for _, own in trials.groupby("cell")[loss]])


def _model(trials: pd.DataFrame, told: dict[str, Any]) -> np.ndarray:
    """The model's matrix: an intercept, and a column an effect; a row a trial."""
    codes = [trials["cell"].map(effect["codes"]).to_numpy(float) for effect in told.values()]
    return np.nan_to_num(np.column_stack([np.ones(len(trials)), *codes]))


def is_one_at_a_time(run: Run) -> bool:
    """Whether each cell is compared with one reference."""
    return run.experiment["ablation"]["design"] == "one-at-a-time"


def _corrected(p: np.ndarray, design: str) -> np.ndarray:
    """Holm's correction for comparisons with one reference; for a screen, of the false discovery
    rate (Benjamini and Hochberg 1995)."""
    if np.isnan(p).any() or not len(p):
        return p
    return holm(p) if design == "one-at-a-time" else scipy.stats.false_discovery_control(p)


def _verdict(row: dict[Any, Any]) -> str:
    if np.isnan(row["p"]):
        return f"{'no spread' if row['freedom'] else 'one seed'}: cannot be judged"
    if row["p_corrected"] > 1 - CONFIDENCE:
        return NOISE
    return "lowers the loss" if row["difference"] < 0 else "raises the loss"
