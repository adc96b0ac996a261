"""Tables of a search: how its trials ended, its best, what they are worth, and what decides."""

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from quarterhour.analysis import formats
from quarterhour.analysis.chapters.search import results as search
from quarterhour.analysis.chapters.search.results import search_results
from quarterhour.analysis.runs import Run
from quarterhour.analysis.sections import Table
from quarterhour.analysis.statistics import resampled_interval

if TYPE_CHECKING:  # a grid's report needs no optuna
    import optuna
    from optuna.distributions import BaseDistribution

SHOWN = 10
SHOWN_COMMANDS = 3
MIN_PROPOSALS = 20
CONFOUNDED = 0.8  # rank correlation of two settings from which on they are not told apart
_HALVES = 16
_LOG_RATIO = 100  # a range of this ratio or more is drawn and weighed on a log scale
_TREES = 16


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
    """The best complete trials by the first objective, and the best reference point, all with one
    budget: where that is steps, they saw different numbers of tokens.

    Settings that are the same for all are left out.
    """
    return search.best_trials(search_results(run), SHOWN).rename_axis("trial")


def commands(run: Run) -> pd.DataFrame:
    """The best trials as commands that train them again, each in a run folder of its own.

    Beside the search's folder such a command adopts the result; with another --runs it trains.
    --set, --seed, --budget and --profile change a part.
    """
    folders = search_results(run).ranked()["folder"].head(SHOWN_COMMANDS)
    shown = {folder.name: search.rerun_command(folder.absolute()) for folder in folders}
    return pd.DataFrame({"command": shown}, dtype=str).rename_axis("trial")


def against_the_six(run: Run) -> Table:
    """The best trials against the best of the six, or what was searched around, each trained again
    with n fresh seeds.

    What is within seed noise alone is told from what is borderline: that differs for its own pair,
    and not when all comparisons are allowed for.
    """
    results = search_results(run)
    compared = search.seed_comparison(results)
    if not compared.empty:
        compared = compared.fillna({"verdict": results.standard}).set_index("trial")
    notes = [f"low to high: {search.CORRECTION}. {results.remark_on_standard}".strip()]
    return Table(frame=compared, cells=formats.texts(compared), notes=notes)


@functools.lru_cache(maxsize=1)
def importances(run: Run) -> pd.DataFrame:
    """Share of the objective's variance that each setting explains, by fANOVA on the complete
    trials that the sampler proposed: the six share values that no proposal has. `low` to `high` is
    its 95 % interval, from halves of the trials. Settings that rise and fall together cannot be
    told apart, and are left out. The dashboard's shares are others: PED-ANOVA, on all complete
    trials, of what makes a trial one of the best tenth.

    Conditional settings count with their default where they do not apply. Empty where `too_few`.
    """
    if too_few(run) or not (settings := weighed(run)):
        return pd.DataFrame()
    results, trials = search_results(run), proposed(run)
    ranges = {path: kind for path, kind in parameters(run).items() if path in settings}
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(trials)) for _ in range(_HALVES // 2)]
    halves = [trials.iloc[half] for order in orders for half in np.array_split(order, 2)]
    rows: list[dict[str, Any]] = []
    for objective in results.objectives:
        shares = _shares(trials, objective, ranges)
        again = pd.DataFrame(_shares(half, objective, ranges) for half in halves).fillna(0)
        for setting, share in shares.items():
            _, _, *bounds = resampled_interval(share, again[setting].to_list())
            low, high = np.clip(bounds, 0, 1)
            figures = {"share": share, "low": low, "high": high}
            rows.append({"objective": objective, "setting": setting} | figures)
    return pd.DataFrame(rows)


def _shares(trials: Any, objective: str, ranges: dict[str, "BaseDistribution"]) -> dict[str, float]:
    """fANOVA's shares of the settings, the largest first; none where the objective is constant."""
    # A search's alone, and slow to import: it has scikit-learn with it.
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    if trials[objective].nunique() < 2:
        return {}
    evaluator = FanovaImportanceEvaluator(n_trees=_TREES, seed=0)
    return get_param_importances(
        _study(trials, {objective: "minimize"}, ranges), evaluator=evaluator
    )


def proposed(run: Run) -> pd.DataFrame:
    """The complete trials that the sampler proposed, in their order."""
    results = search_results(run)
    trials = results.measured().sort_values("configuration")
    return trials.loc[~trials["origin"].isin(results.reference)]


def too_few(run: Run) -> str:
    """Why importances cannot be told, or "" where they can."""
    n = len(proposed(run))
    if n >= MIN_PROPOSALS:
        return ""
    return (
        f"Which setting decides cannot be told from {n} complete proposals: at least"
        f" {MIN_PROPOSALS} are needed. The same command with larger --trials trains more."
    )


def weighed(run: Run) -> list[str]:
    """The settings whose importance can be told: they differ, and not along with another."""
    ranges = parameters(run)
    trials = proposed(run).reindex(columns=list(ranges))
    differ = trials.loc[:, trials.nunique() > 1]
    ranks = differ.apply(lambda values: pd.factorize(values, sort=True)[0])
    ties = ranks.corr("spearman").abs() - np.eye(len(ranks.columns))
    return [str(path) for path in ties if ties[path].max() < CONFOUNDED]


def front(run: Run) -> pd.DataFrame:
    """The trials that no other is better than: as good in all objectives, and better in one."""
    results = search_results(run)
    best: Any = non_dominated(results.measured(), results.objectives)
    return best.set_index("configuration")[["origin", *results.objectives]].rename_axis("trial")


def non_dominated(trials: pd.DataFrame, objectives: dict[str, str]) -> pd.DataFrame:
    """Those of the trials that no other is better than in these objectives."""
    best = _study(trials, objectives, {}).best_trials if len(trials) else []
    return trials.iloc[[trial.number for trial in best]]


def parameters(run: Run) -> dict[str, "BaseDistribution"]:
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
    trials: pd.DataFrame, objectives: dict[str, str], ranges: dict[str, "BaseDistribution"]
) -> "optuna.Study":
    """The complete trials as a study in memory, in their order."""
    import optuna  # a search's alone

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


def _distribution(values: list[Any]) -> "BaseDistribution":
    """The range or the choices that these values span."""
    from optuna import distributions

    if any(isinstance(value, str | bool) for value in values):
        return distributions.CategoricalDistribution(sorted(values))
    low, high = min(values), max(values)
    if all(float(value).is_integer() for value in values):
        return distributions.IntDistribution(int(low), int(high))
    return distributions.FloatDistribution(low, high, log=low > 0 and high / low >= _LOG_RATIO)
