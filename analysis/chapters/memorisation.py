"""How much of a low loss is the training text learned by heart: leaky against held-out windows."""

from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from quarterhour.analysis.chapters.paper.figures import Panel, curves
from quarterhour.analysis.measures import final_rows
from quarterhour.analysis.runs import Run
from quarterhour.analysis.sections import Section, compares_configurations
from quarterhour.analysis.statistics import mean_interval
from quarterhour.tune.run_folder import EVAL_LOSS, HELDOUT_LOSS, TRAIN_LOSS, TRIAL

_FINAL = ["step", "epochs", TRAIN_LOSS, EVAL_LOSS, HELDOUT_LOSS, "heldout_bits_per_byte"]
_PANELS = (
    Panel(column=EVAL_LOSS, label="loss on leaky windows (nats)"),
    Panel(column=HELDOUT_LOSS),
    Panel(column="gap", label="gap: held-out - leaky (nats)"),
)


def memorisation(run: Run) -> pd.DataFrame:
    """Means over a configuration's `n` complete seeds, of its last row, the largest gap first.

    `epochs` is passes over the corpus, losses are in nats a token: `train_loss` of the last window
    of steps, `eval_loss` on the reference's validation windows, which overlap the training ones,
    `heldout_loss` on documents never trained on. `gap` is held-out less eval loss, with its 95 %
    interval `gap_low` to `gap_high`; `heldout_bits_per_byte` does not depend on the tokenizer.
    """
    final = final_rows(run, _FINAL)
    rows: list[dict[str, Any]] = []
    for configuration, seeds in final.groupby("configuration", sort=False):
        gap = mean_interval((seeds[HELDOUT_LOSS] - seeds[EVAL_LOSS]).to_list())
        means = {name: seeds[name].mean(skipna=False) for name in _FINAL}
        gaps = {"gap": gap.value, "gap_low": gap.low, "gap_high": gap.high}
        rows.append({"configuration": configuration, "n": gap.n} | means | gaps)
    columns = ["configuration", "n", *_FINAL[:-1], "gap", "gap_low", "gap_high", _FINAL[-1]]
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values(["gap"], ascending=False, kind="stable", ignore_index=True)


def gap_over_time(run: Run) -> pd.DataFrame:
    """Each evaluation of each trial, finished or not: configuration, seed, step, epochs, eval_loss,
    heldout_loss and `gap`, the latter less the former."""
    columns = [*TRIAL, "step", "epochs", EVAL_LOSS, HELDOUT_LOSS]
    rows = run.rows.reindex(columns=columns).dropna(subset=[EVAL_LOSS, HELDOUT_LOSS])
    return rows.assign(gap=rows[HELDOUT_LOSS] - rows[EVAL_LOSS]).reset_index(drop=True)


def memorisation_gap(run: Run) -> Figure | None:
    """Loss on the study's validation windows, which overlap training; on unseen documents; the gap.

    A rising gap is training text learned by heart.
    """
    gaps = replace(run, rows=gap_over_time(run))
    return curves(gaps, _PANELS, size=(12, 4), n_columns=3)


SECTION = Section[Run](
    name="memorisation",
    title="Memorisation or learning",
    applies=compares_configurations,
    tables={"memorisation": ("Leaky against held-out", memorisation)},
    figures={"memorisation": ("The gap over time", memorisation_gap)},
)
