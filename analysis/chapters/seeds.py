"""What the seeds say: every figure with its interval, and every pair of configurations judged."""

from typing import Any

import numpy as np
import pandas as pd

from quarterhour.analysis import formats
from quarterhour.analysis.chapters.paper.comparison import TABLE_COLUMNS
from quarterhour.analysis.measures import counted_trials, final_rows, summarise
from quarterhour.analysis.runs import Run
from quarterhour.analysis.sections import Section, Table, compares_configurations
from quarterhour.analysis.statistics import mean_interval, pairwise_differences
from quarterhour.tune.run_folder import (
    COLUMNS,
    HELDOUT_LOSS,
    STEP_SECONDS,
    TOKENS_PER_SECOND,
    TRIAL,
    TRIALS_ON_DEVICE,
)

MEASURES = [
    *("train_loss_last", "study_eval_loss", HELDOUT_LOSS, "accuracy", "final_top5"),
    TOKENS_PER_SECOND,
]
"""The main measures: their names in `trial_measures`."""


def lacks_seeds(run: Run) -> str:
    """That each configuration has a single seed, and what trains more; "" where one has several."""
    if run.trials.duplicated("configuration").any():
        return ""
    return (
        "One seed each: whether a difference is more than seed noise cannot be told. The command"
        " that began the run, with --seeds 3, trains two more of each and none again."
    )


def trial_measures(run: Run) -> pd.DataFrame:
    """One row for each trial that counts: configuration, seed, trials_on_device and the measures.

    The study defines them (`measures.summarise`), but for `heldout_loss`, of the last step, and
    `tokens_per_second`, the median over windows.
    """
    rows = run.rows.reindex(columns=[*TRIAL, STEP_SECONDS])
    step_seconds = rows.groupby(TRIAL, as_index=False)[STEP_SECONDS].median()
    summary = counted_trials(summarise(run)).merge(step_seconds, how="left", on=TRIAL)
    tokens_per_step = summary["batch_size"] * summary["seq_len"]
    summary = summary.assign(tokens_per_second=tokens_per_step / summary[STEP_SECONDS])
    measures = summary.merge(final_rows(run, [HELDOUT_LOSS]), how="left", on=TRIAL)
    return measures.loc[:, [*TRIAL, TRIALS_ON_DEVICE, *MEASURES]]


def seed_intervals(run: Run) -> pd.DataFrame:
    """Each measure of each configuration: the `mean` of `n` seeds and its 95 % interval, which ends
    where the measure cannot go. `remark`
    says where there is no interval, and where the throughput is that of a shared device."""
    rows: list[tuple[Any, ...]] = []
    for configuration, seeds in trial_measures(run).groupby("configuration", sort=False):
        for name in MEASURES:
            n, mean, low, high = mean_interval(seeds[name].to_list())
            low, high = np.clip([low, high], 0, 1 if name in ("accuracy", "final_top5") else None)
            remarks = ["one seed: no interval"] if n == 1 else []
            if pd.isna(mean):
                n, remarks = seeds[name].count(), ["missing"]
            shared_by = max(seeds[TRIALS_ON_DEVICE])
            if name == TOKENS_PER_SECOND and shared_by > 1:
                remarks.append(f"{shared_by:g} trials shared the device")
            shown = name.replace("final_top5", "top5_accuracy")
            rows.append((configuration, shown, n, mean, low, high, "; ".join(remarks)))
    columns = ["configuration", "measure", "n", "mean", "low", "high", "remark"]
    return pd.DataFrame(rows, columns=columns)


def intervals_table(run: Run) -> Table:
    """Each measure of each configuration: the mean of n seeds and its 95 % interval, which ends
    where the measure cannot go."""
    table = seed_intervals(run)
    labels = {name: column.header for name, column in COLUMNS.items()}
    labels |= {name: column.header for name, column in TABLE_COLUMNS.items()}
    labels["top5_accuracy"] = TABLE_COLUMNS["final_top5"].header
    cells = formats.texts(table.assign(measure=table["measure"].replace(labels)))
    bounds = ["mean", "low", "high"]
    for _, of_measure in table.groupby("measure"):  # whose figures have equal decimals
        figures = formats.texts(pd.DataFrame({"": of_measure[bounds].to_numpy().ravel()}))
        cells.loc[of_measure.index, bounds] = figures.to_numpy().reshape(-1, len(bounds))
    return Table(frame=table, cells=cells)


def pairwise(run: Run) -> pd.DataFrame:
    """Every pair of configurations by held-out loss; of a search, those with several seeds. From
    `low` to `high` is Welch's interval for this pair alone; `p_holm`, and the verdict by it, allow
    for all pairs (Holm)."""
    measures = trial_measures(run).dropna(subset=[HELDOUT_LOSS])
    losses = measures.groupby("configuration", sort=False)[HELDOUT_LOSS]
    groups = {str(name): of_seeds.to_list() for name, of_seeds in losses}
    if run.is_search:
        groups = {name: values for name, values in groups.items() if len(values) > 1}
    return pairwise_differences(groups, best="lowest")


def pairwise_table(run: Run) -> Table:
    """Every pair of configurations by held-out loss; of a search, those with several seeds. From
    low to high is Welch's interval for this pair alone. p holm, and the verdict by it, allow for
    all pairs (Holm's correction)."""
    table = pairwise(run)
    cells = formats.texts(table)
    for name in ("p", "p_holm"):
        cells[formats.header(name)] = [formats.chance(p) for p in table[name]]
    return Table(frame=table, cells=cells)


SECTION = Section[Run](
    name="uncertainty",
    title="What the seeds say",
    applies=compares_configurations,
    lacks=lacks_seeds,
    tables={
        "seed_intervals": ("Means and intervals", intervals_table),
        "pairwise": ("Every pair", pairwise_table),
    },
)
