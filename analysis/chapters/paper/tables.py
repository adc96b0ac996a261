"""The paper's eight tables as functions of a run's figures."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from quarterhour.analysis.runs import Run, last_evaluation

_TRIAL = ["configuration", "seed"]
_SETTINGS = {
    "model.d_model": "d_model",
    "model.n_heads": "n_heads",
    "model.n_layers": "n_layers",
    "data.batch_size": "batch_size",
    "optim.learning_rate": "learning_rate",
    "data.seq_len": "seq_len",
}
_BUDGET = {
    "budget.steps": "steps",
    "budget.max_steps": "max_steps",
    "budget.eval_every": "eval_every",
}
_ROW = [
    "step",
    "window_steps",
    "train_loss",
    "train_loss_last",
    "step_seconds",
    "step_seconds_std",
    "eval_loss",
    "eval_accuracy",
    "eval_perplexity",
    "train_batch_accuracy",
    "train_batch_perplexity",
    "train_batch_confidence",
    "train_batch_top5_accuracy",
    "peak_memory_bytes",
    "trials_on_device",
]


@functools.lru_cache(maxsize=1)  # nearly every table and figure of a report asks for it
def summarise(run: Run) -> pd.DataFrame:
    """The figures that the tables are made of, one row per configuration and seed.

    The definitions are the study's, on the trial's own number of steps. `train_loss`: of the last
    step. `eval_loss`, `val_accuracy`, `val_perplexity` (on validation windows), `accuracy`,
    `perplexity`, `confidence`, `final_top5` (on that step's training batch): of the last
    evaluation that the reference makes. `initial_*`: of the first step. `early_loss`, `late_loss`:
    mean train loss of the first and the last quarter. `step_time_*`: seconds, over all steps but
    the first; the deviation is the population one. A figure whose rows are not there is NaN.
    """
    trials = run.trials.set_index(_TRIAL)
    settings = trials.reindex(columns=[*_SETTINGS, *_BUDGET]).astype(float)
    settings = settings.rename(columns=_SETTINGS | _BUDGET)
    rows = run.rows.reindex(columns=[*_TRIAL, *_ROW]).set_index(_TRIAL).astype(float)
    rows = rows.join(settings.loc[:, ["steps", "eval_every"]])
    step, steps = rows.loc[:, "step"], rows.loc[:, "steps"]
    evaluation = last_evaluation(steps, rows.loc[:, "eval_every"])
    first, evaluated = rows.loc[step == 1], rows.loc[step == evaluation + 1]
    step_time_mean, step_time_std = _step_time(rows.loc[step > 1])
    seen = settings.loc[:, ["steps", "max_steps"]].min(axis="columns")
    summary = trials.loc[:, ["status"]].join(settings.drop(columns=[*_BUDGET.values()]))
    return summary.assign(
        total_tokens=settings["batch_size"] * settings["seq_len"] * seen,
        train_loss=rows.loc[step == steps, "train_loss_last"],
        eval_loss=evaluated["eval_loss"],
        accuracy=evaluated["train_batch_accuracy"],
        perplexity=evaluated["train_batch_perplexity"],
        confidence=evaluated["train_batch_confidence"],
        initial_top5=first["train_batch_top5_accuracy"],
        final_top5=evaluated["train_batch_top5_accuracy"],
        initial_val_loss=first["eval_loss"],
        val_accuracy=evaluated["eval_accuracy"],
        val_perplexity=evaluated["eval_perplexity"],
        early_loss=_mean_loss(rows.loc[step <= steps // 4], settings.loc[:, "steps"] // 4),
        late_loss=_mean_loss(rows.loc[step > steps * 3 // 4], -(-settings.loc[:, "steps"] // 4)),
        steps_per_second=1 / step_time_mean,
        step_time_mean_s=step_time_mean,
        step_time_std_s=step_time_std,
        peak_memory_bytes=rows.loc[:, "peak_memory_bytes"].groupby(_TRIAL).max(),
        trials_on_device=rows.loc[:, "trials_on_device"].groupby(_TRIAL).max(),
    ).reset_index()


def _window_mean(values: pd.Series, window_steps: pd.Series) -> pd.Series:
    """Each trial's mean over steps, of values that are means over windows."""
    total: Any = (values * window_steps).groupby(_TRIAL).sum(skipna=False)
    return total / window_steps.groupby(_TRIAL).sum()


def _step_time(rows: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Mean and population deviation, in seconds, over single steps (law of total variance)."""
    seconds, window_steps = rows.loc[:, "step_seconds"], rows.loc[:, "window_steps"]
    mean = _window_mean(seconds, window_steps)
    squares = rows["step_seconds_std"] ** 2 + (seconds - mean.reindex(rows.index)) ** 2
    return mean, _window_mean(squares, window_steps) ** 0.5


def _mean_loss(rows: pd.DataFrame, quarter: pd.Series) -> pd.Series:
    """Mean train loss over these rows; NaN unless they cover each step of the quarter."""
    window_steps = rows.loc[:, "window_steps"]
    covered = window_steps.groupby(_TRIAL).sum()
    return _window_mean(rows.loc[:, "train_loss"], window_steps).where(covered.eq(quarter))


def counted_trials(summary: pd.DataFrame) -> pd.DataFrame:
    """A configuration's COMPLETE trials, or all of them if none is complete."""
    complete = summary["status"] == "COMPLETE"
    none_is = ~complete.groupby(summary["configuration"]).transform("any")
    return summary.loc[(complete | none_is).to_numpy()]


def mean_over_seeds(summary: pd.DataFrame) -> pd.DataFrame:
    """One row per configuration: the mean of its `counted_trials`.

    `seeds` says how many of those have begun. A figure that one of them lacks is NaN, so that no
    mean is over fewer seeds than it says.
    """
    counted = counted_trials(summary)
    seeds = counted["status"].ne("WAITING").groupby(counted["configuration"], sort=False).sum()
    by_configuration = counted.groupby("configuration", sort=False)
    means: Any = by_configuration.mean(numeric_only=True, skipna=False)
    return means.assign(seeds=seeds)


def final_rows(run: Run, columns: Sequence[str]) -> pd.DataFrame:
    """These columns of the last row of each COMPLETE trial, with its configuration and seed.

    A column that no row has is NaN.
    """
    complete = run.trials.loc[run.trials["status"] == "COMPLETE", _TRIAL]
    rows = run.rows.reindex(columns=[*_TRIAL, *columns]).drop_duplicates(_TRIAL, keep="last")
    return complete.merge(rows.astype(complete.dtypes.to_dict()), how="left", on=_TRIAL)


def configurations(rows: pd.DataFrame) -> pd.DataFrame:
    """Table 1: what was set."""
    columns = ["d_model", "n_heads", "n_layers", "batch_size", "learning_rate", "seq_len"]
    return rows.loc[:, columns]


def performance(rows: pd.DataFrame) -> pd.DataFrame:
    """Table 2: losses, and accuracy and perplexity on the training batch."""
    rows = rows.sort_values("train_loss", kind="stable")
    return rows.loc[:, ["train_loss", "eval_loss", "accuracy", "perplexity"]]


def top5(rows: pd.DataFrame) -> pd.DataFrame:
    """Table 3: top-5 accuracy on the training batch; top-1 gap is top-5 less top-1 accuracy."""
    rows = rows.sort_values("train_loss", kind="stable")
    return rows.loc[:, ["initial_top5", "final_top5"]].assign(
        improvement=rows["final_top5"] - rows["initial_top5"],
        top1_gap=rows["final_top5"] - rows["accuracy"],
    )


def sequence_length(rows: pd.DataFrame) -> pd.DataFrame:
    """Table 4: short_seq against baseline; memory is the measured peak, in GB of 10^9 bytes."""
    rows = rows.loc[rows.index.isin(["short_seq", "baseline"], level="configuration")].sort_values(
        "seq_len", kind="stable"
    )
    memory = (rows["peak_memory_bytes"] / 1e9).map("{:.2f} GB".format, na_action="ignore")
    tokens_per_step = rows["batch_size"] * rows["seq_len"]
    return rows.loc[:, ["seq_len", "steps_per_second"]].assign(
        memory_usage=memory,
        tokens_per_second=rows["steps_per_second"] * tokens_per_step,
        trials_on_device=rows["trials_on_device"],
    )


def data_exposure(rows: pd.DataFrame) -> pd.DataFrame:
    """Table 5: tokens of a step and of the whole trial, repeated ones counted again."""
    return rows.loc[:, ["batch_size", "seq_len"]].assign(
        tokens_per_step=rows["batch_size"] * rows["seq_len"], total_tokens=rows["total_tokens"]
    )


def normalized(rows: pd.DataFrame) -> pd.DataFrame:
    """Table 6: train loss over millions of tokens; it rewards more tokens by construction."""
    millions = rows["total_tokens"] / 1e6
    table = pd.DataFrame({"final_loss": rows["train_loss"], "tokens_millions": millions})
    table = table.assign(loss_per_million_tokens=table["final_loss"] / millions)
    return table.sort_values("loss_per_million_tokens", kind="stable")


def efficiency(rows: pd.DataFrame) -> pd.DataFrame:
    """Table 7: steps per second, fastest first but never across differently shared devices."""
    rows = rows.sort_values(
        ["trials_on_device", "steps_per_second"], ascending=[True, False], kind="stable"
    )
    return rows.loc[
        :, ["steps_per_second", "step_time_mean_s", "step_time_std_s", "trials_on_device"]
    ]


def validation(rows: pd.DataFrame) -> pd.DataFrame:
    """Table 8: loss, accuracy and perplexity on validation windows (they overlap training)."""
    table = pd.DataFrame(
        {
            "initial_val_loss": rows["initial_val_loss"],
            "final_val_loss": rows["eval_loss"],
            "val_accuracy": rows["val_accuracy"],
            "val_perplexity": rows["val_perplexity"],
        }
    )
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
"""Title and maker of every table, in the paper's order and under the names of its figures.

A maker takes figures as `mean_over_seeds` gives them, or of single trials in the same columns.
"""
