"""Rows of a trial of eight steps, and of the study's 2,000 with the same figures."""

from pathlib import Path
from typing import Any

import numpy as np
from test_runs import COMPLETE, write_experiment, write_trial

STEPS = 8
LOSSES = np.array([9.0, 8.0, 6.0, 7.0, 5.0, 4.0, 3.5, 3.0])
SECONDS = np.array([50.0, 0.3, 0.5, 0.2, 0.4, 0.9, 0.1, 0.6])
EIGHT_STEPS = {"budget.steps": STEPS, "budget.eval_every": 3}


def windows(ends: tuple[int, ...] = (1, 2, 4, 6, 7, 8), **figures: float) -> list[dict[str, Any]]:
    """Rows of a trial of eight steps, evaluated at steps 1, 4, 7 and 8, as their windows end."""
    rows: list[dict[str, Any]] = []
    for start, end in zip((0, *ends), ends, strict=False):
        row = {
            "step": end,
            "window_steps": end - start,
            "train_loss": LOSSES[start:end].mean(),
            "train_loss_last": LOSSES[end - 1],
            "step_seconds": SECONDS[start:end].mean(),
            "step_seconds_std": SECONDS[start:end].std(),
            "peak_memory_bytes": 1_000_000_000 + end,
            "trials_on_device": 1,
        }
        if end in (1, 4, 7, 8):
            row |= {
                "eval_loss": 10.0 - end,
                "eval_accuracy": end / 100,
                "eval_perplexity": 1000.0 - end,
                "train_batch_accuracy": end / 10,
                "train_batch_perplexity": 100.0 - end,
                "train_batch_confidence": end / 20,
                "train_batch_top5_accuracy": 0.2 + end / 10,
            }
        rows.append(row | figures)
    return rows


def study_rows(**figures: float) -> list[dict[str, Any]]:
    """The rows of a trial of 2,000 steps that the tables need."""
    first, *_, evaluated, last = windows()
    ends = {"step": 1}, {"step": 1601, "window_steps": 1600}, {"step": 2000, "window_steps": 399}
    rows = zip((first, evaluated, last), ends, strict=True)
    return [row | end | figures for row, end in rows]


def six_of_the_quick_kind(folder: Path) -> Path:
    """A run of the six, and of one with a long name, with the quick profile's data and sizes."""
    names = ["baseline", "high_lr", "low_lr", "large_batch", "short_seq", "small_model"]
    data = {"corpus": "builtin", "tokenizer": "builtin", "train_documents": 480}
    run = write_experiment(
        folder, [*names, "a.longer=name,that.the=study,does.not=have"], data=data
    )
    for name in names:
        values = {"model.d_model": 96, "model.vocab_size": 8192, "data.seq_len": 128}
        write_trial(run, name, windows(), result=COMPLETE, values=EIGHT_STEPS | values)
    write_trial(run, "a.longer=name,that.the=study,does.not=have", windows(), values=EIGHT_STEPS)
    return run
