"""Tables of a search: how its trials ended, its best, what they are worth, and what decides."""

import functools
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna import distributions
from optuna.distributions import BaseDistribution

from quarterhour.analysis.chapters.search import results as search
from quarterhour.analysis.chapters.search.results import search_results
from quarterhour.analysis.runs import Run

SHOWN = 10
SHOWN_COMMANDS = 3
_LOG_RATIO = 100  # a range of this ratio or more is drawn and weighed on a log scale
_TREES = 32  # half of Optuna's number takes half the time


def states(run: Run) -> pd.DataFrame:
    """How many trials of the search itself ended how."""
    statuses = search_results(run).searched["status"]
    return statuses.value_counts().rename("trials").rename_axis("state").to_frame()


def cost(run: Run) -> pd.DataFrame:
    """What the search has spent; fresh seeds count, and adopted results do not."""
    amounts = search.spent(search_results(run)).rename(
        {"step": "steps", "seconds": "device-seconds"}
    )
    return amounts.rename("spent").rename_axis("of").to_frame()


def best(run: Run) -> pd.DataFrame:
    """The best complete trials by the first objective, and the best of the six, at equal budget.

    Settings that are the same for all are left out.
    """
    return search.best_trials(search_results(run), SHOWN).rename_axis("trial")


def commands(run: Run) -> pd.DataFrame:
    """The best trials as commands that train them again, each in a run folder of its own.

    Beside the search's folder such a command adopts the result; with another --runs it trains.
    """
    folders = search_results(run).ranked()["folder"].head(SHOWN_COMMANDS)
    shown = {folder.name: search.rerun_command(run, folder) for folder in folders}
    return pd.DataFrame({"command": shown}, dtype=str).rename_axis("trial")


def against_the_six(run: Run) -> pd.DataFrame:
    """The best trials against the best of the six, each trained again with n fresh seeds.

    The difference has a Welch interval, 95 % for all together (Bonferroni). Where it holds 0, the
    difference is within seed noise.
    """
    compared = search.seed_comparison(search_results(run))
    if compared.empty:
        return compared
    return compared.fillna({"verdict": "the best of the six"}).set_index("trial")


@functools.lru_cache(maxsize=1)
def importances(run: Run) -> pd.DataFrame:
    """Share of the objective's variance that each setting explains, by fANOVA on complete trials.

    `trials` is how many trials it rests on; with about as few as there are settings, it says
    little. Conditional settings count with their default where they do not apply.
    """
    # A search's alone, and slow to import: it has scikit-learn with it.
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    results, ranges = search_results(run), parameters(run)
    complete = results.measured()
    study = _study(complete, results.objectives, ranges)
    shares: dict[str, dict[str, float]] = {}
    for number, objective in enumerate(results.objectives):
        shares[objective] = dict.fromkeys(ranges, float("nan"))
        if complete[objective].nunique() > 1:
            shares[objective] = get_param_importances(
                study,
                evaluator=FanovaImportanceEvaluator(n_trees=_TREES, seed=0),
                target=lambda trial, number=number: trial.values[number],
            )
    return pd.DataFrame(shares).rename_axis("setting").assign(trials=len(complete))


def front(run: Run) -> pd.DataFrame:
    """The trials that no other is better than: as good in all objectives, and better in one."""
    results = search_results(run)
    best: Any = non_dominated(results.measured(), results.objectives)
    return best.set_index("configuration")[["origin", *results.objectives]].rename_axis("trial")


def non_dominated(trials: pd.DataFrame, objectives: dict[str, str]) -> pd.DataFrame:
    """Those of the trials that no other is better than in these objectives."""
    best = _study(trials, objectives, {}).best_trials if len(trials) else []
    return trials.iloc[[trial.number for trial in best]]


def parameters(run: Run) -> dict[str, BaseDistribution]:
    """What the search ranges over, by dotted name: settings in which complete trials differ.

    One that is an earlier one times a constant, as d_ff is of d_model, is left out.
    """
    complete: Any = search_results(run).measured()
    domains = run.experiment.get("domains", {})
    ends = pd.DataFrame({path: pd.Series(ends) for path, ends in domains.items()})
    known = pd.concat([complete, ends.reindex(columns=complete.columns)], ignore_index=True)
    found: dict[str, BaseDistribution] = {}
    for path in search.setting_names(known):
        differs = complete[path].nunique() > 1
        if differs and not any(_is_multiple(known, path, other) for other in found):
            found[path] = _distribution(known[path].dropna().unique().tolist())
    return found


def _study(
    trials: pd.DataFrame, objectives: dict[str, str], ranges: dict[str, BaseDistribution]
) -> optuna.Study:
    """The complete trials as a study in memory, in their order."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions: Any = [*objectives.values()]
    study = optuna.create_study(directions=directions)
    for trial in trials.to_dict("records"):
        params = {path: trial[path] for path in ranges}
        values = [trial[name] for name in objectives]
        study.add_trial(optuna.create_trial(params=params, distributions=ranges, values=values))
    return study


def _is_multiple(known: Any, path: Any, other: Any) -> bool:
    """Whether a setting is always the other times a constant, at the ends of their ranges too."""
    both = known[[path, other]].dropna().map(lambda value: pd.to_numeric(value, errors="coerce"))
    ratios = both[path] / both[other]
    return bool(np.allclose(ratios, ratios.iloc[0]))


def _distribution(values: list[Any]) -> BaseDistribution:
    """The range or the choices that these values span."""
    if any(isinstance(value, str | bool) for value in values):
        return distributions.CategoricalDistribution(sorted(values))
    low, high = min(values), max(values)
    if all(float(value).is_integer() for value in values):
        return distributions.IntDistribution(int(low), int(high))
    return distributions.FloatDistribution(low, high, log=low > 0 and high / low >= _LOG_RATIO)
