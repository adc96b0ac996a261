"""What a few seeds, or the six configurations, can tell: intervals, differences, correlations.

Intervals hold with a probability of 95 %, and are NaN where there are too few values for one.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy  # imports scipy.special and scipy.stats where they are first used: that takes long

CONFIDENCE = 0.95
ROUNDING = 1e-9  # of floating-point numbers, relative
_NAN = float("nan")


class Interval(NamedTuple):
    """An estimate with the bounds of its 95 % interval; `n` values went into it."""

    n: int
    value: float
    low: float
    high: float


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean, and where the mean of all seeds may lie (Student t); needs two values.

    A NaN among the values makes everything NaN: no mean is over fewer values than it says.
    """
    return _interval(values, spread_of_one=0)


def mean_intervals(groups: Any) -> pd.DataFrame:
    """`mean_interval` of each group of a grouped series: `mean`, `low`, `high` and `n`.

    The same rule holds for a NaN: leave NaNs out beforehand for the mean of what is there.
    """
    n, mean = groups.size(), groups.mean(skipna=False)
    half = _student(n, groups.std(skipna=False), spread_of_one=0)
    return pd.DataFrame({"mean": mean, "low": mean - half, "high": mean + half, "n": n})


def prediction_interval(values: Sequence[float]) -> Interval:
    """The mean, and where the result of a single further seed may lie: mean ± t·s·sqrt(1 + 1/n)."""
    return _interval(values, spread_of_one=1)


def resampled_interval(value: float, resampled: Sequence[float]) -> Interval:
    """Of an estimate that was made again on random halves of its data: these deviate as it does."""
    n = len(resampled)
    half = float(_student(n, np.std(resampled, ddof=1), 1 - 1 / n))
    return Interval(n, value, value - half, value + half)


def _interval(values: Sequence[float], spread_of_one: int) -> Interval:
    n = len(values)
    mean = float(np.mean(values)) if n else _NAN
    half = float(_student(n, np.std(values, ddof=1), spread_of_one)) if n > 1 else _NAN
    return Interval(n, mean, mean - half, mean + half)


def _student(n: Any, deviation: Any, spread_of_one: float) -> Any:
    """Half the width of the interval around the mean of `n` values; NaN below two."""
    if np.max(np.append(n, 0)) < 2:
        return deviation * _NAN
    error = deviation * np.sqrt(spread_of_one + 1 / n)
    return scipy.special.stdtrit(n - 1, (1 + CONFIDENCE) / 2) * error


def pairwise_differences(groups: Mapping[str, Sequence[float]], *, best: str) -> pd.DataFrame:
    """Every pair of groups, each with its values by seed; `best` is "lowest" or "highest".

    `difference` is the mean of `one` less that of `other`, with Welch's interval for this pair
    alone. `p_holm` allows for the number of pairs (Holm). `verdict` goes by it: `one` is "better"
    or "worse", or they "tie". Where one has a single seed, or neither any spread, there is no
    interval, and the verdict says that the pair cannot be judged.
    """
    rows = [
        {"one": one, "other": other, "n_one": len(groups[one]), "n_other": len(groups[other])}
        | welch(groups[one], groups[other])
        for one, other in combinations(groups, 2)
    ]
    columns = ["one", "other", "n_one", "n_other", "difference", "low", "high", "p"]
    pairs = pd.DataFrame(rows, columns=columns)
    pairs["p_holm"] = holm(pairs["p"].to_numpy(float))
    return pairs.assign(verdict=[_verdict(pair, best) for pair in pairs.to_dict("records")])


def welch(
    one: Sequence[float], other: Sequence[float], confidence: float = CONFIDENCE
) -> dict[str, float]:
    """`difference` of the means, its Welch interval `low` to `high`, and its `p`.

    All but the difference are NaN where one side has a single value, or neither any spread.
    """
    difference = float(np.mean(one) - np.mean(other)) if len(one) and len(other) else _NAN
    unknown = min(len(one), len(other)) < 2 or np.isnan(difference)
    if unknown or max(np.ptp(one), np.ptp(other)) <= ROUNDING * np.max(np.abs([*one, *other])):
        return {"difference": difference, "low": _NAN, "high": _NAN, "p": _NAN}
    with warnings.catch_warnings():
        # Equal seeds on one side are no loss of precision: the variance is 0.
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
        test: Any = scipy.stats.ttest_ind(one, other, equal_var=False)
    low, high = test.confidence_interval(confidence)
    return {"difference": difference, "low": low, "high": high, "p": test.pvalue}


def pooled_difference(
    one: float, other: float, groups: Sequence[Sequence[float]]
) -> dict[str, float]:
    """`difference` of two single values and its 95 % interval, `low` to `high`.

    The values' spread is the `pooled_noise` of the groups, and the half width is t·s·sqrt(2).
    Everything but the difference is NaN where no group has two values, or none any spread.
    """
    noise = pooled_noise(groups)
    half = noise.student() * noise.deviation * 2**0.5 if noise.deviation > 0 else _NAN
    difference = one - other
    return {"difference": difference, "low": difference - half, "high": difference + half}


class Noise(NamedTuple):
    """The standard deviation of single values around their groups' means, and its degrees of
    freedom."""

    deviation: float
    freedom: int

    def student(self, probability: float = (1 + CONFIDENCE) / 2) -> float:
        """Student's t with this probability below it; NaN without degrees of freedom."""
        return float(scipy.special.stdtrit(self.freedom, probability)) if self.freedom else _NAN


def pooled_noise(groups: Iterable[Sequence[float]]) -> Noise:
    """The noise within groups, each of which has results of equal settings with its seeds.

    s² = Σ(x - mean)² / Σ(n - 1). It is NaN where no group has two values, and 0 where those differ
    by no more than rounding.
    """
    known = [np.asarray(group, float) for group in groups if len(group)]
    freedom = sum(len(group) - 1 for group in known)
    if not freedom:
        return Noise(_NAN, 0)
    deviations = [group - group.mean() for group in known]
    largest = max(float(np.abs(group).max()) for group in known)
    if max(float(np.abs(each).max()) for each in deviations) <= ROUNDING * largest:
        return Noise(0.0, freedom)
    squares = sum(float((each**2).sum()) for each in deviations)
    return Noise((squares / freedom) ** 0.5, freedom)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down correction (Holm 1979); a NaN stays one and is not counted."""
    corrected = p.copy()
    known = np.flatnonzero(~np.isnan(p))
    ascending = known[np.argsort(p[known])]
    factors = len(ascending) - np.arange(len(ascending))
    corrected[ascending] = np.maximum.accumulate(p[ascending] * factors).clip(max=1)
    return corrected


def _verdict(pair: dict[Any, Any], best: str) -> str:
    if np.isnan(pair["difference"]):
        return "missing"
    if np.isnan(pair["p"]):
        return unjudged(pair["n_one"], pair["n_other"])
    if pair["p_holm"] > 1 - CONFIDENCE:
        return "tie"
    return "better" if (pair["difference"] < 0) == (best == "lowest") else "worse"


def unjudged(n_one: int, n_other: int) -> str:
    """Why a difference between so many seeds has no interval."""
    return f"{'one seed' if min(n_one, n_other) < 2 else 'no spread'}: cannot be judged"


def pearson(x: Sequence[float], y: Sequence[float]) -> Interval:
    """Pearson's correlation with Fisher's z interval, which admits n = 6 and needs four pairs.

    Pairs with a NaN are left out. Where one side does not vary there is no correlation.
    """
    return _correlation(*_known_pairs(x, y), of_ranks=False)


def spearman(x: Sequence[float], y: Sequence[float]) -> Interval:
    """Spearman's rank correlation with an interval that needs four pairs; those with a NaN are out.

    The interval is Fisher's z with the standard error of Bonett and Wright (2000). Possible
    correlations of n ranks lie 12 / (n³ - n) apart. A perfect one counts as half a step less:
    otherwise its interval would have no width.
    """
    ranks = pd.DataFrame(_known_pairs(x, y).T).rank()
    return _correlation(ranks[0].to_numpy(), ranks[1].to_numpy(), of_ranks=True)


def _correlation(x: np.ndarray, y: np.ndarray, *, of_ranks: bool) -> Interval:
    n = len(x)
    if n < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Interval(n, _NAN, _NAN, _NAN)
    rho = float(np.corrcoef(x, y)[0, 1])
    if n < 4:
        return Interval(n, rho, _NAN, _NAN)
    largest = 1 - of_ranks * 6 / (n**3 - n)
    with np.errstate(divide="ignore"):  # a perfect correlation
        z = np.arctanh(np.clip(rho, -largest, largest))
    variance = (1 + of_ranks * rho**2 / 2) / (n - 3)
    half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * np.sqrt(variance)
    low, high = np.tanh([z - half, z + half])
    return Interval(n, rho, float(min(low, rho)), float(max(high, rho)))


def _known_pairs(x: Sequence[float], y: Sequence[float]) -> np.ndarray:
    pairs = np.array([x, y], dtype=float)
    return pairs[:, ~np.isnan(pairs).any(axis=0)]
