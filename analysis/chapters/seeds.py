"""What the seeds say: every figure with its interval, every pair of configurations judged."""

from typing import Any

import pandas as pd

from quarterhour.analysis.chapters.paper.tables import counted_trials, final_rows, summarise
from quarterhour.analysis.runs import Run
from quarterhour.analysis.statistics import mean_interval, pairwise_differences

MEASURES = {
    "train_loss": "train_loss",
    "eval_loss": "eval_loss",
    "heldout_loss": "heldout_loss",
    "accuracy": "accuracy",
    "final_top5": "top5_accuracy",
    "tokens_per_second": "tokens_per_second",
}
"""The main measures: their names in `trial_measures`, and as they are shown."""


def trial_measures(run: Run) -> pd.DataFrame:
    """One row for each trial that counts: configuration, seed, trials_on_device and the measures.

    As the study defines them (`tables.summarise`); `heldout_loss` is of the last step.
    `tokens_per_second` is over all steps but the first.
    """
    summary = counted_trials(summarise(run))
    heldout = final_rows(run, ["heldout_loss"])
    tokens_per_step = summary["batch_size"] * summary["seq_len"]
    summary = summary.assign(tokens_per_second=summary["steps_per_second"] * tokens_per_step)
    measures = summary.merge(heldout, how="left", on=["configuration", "seed"])
    return measures.loc[:, ["configuration", "seed", "trials_on_device", *MEASURES]]


def seed_intervals(run: Run) -> pd.DataFrame:
    """By configuration and measure: `n` seeds, `mean`, its 95 % interval `low` to `high`, and a
    `remark` where there is no interval or the throughput is that of a shared device."""
    rows: list[dict[str, Any]] = []
    for configuration, seeds in trial_measures(run).groupby("configuration", sort=False):
        for name, shown in MEASURES.items():
            n, mean, low, high = mean_interval(seeds[name].to_list())
            remarks = ["one seed: no interval"] if n == 1 else []
            if pd.isna(mean):
                n, remarks = seeds[name].count(), ["missing"]
            shared_by = max(seeds["trials_on_device"])
            if name == "tokens_per_second" and shared_by > 1:
                remarks.append(f"{shared_by:g} trials shared the device")
            figures = {"n": n, "mean": mean, "low": low, "high": high}
            place = {"configuration": configuration, "measure": shown}
            rows.append(place | figures | {"remark": "; ".join(remarks)})
    return pd.DataFrame(rows)


def pairwise(run: Run) -> pd.DataFrame:
    """Every pair of configurations by held-out loss, as `statistics.pairwise_differences` judges
    it; of a search, only those that were trained with several seeds."""
    losses = (
        trial_measures(run).dropna(subset=["heldout_loss"]).groupby("configuration", sort=False)
    )
    groups = {str(name): seeds["heldout_loss"].to_list() for name, seeds in losses}
    if run.experiment.get("search"):
        groups = {name: values for name, values in groups.items() if len(values) > 1}
    return pairwise_differences(groups, best="lowest")
