"""What a search has come to: its trials by state, its cost, its best, and what fresh seeds say."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from quarterhour.analysis.runs import Run, typed_path
from quarterhour.analysis.statistics import CONFIDENCE, pooled_difference, unjudged, welch
from quarterhour.tune.run_folder import SPEEDS, TRIAL, Status, setting_place

SPENT = ("step", "tokens", "flops", "seconds")
CORRECTION = "Welch's intervals, 95 % for all comparisons together (Bonferroni)"


@dataclass(frozen=True, kw_only=True)
class SearchResults:
    """A search's own trials (`searched`) and those of its best with fresh seeds (`fresh`).

    The `reference` points are the six, or the one that was searched around. Each trial has a row:
    its number as `configuration`, its `seed`, `status` and `origin`, its settings under dotted
    names, and the last known value of each measure.
    """

    objectives: dict[str, str]
    reference: list[str]
    searched: pd.DataFrame
    fresh: pd.DataFrame

    @property
    def standard(self) -> str:
        """What the best are compared with: the best of the six, or what was searched around."""
        return "the best of the six" if len(self.reference) > 1 else self.reference[0]

    @property
    def remark_on_standard(self) -> str:
        """What a comparison with it cannot tell."""
        chosen = "was itself chosen by one seed: another of the six may be better on average."
        return f"The best of the six {chosen}" if len(self.reference) > 1 else ""

    @property
    def objective(self) -> str:
        """The objective, or the first of several."""
        return next(iter(self.objectives))

    def ranked(self) -> pd.DataFrame:
        """The complete trials, the best by the (first) objective first."""
        complete = self.searched.loc[self.searched["status"] == Status.COMPLETE]
        ascending = self.objectives[self.objective] == "minimize"
        return complete.sort_values([self.objective], ascending=ascending, kind="stable")

    def measured(self) -> Any:
        """Those of the `ranked` trials that have all objectives."""
        return self.ranked().dropna(subset=[*self.objectives])

    def best_of_reference(self) -> pd.Series | None:
        """The best complete trial of the reference points, or None if there is none."""
        ranked = self.ranked()
        own = ranked.loc[ranked["origin"].isin(self.reference)]
        return None if own.empty else own.iloc[0]


def search_results(run: Run) -> SearchResults:
    """The results of a search's run folder; raises ValueError where it is of another kind."""
    if not run.is_search:
        raise ValueError(
            f"{run.folder} is no search but of kind {run.experiment['kind']}: give one that"
            " `quarterhour search` has written, such as runs/search"
        )
    search, trials = run.experiment["search"], run.trials
    if not run.rows.empty:
        rows = run.rows.groupby(TRIAL, as_index=False)
        last = rows.last()
        for name in last.columns.intersection(SPEEDS):
            last[name] = rows[name].median()[name]
        trials = trials.merge(last, how="left", on=TRIAL)
    columns = dict.fromkeys([*trials, "adopted_from", *search["objectives"], *SPENT])
    trials = trials.reindex(columns=list(columns))
    is_searched = trials["seed"] == search["seed"]
    return SearchResults(
        objectives=search["objectives"],
        reference=list(run.experiment["resolved"]),
        searched=trials.loc[is_searched],
        fresh=trials.loc[~is_searched],
    )


def spent(results: SearchResults) -> pd.Series:
    """Steps, tokens, FLOPs and device-seconds of the search, without what it adopted."""
    trials = pd.concat([results.searched, results.fresh])
    return trials.loc[trials["adopted_from"].isna(), list(SPENT)].sum()


def best_trials(results: SearchResults, n_best: int = 5) -> pd.DataFrame:
    """The best trials and the best reference point, by number, with their origin, their objectives,
    and the settings in which complete trials differ.
    """
    ranked = results.ranked()
    reference = results.best_of_reference()
    shown = ranked.head(n_best)
    if reference is not None and reference["configuration"] not in set(shown["configuration"]):
        shown = pd.concat([shown, ranked.loc[[reference.name]]])
    settings = [name for name in setting_names(ranked) if ranked[name].drop_duplicates().size > 1]
    return shown.set_index("configuration").loc[:, ["origin", *results.objectives, *settings]]


def setting_names(trials: pd.DataFrame) -> list[str]:
    """The columns that a search may range over, those that matter most first."""
    names = [str(name) for name in trials if str(name).startswith(("model.", "optim.", "data."))]
    return sorted(names, key=setting_place)


def rerun_command(trial_folder: Path) -> str:
    """The shell command that trains a trial again, in a run folder of its own.

    It is for the working directory in which the report is made; a trial's folder elsewhere is told
    by the end of its path. Beside the search's run folder it adopts the result instead.
    """
    return shlex.join(["quarterhour", "run", typed_path(trial_folder)])


def seed_comparison(results: SearchResults) -> pd.DataFrame:
    """The best trials against the best reference point, each trained again with fresh seeds.

    One row a candidate: the mean of the objective over its `n` fresh seeds, the difference from the
    reference with its interval, which has the `CORRECTION`, and the verdict: "borderline" is
    what only the interval of this pair alone tells from seed noise. Results with the search's own
    seed are left out: the candidates were chosen by them.
    """
    complete = results.fresh.loc[results.fresh["status"] == Status.COMPLETE]
    values: dict[Any, Any] = dict([*complete.groupby("configuration")[results.objective]])
    reference = results.best_of_reference()
    if reference is None or reference["configuration"] not in values:
        return pd.DataFrame()
    against = values.pop(reference["configuration"])
    rows = [{"trial": reference["configuration"], "n": len(against), "mean": against.mean()}]
    minimize = results.objectives[results.objective] == "minimize"
    for name, own in values.items():
        row = {"trial": name, "n": len(own), "mean": own.mean()}
        rows.append(row | _difference(own, against, len(values), minimize))
    columns = ["trial", "n", "mean", "difference", "low", "high", "verdict"]
    compared = pd.DataFrame(rows).reindex(columns=columns)
    return compared.sort_values(["mean"], ascending=minimize, kind="stable")


def against_best(results: SearchResults, name: str) -> dict[str, Any]:
    """A trial against the best of the others, each by its one seed and the (first) objective.

    `difference` is the trial's value less that of `best`, with the interval that the spread of this
    search's trials with fresh seeds gives. The best was chosen by this seed, so its value flatters
    it: "better" claims no more than it seems to, "worse" may.
    """
    complete = results.ranked()
    others = complete.loc[complete["configuration"] != name]
    own = complete.loc[complete["configuration"] == name, results.objective]
    told = dict[str, Any](objective=results.objective, best=None)
    if own.empty:
        return told | {"verdict": "no: it is not complete"}
    if others.empty:
        return told | {"verdict": "cannot be told: no other trial is complete"}
    fresh = results.fresh.loc[results.fresh["status"] == Status.COMPLETE]
    groups = [of.to_list() for _, of in fresh.groupby("configuration")[results.objective]]
    best = others.iloc[0]
    told["best"] = best["configuration"]
    compared = pooled_difference(own.iloc[0], best[results.objective], groups)
    return told | compared | {"verdict": _verdict_of_one_seed(compared, results)}


def _verdict_of_one_seed(compared: dict[str, float], results: SearchResults) -> str:
    if pd.isna(compared["low"]):
        return (
            "cannot be told: one seed each, and no trial of this search has several fresh seeds"
            " that tell how much seeds differ"
        )
    if compared["low"] <= 0 <= compared["high"]:
        return "within seed noise"
    minimize = results.objectives[results.objective] == "minimize"
    return "better" if (compared["high"] < 0) == minimize else "worse"


def _difference(own: Any, against: Any, tests: int, minimize: bool) -> dict[str, Any]:
    pair = own.to_list(), against.to_list()
    alone, compared = welch(*pair), welch(*pair, 1 - (1 - CONFIDENCE) / tests)
    if pd.isna(compared["low"]):
        verdict = unjudged(len(own), len(against))
    elif alone["low"] * alone["high"] <= 0:
        verdict = "within seed noise"
    elif compared["low"] * compared["high"] <= 0:
        verdict = "borderline"
    else:
        verdict = "better" if (compared["high"] < 0) == minimize else "worse"
    return {**compared, "verdict": verdict}


def spoken(trial: pd.Series) -> str:
    """A trial's number and who asked for it, as in "0001 high_lr"."""
    return f"{trial['configuration']} {trial['origin']}"
