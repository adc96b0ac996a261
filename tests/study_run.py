"""The study's own recorded figures as a run folder, as if quarterhour had written it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from test_runs import COMPLETE, write_experiment, write_trial

from quarterhour.analysis.chapters.paper import published
from quarterhour.analysis.chapters.paper.published import FOLDER

RUNS = json.loads((FOLDER / "published_runs.json").read_text())["configurations"]
EVALUATED = [1, 401, 801, 1201, 1601]
ENDS = sorted([*EVALUATED, 500, 1000, 1500, 2000])
MEASURES = [
    "eval_loss",
    "eval_accuracy",
    "eval_perplexity",
    "train_batch_accuracy",
    "train_batch_perplexity",
    "train_batch_confidence",
    "train_batch_top5_accuracy",
]

Change = Callable[[str, int, dict[str, Any]], dict[str, Any]]


def study_trial_rows(name: str) -> list[dict[str, Any]]:
    """Rows that give every figure which the study recorded of a configuration."""
    recorded = RUNS[name]
    rows: list[dict[str, Any]] = []
    for start, end in zip([0, *ENDS], ENDS, strict=False):
        quarter = "last" if end > 1500 else "first"
        row = {
            "step": end,
            "window_steps": end - start,
            "train_loss": recorded[f"mean_train_loss_{quarter}_quarter"],
            "train_loss_last": recorded["train_loss_last_step"],
            "step_seconds": recorded["step_time_mean_s"],
            "step_seconds_std": recorded["step_time_std_s"],
            "trials_on_device": 1,
        }
        if end in EVALUATED:
            number = EVALUATED.index(end)
            row |= {measure: recorded[measure][number] for measure in MEASURES}
        rows.append(row)
    return rows


def write_study_run(
    folder: Path,
    *,
    seeds: int = 1,
    change: Change = lambda _, __, row: row,
    names: list[str] | None = None,
    **values: Any,
) -> Path:
    """The six, all complete; `change` gets configuration, seed and each row, and gives another."""
    names = list(RUNS) if names is None else names
    run = write_experiment(folder, names, seeds=seeds)
    settings = published.tables()["configurations"]
    for name in names:
        own = settings.loc[name]
        config = {
            "model.d_model": int(own["d_model"]),
            "model.n_heads": int(own["n_heads"]),
            "model.n_layers": int(own["n_layers"]),
            "model.d_ff": 4 * int(own["d_model"]),
            "data.batch_size": int(own["batch_size"]),
            "data.seq_len": int(own["seq_len"]),
            "optim.learning_rate": own["learning_rate"],
        }
        for seed in range(seeds):
            rows = [change(name, seed, row) for row in study_trial_rows(name)]
            write_trial(run, name, rows, seed=seed, result=COMPLETE, values=config | values)
    return run
