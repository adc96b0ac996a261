"""How much of a low loss is training text learned by heart: leaky against held-out windows."""

from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from quarterhour.analysis.chapters.paper.figures import Panel, curves
from quarterhour.analysis.measures import final_rows
from quarterhour.analysis.runs import Run
from quarterhour.analysis.sections import Section, compares_configurations
from quarterhour.analysis.statistics import mean_intervals
from quarterhour.tune.run_folder import EVAL_LOSS, HELDOUT_LOSS, TRAIN_LOSS, TRIAL

_FINAL = ["step", "epochs", TRAIN_LOSS, EVAL_LOSS, HELDOUT_LOSS, "heldout_bits_per_byte"]
_PANELS = (
    Panel(column=EVAL_LOSS),
    Panel(column=HELDOUT_LOSS),
    Panel(column="gap", label="gap: held-out - leaky (nats)", signed=True),
)


def memorisation(run: Run) -> pd.DataFrame:
    """Means over the last rows of a configuration's `n` complete seeds, the largest gap first.

    `epochs` counts passes over the corpus. Losses are in nats a token: `train_loss` is of the last
    window of steps, `eval_loss` is on the reference's validation windows, which overlap training,
    at the last step (Table 8's is of the study's last evaluation, often before it), and
    `heldout_loss` is on documents never trained on, in windows of the configuration's own length.
    `gap` is held-out less eval loss, with its
    95 % interval `gap_low` to `gap_high`. `heldout_bits_per_byte` does not depend on the tokenizer.
    """
    final = final_rows(run, _FINAL)
    final = final.assign(gap=final[HELDOUT_LOSS] - final[EVAL_LOSS])
    by_configuration = final.groupby("configuration", sort=False)
    gaps = mean_intervals(by_configuration["gap"])
    gaps = gaps.rename(columns={"mean": "gap", "low": "gap_low", "high": "gap_high"})
    means: Any = by_configuration[_FINAL].mean(skipna=False)
    columns = ["configuration", "n", *_FINAL[:-1], "gap", "gap_low", "gap_high", _FINAL[-1]]
    table = means.join(gaps).reset_index().loc[:, columns]
    return table.sort_values(["gap"], ascending=False, kind="stable", ignore_index=True)


def gap_over_time(run: Run) -> pd.DataFrame:
    """Each evaluation of each trial, finished or not; `gap` is held-out less eval loss."""
    columns = [*TRIAL, "step", "epochs", EVAL_LOSS, HELDOUT_LOSS]
    rows = run.rows.reindex(columns=columns).dropna(subset=[EVAL_LOSS, HELDOUT_LOSS])
    gap = (rows[HELDOUT_LOSS] - rows[EVAL_LOSS]).round(9)  # equal ones are drawn as equal
    return rows.assign(gap=gap).reset_index(drop=True)


def memorisation_gap(run: Run) -> Figure | None:
    """Loss on the study's validation windows, which overlap training ("leaky"); on unseen
    documents; the gap.

    A rising gap is training text learned by heart.
    """
    gaps = replace(run, rows=gap_over_time(run))
    return curves(gaps, _PANELS, size=(10, 4), n_columns=3)


SECTION = Section[Run](
    name="memorisation",
    title="Memorisation or learning",
    applies=compares_configurations,
    tables={"memorisation": ("Leaky against held-out", memorisation)},
    figures={"memorisation": ("The gap over time", memorisation_gap)},
)
