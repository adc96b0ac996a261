"""Whether the models are right as often as they are confident: from counts in bins of confidence.

An evaluation's row has them as `eval_calibration`: by confidence in bins of equal width from 0 to
1, the number of tokens, the sum of their confidences, and the number predicted correctly.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from quarterhour.analysis.chapters.paper.published import differences, published_summary
from quarterhour.analysis.chapters.paper.tables import counted_trials, mean_over_seeds, summarise
from quarterhour.analysis.runs import Run
from quarterhour.analysis.statistics import Interval, mean_interval, pearson

QUOTED = {"train_loss": "confidence", "confidence": "final_top5"}
"""The correlations over the six that the study quotes; names as in `tables.summarise`."""


def calibration(run: Run) -> pd.DataFrame:
    """By configuration, at the last evaluation, on the reference's validation windows: `ece`, the
    expected calibration error (Guo et al. 2017: mean over tokens of the distance between a bin's
    accuracy and its confidence) with its 95 % interval over `n` seeds, `confidence`, `accuracy`,
    `tokens` (of all seeds). A configuration without the counts is left out; of a trial that is not
    complete they are of its last evaluation so far."""
    rows: list[dict[str, Any]] = []
    for configuration, seeds in _last_bins(run):
        n, ece, low, high = mean_interval([_expected_error(bins_3K) for bins_3K in seeds])
        tokens, confidence, correct = np.sum(seeds, axis=(0, 2))
        figures = {"n": n, "ece": ece, "low": low, "high": high, "tokens": int(tokens)}
        means = {"confidence": confidence / tokens, "accuracy": correct / tokens}
        rows.append({"configuration": configuration} | figures | means)
    columns = ["configuration", "n", "ece", "low", "high", "confidence", "accuracy", "tokens"]
    return pd.DataFrame(rows, columns=columns)


def reliability(run: Run) -> pd.DataFrame:
    """The reliability diagram: by configuration and bin (`bin_low` to `bin_high`), the `tokens` of
    all seeds at the last evaluation, and their mean `confidence` and `accuracy`; NaN where a bin is
    empty."""
    tables: list[pd.DataFrame] = []
    for configuration, seeds in _last_bins(run):
        tokens_K, confidence_K, correct_K = np.sum(seeds, axis=0)
        edges = np.linspace(0, 1, len(tokens_K) + 1)
        some_K = np.where(tokens_K > 0, tokens_K, np.nan)
        columns = {"configuration": configuration, "bin_low": edges[:-1], "bin_high": edges[1:]}
        columns |= {"tokens": tokens_K.astype(int), "confidence": confidence_K / some_K}
        tables.append(pd.DataFrame(columns | {"accuracy": correct_K / some_K}))
    names = ["configuration", "bin_low", "bin_high", "tokens", "confidence", "accuracy"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=names)


def correlations(run: Run) -> pd.DataFrame:
    """The correlations that the study quotes, over this run's configurations: Pearson's, of means
    over seeds, with Fisher's 95 % interval, beside those of the study's recorded data
    (`published_…`); `n` is the number of configurations, and `not_comparable` says in what the run
    is another than the study."""
    rows: list[dict[str, Any]] = []
    ours, theirs = mean_over_seeds(summarise(run)), published_summary()
    for x, y in QUOTED.items():
        own = pearson(ours[x].to_list(), ours[y].to_list())
        published = pearson(theirs[x].to_list(), theirs[y].to_list())
        row = {"x": x, "y": y} | _named(own, "") | _named(published, "published_")
        rows.append(row | {"not_comparable": "; ".join(differences(run).values())})
    return pd.DataFrame(rows)


def _named(interval: Interval, prefix: str) -> dict[str, float]:
    names = (f"{prefix}{name}" for name in ("n", "correlation", "low", "high"))
    return dict(zip(names, interval, strict=True))


def _last_bins(run: Run) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Each configuration, with the bins [3, K] of the last evaluation of each seed."""
    columns = ["configuration", "seed", "eval_calibration"]
    rows = run.rows.reindex(columns=columns).dropna(subset=["eval_calibration"])
    counted = counted_trials(run.trials)[["configuration", "seed"]]
    last = rows.drop_duplicates(["configuration", "seed"], keep="last").merge(counted)
    for configuration, seeds in last.groupby("configuration", sort=False):
        yield (
            str(configuration),
            [np.array(bins, dtype=float) for bins in seeds["eval_calibration"]],
        )


def _expected_error(bins_3K: np.ndarray) -> float:
    """Σ |correct - confidence| / Σ tokens over the bins."""
    tokens_K, confidence_K, correct_K = bins_3K
    return float(np.abs(correct_K - confidence_K).sum() / tokens_K.sum())
