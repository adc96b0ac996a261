"""Whether the models are right as often as they are confident.

An evaluation's row has bins of confidence, of equal width from 0 to 1, as `eval_calibration`: for
each the number of tokens, the sum of their confidences, and the number predicted correctly.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from quarterhour.analysis import plots
from quarterhour.analysis.chapters.paper import published
from quarterhour.analysis.measures import counted_trials, mean_over_seeds, summarise
from quarterhour.analysis.runs import Run
from quarterhour.analysis.sections import Section, compares_configurations
from quarterhour.analysis.statistics import mean_interval, pearson
from quarterhour.tune.run_folder import EVAL_CALIBRATION, TRIAL

LEAST_TOKENS = 100  # of a bin whose accuracy is drawn: its standard error is 0.05 at most
QUOTED = {"train_loss_last": "confidence", "confidence": "final_top5"}
"""The correlations over the six that the study quotes, named as in `measures.summarise`."""


def calibration(run: Run) -> pd.DataFrame:
    """`ece` is the expected calibration error (Guo et al. 2017), with its 95 % interval over `n`
    seeds: the mean over tokens of the distance between a bin's accuracy and its confidence.
    `confidence`, `accuracy` and `tokens` are of all seeds. All are of the last evaluation, on the
    study's validation windows, which overlap training (leaky); a trial that is not complete counts
    with its last so far. A configuration without the bins is left out."""
    rows: list[tuple[Any, ...]] = []
    for configuration, seeds in _last_bins(run):
        error = mean_interval([_expected_error(bins_3K) for bins_3K in seeds])
        tokens, confidence, correct = np.sum(seeds, axis=(0, 2))
        rows.append((configuration, *error, confidence / tokens, correct / tokens, int(tokens)))
    columns = ["configuration", "n", "ece", "low", "high", "confidence", "accuracy", "tokens"]
    return pd.DataFrame(rows, columns=columns)


def reliability(run: Run) -> pd.DataFrame:
    """The figures of the reliability diagram, one row for each configuration and bin of confidence,
    `bin_low` to `bin_high`: the `tokens` of all seeds at the last evaluation, and their mean
    `confidence` and `accuracy`, which an empty bin lacks."""
    names = ["configuration", "bin_low", "bin_high", "tokens", "confidence", "accuracy"]
    tables: list[pd.DataFrame] = []
    for configuration, seeds in _last_bins(run):
        tokens_K, *sums = np.sum(seeds, axis=0)
        edges = np.linspace(0, 1, len(tokens_K) + 1)
        means = sums / np.where(tokens_K > 0, tokens_K, np.nan)
        columns = (configuration, edges[:-1], edges[1:], tokens_K.astype(int), *means)
        tables.append(pd.DataFrame(dict(zip(names, columns, strict=True))))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=names)


def reliability_diagram(run: Run) -> Figure | None:
    """Accuracy of the tokens in each bin of confidence, at the last evaluation, all seeds together;
    the windows overlap training (leaky).

    On the diagonal a model is right as often as it is confident; ECE is the expected calibration
    error. Larger dots hold more tokens; bins of fewer than a hundred are not drawn.
    """
    bins: Any = reliability(run)
    if bins.empty:
        return None
    errors: Any = calibration(run).set_index("configuration")["ece"]
    figure, axes = plots.figure_and_axes((plots.SINGLE, 5.6))
    axes.plot([0, 1], [0, 1], "--", color=plots.NOTE_COLOUR, label="calibrated")
    own_colours = plots.colours(run.trials["configuration"])
    for name, own in bins.loc[bins["tokens"] >= LEAST_TOKENS].groupby("configuration", sort=False):
        colour, label = own_colours[name], f"{name}, ECE {errors[name]:.3f}"
        axes.plot(own["confidence"], own["accuracy"], color=colour, label=label)
        sizes = 100 * own["tokens"] / own["tokens"].sum()
        axes.scatter(own["confidence"], own["accuracy"], sizes + 5, color=colour)
    axes.set(xlabel="confidence (mean of the bin)", ylabel="accuracy", aspect="equal")
    plots.add_legend(figure, axes)
    return figure


def correlations(run: Run) -> pd.DataFrame:
    """The correlations that the study quotes, over this run's `n` configurations: Pearson's, of
    means over seeds, with Fisher's 95 % interval. `train_loss_last` is of the last step;
    `confidence` and `final_top5` (top-5 accuracy) are of the training batch at the last evaluation
    that the study makes. Published ones are those of the study's recorded data, if it has any of
    the configurations."""
    rows: list[dict[str, Any]] = []
    sides = [("", mean_over_seeds(summarise(run)))]
    sides += [("published_", published.summary())] * published.has_studied(run)
    for x, y in QUOTED.items():
        row: dict[str, Any] = {"x": x, "y": y}
        for prefix, means in sides:
            names = (f"{prefix}{name}" for name in ("n", "correlation", "low", "high"))
            row |= zip(names, pearson(means[x].to_list(), means[y].to_list()), strict=True)
        rows.append(row | {"not_comparable": "; ".join(published.differences(run).values())})
    return pd.DataFrame(rows)


def _last_bins(run: Run) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Each configuration with the bins [3, K] of each seed's last evaluation."""
    rows = run.rows.reindex(columns=[*TRIAL, EVAL_CALIBRATION]).dropna(subset=[EVAL_CALIBRATION])
    last = rows.drop_duplicates(TRIAL, keep="last").merge(counted_trials(run.trials)[TRIAL])
    for configuration, seeds in last.groupby("configuration", sort=False):
        yield str(configuration), [np.array(bins, float) for bins in seeds[EVAL_CALIBRATION]]


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
