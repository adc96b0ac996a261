"""Whether the models are right as often as they are confident: from counts in bins of confidence.

An evaluation's row has them as `eval_calibration`: by confidence in bins of equal width from 0 to
1, the number of tokens, the sum of their confidences, and the number predicted correctly.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from quarterhour.analysis.chapters.paper.published import differences, published_summary
from quarterhour.analysis.measures import counted_trials, mean_over_seeds, summarise
from quarterhour.analysis.plots import NOTE_COLOUR, add_legend, colours, figure_and_axes
from quarterhour.analysis.runs import Run
from quarterhour.analysis.sections import Section, compares_configurations
from quarterhour.analysis.statistics import Interval, mean_interval, pearson
from quarterhour.tune.run_folder import EVAL_CALIBRATION, TRIAL

QUOTED = {"train_loss": "confidence", "confidence": "final_top5"}
"""The correlations over the six that the study quotes; names as in `measures.summarise`."""


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


def reliability_diagram(run: Run) -> Figure | None:
    """Accuracy of the tokens in each bin of confidence, at the last evaluation, all seeds together.

    On the diagonal a model is right as often as it is confident; ECE is the expected calibration
    error. Larger dots hold more tokens.
    """
    bins: Any = reliability(run)
    if bins.empty:
        return None
    errors: Any = calibration(run).set_index("configuration")["ece"]
    figure, axes = figure_and_axes((6.5, 6))
    axes.plot([0, 1], [0, 1], "--", color=NOTE_COLOUR, label="calibrated")
    own_colours = colours(run.trials["configuration"])
    for name, own in bins.dropna().groupby("configuration", sort=False):
        colour, label = own_colours[name], f"{name}, ECE {errors[name]:.3f}"
        axes.plot(own["confidence"], own["accuracy"], color=colour, label=label)
        sizes = 100 * own["tokens"] / own["tokens"].sum()
        axes.scatter(own["confidence"], own["accuracy"], sizes + 5, color=colour)
    axes.set(xlabel="confidence (mean of the bin)", ylabel="accuracy", aspect="equal")
    add_legend(figure, axes)
    return figure


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
    rows = run.rows.reindex(columns=[*TRIAL, EVAL_CALIBRATION]).dropna(subset=[EVAL_CALIBRATION])
    last = rows.drop_duplicates(TRIAL, keep="last").merge(counted_trials(run.trials)[TRIAL])
    for configuration, seeds in last.groupby("configuration", sort=False):
        yield (
            str(configuration),
            [np.array(bins, dtype=float) for bins in seeds[EVAL_CALIBRATION]],
        )


def _expected_error(bins_3K: np.ndarray) -> float:
    """Σ |correct - confidence| / Σ tokens over the bins."""
    tokens_K, confidence_K, correct_K = bins_3K
    return float(np.abs(correct_K - confidence_K).sum() / tokens_K.sum())


SECTION = Section[Run](
    name="calibration",
    title="Calibration",
    applies=compares_configurations,
    tables={
        "calibration": ("Expected calibration error", calibration),
        "reliability": ("Bins of confidence", reliability),
        "correlations": ("Correlations", correlations),
    },
    figures={"reliability": ("Reliability diagram", reliability_diagram)},
)
