"""What the chapters share: the study's figures of each trial, their means, and last rows."""

import functools
from collections.abc import Sequence
from typing import Any

import pandas as pd

from quarterhour.analysis.runs import Run, last_evaluation
from quarterhour.tune import run_folder
from quarterhour.tune.run_folder import TRIAL, Status

_SETTINGS = [
    *("model.d_model", "model.n_heads", "model.n_layers"),
    *("data.batch_size", "optim.learning_rate", "data.seq_len"),
]
_BUDGET = ["budget.steps", "budget.max_steps", "budget.eval_every"]
_FIGURES = [name for name in run_folder.COLUMNS if name != run_folder.EVAL_CALIBRATION]


@functools.lru_cache(maxsize=1)  # nearly every table and figure of a report asks for it
def summarise(run: Run) -> pd.DataFrame:
    """The figures that the tables are made of, one row per configuration and seed.

    The definitions are the study's, on the trial's own number of steps. `train_loss_last` is of the
    last step. `study_eval_loss`, `val_accuracy` and `val_perplexity` (on validation windows),
    `accuracy`, `perplexity`, `confidence` and `final_top5` (on that step's training batch) are of
    the last evaluation that the reference makes. `initial_*` is of the first step. `early_loss` and
    `late_loss` are the mean train loss of the first and the last quarter. `step_time_*` is in
    seconds, over all steps but the first; its deviation is the population one. A figure whose rows
    are missing is NaN.
    """
    trials = run.trials.set_index(TRIAL)
    settings = trials.reindex(columns=[*_SETTINGS, *_BUDGET]).astype(float)
    settings = settings.rename(columns=lambda path: path.rpartition(".")[2])
    rows = run.rows.reindex(columns=[*TRIAL, *_FIGURES]).set_index(TRIAL).astype(float)
    rows = rows.join(settings.loc[:, ["steps", "eval_every"]])
    step, steps = rows.loc[:, "step"], rows.loc[:, "steps"]
    evaluation = last_evaluation(steps, rows.loc[:, "eval_every"])
    first, evaluated = rows.loc[step == 1], rows.loc[step == evaluation + 1]
    step_time_mean, step_time_std = _step_time(rows.loc[step > 1])
    seen = settings.loc[:, ["steps", "max_steps"]].min(axis="columns")
    most = rows.loc[:, [run_folder.PEAK_MEMORY, run_folder.TRIALS_ON_DEVICE]].groupby(TRIAL).max()
    summary = trials.loc[:, ["status"]].join(settings.loc[:, :"seq_len"])
    return summary.assign(
        total_tokens=settings["batch_size"] * settings["seq_len"] * seen,
        train_loss_last=rows.loc[step == steps, "train_loss_last"],
        study_eval_loss=evaluated[run_folder.EVAL_LOSS],
        accuracy=evaluated["train_batch_accuracy"],
        perplexity=evaluated["train_batch_perplexity"],
        confidence=evaluated["train_batch_confidence"],
        initial_top5=first["train_batch_top5_accuracy"],
        final_top5=evaluated["train_batch_top5_accuracy"],
        initial_val_loss=first[run_folder.EVAL_LOSS],
        val_accuracy=evaluated["eval_accuracy"],
        val_perplexity=evaluated["eval_perplexity"],
        early_loss=_mean_loss(rows.loc[step <= steps // 4], settings.loc[:, "steps"] // 4),
        late_loss=_mean_loss(rows.loc[step > steps * 3 // 4], -(-settings.loc[:, "steps"] // 4)),
        steps_per_second=1 / step_time_mean,
        step_time_mean_s=step_time_mean,
        step_time_std_s=step_time_std,
        **most,
    ).reset_index()


def _window_mean(values: pd.Series, window_steps: pd.Series) -> pd.Series:
    """Each trial's mean over its steps; the values are means over windows of steps."""
    total: Any = (values * window_steps).groupby(TRIAL).sum(skipna=False)
    return total / window_steps.groupby(TRIAL).sum()


def _step_time(rows: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Mean and population deviation, in seconds, over single steps (law of total variance)."""
    seconds, window_steps = rows.loc[:, "step_seconds"], rows.loc[:, "window_steps"]
    mean = _window_mean(seconds, window_steps)
    squares = rows["step_seconds_std"] ** 2 + (seconds - mean.reindex(rows.index)) ** 2
    return mean, _window_mean(squares, window_steps) ** 0.5


def _mean_loss(rows: pd.DataFrame, quarter: pd.Series) -> pd.Series:
    """Mean train loss over these rows; NaN unless they cover every step of the quarter."""
    window_steps = rows.loc[:, "window_steps"]
    covered = window_steps.groupby(TRIAL).sum()
    return _window_mean(rows.loc[:, run_folder.TRAIN_LOSS], window_steps).where(covered.eq(quarter))


def counted_trials(summary: pd.DataFrame) -> pd.DataFrame:
    """A configuration's COMPLETE trials, or all of them if none is complete."""
    complete = summary["status"] == Status.COMPLETE
    none_is = ~complete.groupby(summary["configuration"]).transform("any")
    return summary.loc[(complete | none_is).to_numpy()]


def mean_over_seeds(summary: pd.DataFrame) -> pd.DataFrame:
    """One row per configuration: the mean of its `counted_trials`.

    `seeds` says how many of those have begun. A figure that one of them lacks is NaN: no mean is
    over fewer seeds than it says.
    """
    counted = counted_trials(summary)
    seeds = counted["status"].ne(Status.WAITING).groupby(counted["configuration"], sort=False).sum()
    by_configuration = counted.groupby("configuration", sort=False)
    means: Any = by_configuration.mean(numeric_only=True, skipna=False)
    return means.assign(seeds=seeds)


def settings_but(run: Run, *names: str) -> list[frozenset[tuple[str, str]]]:
    """What each trial was trained with, less its seed and what has these names or begins so."""
    columns = [name for name in run.trials if "." in name and not name.startswith(names)]
    trials: Any = run.trials[columns]
    return [
        frozenset((name, str(value)) for name, value in trial.items() if pd.notna(value))
        for trial in trials.to_dict("records")
    ]


def final_rows(run: Run, columns: Sequence[str]) -> pd.DataFrame:
    """These columns of the last row of each COMPLETE trial, with its configuration and seed.

    A column that no row has is NaN.
    """
    complete = run.trials.loc[run.trials["status"] == Status.COMPLETE, TRIAL]
    rows = run.rows.reindex(columns=[*TRIAL, *columns]).drop_duplicates(TRIAL, keep="last")
    return complete.merge(rows.astype(complete.dtypes.to_dict()), how="left", on=TRIAL)
