"""The paper's eight tables as functions of the figures in `measures`."""

from collections.abc import Callable

import pandas as pd


def configurations(rows: pd.DataFrame) -> pd.DataFrame:
    """Table 1: what was set."""
    columns = ["d_model", "n_heads", "n_layers", "batch_size", "learning_rate", "seq_len"]
    return rows.loc[:, columns]


def performance(rows: pd.DataFrame) -> pd.DataFrame:
    """Table 2: losses; accuracy and perplexity on the training batch."""
    rows = rows.sort_values("train_loss_last", kind="stable")
    return rows.loc[:, ["train_loss_last", "study_eval_loss", "accuracy", "perplexity"]]


def top5(rows: pd.DataFrame) -> pd.DataFrame:
    """Table 3: top-5 accuracy on the training batch; top-1 gap is top-5 less top-1 accuracy."""
    rows = rows.sort_values("train_loss_last", kind="stable")
    return rows.loc[:, ["initial_top5", "final_top5"]].assign(
        improvement=rows["final_top5"] - rows["initial_top5"],
        top1_gap=rows["final_top5"] - rows["accuracy"],
    )


def sequence_length(rows: pd.DataFrame) -> pd.DataFrame:
    """Table 4: short_seq against baseline; memory is the measured peak in GB of 10^9 bytes. Speeds
    are from the mean time of a step, as in the study; elsewhere they are medians over windows."""
    rows = rows.loc[rows.index.isin(["short_seq", "baseline"], level="configuration")]
    rows = rows.sort_values("seq_len", kind="stable")
    memory = (rows["peak_memory_bytes"] / 1e9).map("{:.2f} GB".format, na_action="ignore")
    tokens_per_step = rows["batch_size"] * rows["seq_len"]
    return rows.loc[:, ["seq_len", "steps_per_second"]].assign(
        memory_usage=memory,
        tokens_per_second=rows["steps_per_second"] * tokens_per_step,
        trials_on_device=rows["trials_on_device"],
    )


def data_exposure(rows: pd.DataFrame) -> pd.DataFrame:
    """Table 5: tokens of a step and of the whole trial; repeated ones count again."""
    return rows.loc[:, ["batch_size", "seq_len"]].assign(
        tokens_per_step=rows["batch_size"] * rows["seq_len"], total_tokens=rows["total_tokens"]
    )


def normalized(rows: pd.DataFrame) -> pd.DataFrame:
    """Table 6: train loss divided by millions of tokens, which rewards more tokens by itself."""
    millions = rows["total_tokens"] / 1e6
    loss = rows["train_loss_last"]
    table = rows.loc[:, ["train_loss_last"]].assign(
        tokens_millions=millions, loss_per_million_tokens=loss / millions
    )
    return table.sort_values("loss_per_million_tokens", kind="stable")


def efficiency(rows: pd.DataFrame) -> pd.DataFrame:
    """Table 7: steps per second. Trials with fewer others on their device come first, and of those
    that shared it with as many, the fastest."""
    columns = ["steps_per_second", "step_time_mean_s", "step_time_std_s", "trials_on_device"]
    order = ["trials_on_device", "steps_per_second"]
    return rows.sort_values(order, ascending=[True, False], kind="stable").loc[:, columns]


def validation(rows: pd.DataFrame) -> pd.DataFrame:
    """Table 8: loss, accuracy and perplexity on validation windows, which overlap training, at the
    first step and at the last evaluation that the study makes, often before the last step."""
    columns = ["initial_val_loss", "study_eval_loss", "val_accuracy", "val_perplexity"]
    table = rows.loc[:, columns].rename(columns={"study_eval_loss": "final_val_loss"})
    return table.sort_values("final_val_loss", kind="stable")


TABLES: dict[str, tuple[str, Callable[[pd.DataFrame], pd.DataFrame]]] = {
    "configurations": ("Configurations", configurations),
    "performance": ("Performance", performance),
    "top5": ("Top-5 accuracy", top5),
    "sequence_length": ("Sequence length", sequence_length),
    "data_exposure": ("Data exposure", data_exposure),
    "normalized": ("Normalised by data exposure", normalized),
    "efficiency": ("Training efficiency", efficiency),
    "validation": ("Validation", validation),
}
"""Title and maker of every table, in the paper's order and under its file's name.

A maker takes figures as `mean_over_seeds` gives them, or of single trials in the same columns.
"""
