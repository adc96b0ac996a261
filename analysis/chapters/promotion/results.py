"""The stages of a promotion: how its candidates stand at each budget, and who goes on."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from quarterhour.analysis.chapters.search.results import search_results
from quarterhour.analysis.measures import final_rows, settings_but
from quarterhour.analysis.runs import Run
from quarterhour.analysis.statistics import Noise, pooled_noise, spearman
from quarterhour.tune.run_folder import HELDOUT_LOSS, TRIAL, Status

GOES_ON, SPARED, DROPPED = "goes on", "goes on, within noise of the last", "dropped"
WINS, TIES, BEHIND = "wins", "ties with the winner", "behind"
FAILED = "dropped: a trial failed"
_COLUMNS = ["stage", "budget", "candidate", "n", "mean", "low", "high", "rank", "outcome"]
_COSTS = ["flops", "seconds"]


@functools.lru_cache(maxsize=1)
def standings(run: Run) -> pd.DataFrame:
    """Each candidate at each `stage` that it has come to: its `mean` held-out loss (nats) over `n`
    seeds, its 95 % interval from `low` to `high` by the seed noise pooled over the stage, its
    `rank`, and the `outcome`. A stage with a trial that has not ended is left out, and all after.

    A later stage counts those whom the rule sends on: its trials of others do not.
    """
    entrants, tables = candidates(run), list[pd.DataFrame]()
    for stage in range(len(rule(run)["budgets"])):
        table = _standing(run, stage, entrants)
        if table is None:
            break
        tables.append(table)
        entrants = _of(table, GOES_ON, SPARED)
        if not entrants:
            break
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=_COLUMNS)


def going_on(run: Run, stage: int) -> list[str]:
    """The candidates that go on from a stage; none while it has not ended, and from the last."""
    table = standings(run)
    return _of(table.loc[table["stage"] == stage], GOES_ON, SPARED)


def _of(table: Any, *outcomes: str) -> list[str]:
    return list(table.loc[table["outcome"].isin(outcomes), "candidate"])


def rule(run: Run) -> dict[str, Any]:
    """The rule of the promotion, as its experiment.json has it."""
    return run.experiment["promotion"]


def configuration(run: Run, candidate: str, stage: int) -> str:
    """What a candidate is called at a stage."""
    return f"{candidate}-{rule(run)['budgets'][stage].replace(':', '-')}"


def candidates(run: Run) -> list[str]:
    """All that entered the first stage."""
    ending = configuration(run, "", 0)
    return [n.removesuffix(ending) for n in run.experiment["configurations"] if n.endswith(ending)]


def stage_noise(run: Run, stage: int) -> Noise:
    """How much seeds of equal candidates differ at a stage."""
    table: Any = standings(run)
    entrants = table.loc[table["stage"] == stage, "candidate"]
    return pooled_noise([_losses(run, configuration(run, name, stage)) for name in entrants])


def _standing(run: Run, stage: int, entrants: Sequence[str]) -> pd.DataFrame | None:
    """A stage's table, the best first; None where it has not ended."""
    names = [configuration(run, candidate, stage) for candidate in entrants]
    trials = run.trials.loc[run.trials["configuration"].isin(names)]
    if {*names} != {*trials["configuration"]} or not all(
        Status(status).ended for status in trials["status"]
    ):
        return None
    losses = {c: _losses(run, name) for c, name in zip(entrants, names, strict=True)}
    noise = pooled_noise(losses.values())
    means = {c: float(np.mean(own)) if own else np.nan for c, own in losses.items()}
    table: Any = pd.DataFrame({"candidate": [*losses], "mean": [*means.values()]})
    table = table.assign(n=[len(own) for own in losses.values()])
    table = table.sort_values("mean", kind="stable", ignore_index=True)
    half: Any = noise.student() * noise.deviation / np.sqrt(table["n"].where(table["n"] > 0))
    table = table.assign(low=table["mean"] - half, high=table["mean"] + half)
    rank = table["mean"].rank(method="first")
    outcome = _outcomes(table, noise, rule(run), stage)
    budget = rule(run)["budgets"][stage]
    return table.assign(stage=stage, budget=budget, rank=rank, outcome=outcome)[_COLUMNS]


def _losses(run: Run, name: str) -> list[float]:
    """Final held-out losses of a configuration's seeds; none where one of them has failed."""
    final = final_losses(run)
    own = final.loc[final["configuration"] == name, HELDOUT_LOSS].to_list()
    return own if len(own) == (run.trials["configuration"] == name).sum() else []


@functools.lru_cache(maxsize=1)
def final_losses(run: Run) -> pd.DataFrame:
    """Held-out loss of each complete trial, and what it cost: FLOPs and device-seconds."""
    return final_rows(run, [HELDOUT_LOSS, *_COSTS]).dropna(subset=[HELDOUT_LOSS])


def _outcomes(table: Any, noise: Noise, rule: dict[str, Any], stage: int) -> list[str]:
    """Who goes on: the best by mean, and who is no worse than the last of them by the margin. At
    the last stage, who wins, and who cannot be told from it."""
    is_last = stage == len(rule["keep"])
    best, near, far = (WINS, TIES, BEHIND) if is_last else (GOES_ON, SPARED, DROPPED)
    last = min(1 if is_last else rule["keep"][stage], table["mean"].notna().sum()) - 1
    if last < 0:
        return [FAILED] * len(table)
    margin = None if is_last else rule["margin"]
    margins = _margins(table, noise, last) if margin is None else [margin] * len(table)
    gaps = table["mean"] - table["mean"][last]
    return [
        FAILED if np.isnan(gap) else best if n <= last else near if gap <= margin else far
        for n, (gap, margin) in enumerate(zip(gaps, margins, strict=True))
    ]


def _margins(table: Any, noise: Noise, last: int) -> list[float]:
    """By how much each mean can differ from that at `last` by seed noise alone: t·s·sqrt(1/n + 1/m)
    (half of Fisher's least significant difference); 0 where no noise is known."""
    if not noise.freedom:
        return [0.0] * len(table)
    sizes = table["n"].clip(lower=1)
    error = noise.deviation * np.sqrt(1 / sizes + 1 / sizes[last])
    return [*(noise.student() * error)]


def stages(run: Run) -> pd.DataFrame:
    """Each stage that has ended: its `budget`, how many `candidates` with how many `seeds` each,
    the seed `noise` with its degrees of `freedom`, how many go on, the rank correlation with the
    stage after (Spearman, with its 95 % interval from `low` to `high`), and what it has cost."""
    table: Any = standings(run)
    rows: list[dict[str, Any]] = []
    for stage, own in table.groupby("stage"):
        after: Any = own.merge(table.loc[table["stage"] == stage + 1], on="candidate")
        correlation = spearman(after["mean_x"], after["mean_y"])
        noise = stage_noise(run, stage)
        row = {"budget": rule(run)["budgets"][stage], "candidates": len(own)}
        row |= {"seeds": rule(run)["seeds"][stage]}
        row |= {"noise": noise.deviation, "freedom": noise.freedom}
        row |= {"go_on": len(_of(own, GOES_ON, SPARED))}
        row |= {"rank_correlation": correlation.value}
        row |= {"low": correlation.low, "high": correlation.high}
        rows.append(row | _spent(run, stage))
    return pd.DataFrame(rows)


def _spent(run: Run, stage: int) -> dict[str, float]:
    """FLOPs and device-seconds of a stage's trials, without those that were adopted."""
    trials: Any = run.trials
    ours = trials["adopted_from"].isna() & trials["configuration"].isin(
        [configuration(run, candidate, stage) for candidate in candidates(run)]
    )
    last = run.rows.reindex(columns=[*TRIAL, *_COSTS]).groupby(TRIAL, as_index=False).last()
    return last.merge(trials.loc[ours, TRIAL], on=TRIAL)[_COSTS].sum().to_dict()


def cost_of_all(run: Run) -> dict[str, float]:
    """What it would have cost to train all candidates at the last budget with its seeds: what they
    cost at the first, times how much more those cost that were trained at both. Calculated, not
    measured."""
    final: Any = final_losses(run)
    once = final.groupby("configuration")[_COSTS].mean()
    stage = len(rule(run)["keep"])
    both = standings(run).query("stage == @stage")["candidate"]
    first, last, every = (
        once.loc[once.index.isin([configuration(run, c, n) for c in names])].sum()
        for names, n in ((both, 0), (both, stage), (candidates(run), 0))
    )
    return (every * last / first * rule(run)["seeds"][-1]).to_dict()


def ranked_folders(run: Run) -> list[Path]:
    """A complete trial's folder of each point of the run, the best first: by mean held-out loss, or
    by the search's objective."""
    if run.is_search:
        return [*map(Path, search_results(run).ranked()["folder"])]
    settings = settings_but(run, "budget")  # an ablation has a point once for each budget
    point = dict(zip(run.trials["configuration"], settings, strict=True))
    folders: Any = run.trials[[*TRIAL, "folder"]]
    final: Any = final_rows(run, [HELDOUT_LOSS]).merge(folders, on=TRIAL)
    means = final.groupby("configuration")[HELDOUT_LOSS].mean().sort_values()
    best = {point[name]: name for name in reversed(means.index)}
    first = final.drop_duplicates("configuration").set_index("configuration")["folder"]
    return [first[name] for name in means.index if best[point[name]] == name]
