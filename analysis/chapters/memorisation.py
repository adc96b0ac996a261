"""How much of a low loss is the training text learned by heart: leaky against held-out windows."""

from typing import Any

import pandas as pd

from quarterhour.analysis.chapters.paper.tables import final_rows
from quarterhour.analysis.runs import Run
from quarterhour.analysis.statistics import mean_interval

_FINAL = ["step", "epochs", "train_loss", "eval_loss", "heldout_loss", "heldout_bits_per_byte"]


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
        gap = mean_interval((seeds["heldout_loss"] - seeds["eval_loss"]).to_list())
        means = {name: seeds[name].mean(skipna=False) for name in _FINAL}
        gaps = {"gap": gap.value, "gap_low": gap.low, "gap_high": gap.high}
        rows.append({"configuration": configuration, "n": gap.n} | means | gaps)
    columns = ["configuration", "n", *_FINAL[:-1], "gap", "gap_low", "gap_high", _FINAL[-1]]
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values(["gap"], ascending=False, kind="stable", ignore_index=True)


def gap_over_time(run: Run) -> pd.DataFrame:
    """Each evaluation of each trial, finished or not: configuration, seed, step, epochs, eval_loss,
    heldout_loss and `gap`, the latter less the former."""
    columns = ["configuration", "seed", "step", "epochs", "eval_loss", "heldout_loss"]
    rows = run.rows.reindex(columns=columns).dropna(subset=["eval_loss", "heldout_loss"])
    return rows.assign(gap=rows["heldout_loss"] - rows["eval_loss"]).reset_index(drop=True)
