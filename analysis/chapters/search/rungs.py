"""What early stopping has done at its rungs, and how well a rung tells the end."""

from typing import Any

import pandas as pd

from quarterhour.analysis.chapters.search.results import search_results
from quarterhour.analysis.runs import Run
from quarterhour.analysis.statistics import spearman
from quarterhour.tune.run_folder import DONE, RUNG_OF, TRIAL, Status
from quarterhour.tune.run_reader import rung_values


def rungs(run: Run) -> pd.DataFrame:
    """Early stopping at each rung: how many trials came to it, how many of them stopped there, and
    Spearman's correlation of their order there with that at the end, with its 95 % interval from
    `low` to `high`.

    Only the n complete trials have an end: the correlation says nothing of those that were stopped.
    """
    if run.experiment["search"]["scheduler"] == "none":
        return pd.DataFrame()
    results, values = search_results(run), _values(run)
    pruned: Any = results.searched["status"] == Status.PRUNED
    last: Any = values.apply(pd.Series.last_valid_index, axis=1)
    ends: Any = results.ranked()[results.objective]
    rows: list[dict[str, Any]] = []
    for rung in values:
        here: Any = values[rung]
        n, correlation, low, high = spearman([*here[ends.index]], [*ends])
        counts = {"trials": here.count(), "stopped": (pruned & (last == rung)).sum(), "n": n}
        rows.append(counts | {"rank_correlation": correlation, "low": low, "high": high})
    return pd.DataFrame(rows, index=pd.Index([DONE[rung] for rung in values], name="after"))


def _values(run: Run) -> pd.DataFrame:
    """The objective of the search's own trials, with a column for each rung."""
    results = search_results(run)
    objective = results.objective
    rows: Any = run.rows.reindex(columns=[*TRIAL, "step", objective]).dropna(subset=[objective])
    rows_of = {trial: own.to_dict("records") for trial, own in rows.groupby(TRIAL)}
    trials: Any = results.searched.reindex(columns=[*TRIAL, "budget.steps"])
    values = [
        rung_values(rows_of[*trial], int(steps), objective) if (*trial,) in rows_of else {}
        for *trial, steps in trials.itertuples(index=False)
    ]
    columns = list(dict.fromkeys(RUNG_OF.values()))
    return pd.DataFrame(values, trials.index, columns)
