from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from eight_steps import EIGHT_STEPS, LOSSES, SECONDS, STEPS, windows
from test_runs import COMPLETE, write_experiment, write_trial

from quarterhour.analysis.measures import mean_over_seeds, summarise
from quarterhour.analysis.runs import load_run


def test_figures_have_the_studys_definitions(tmp_path: Path):
    run = write_experiment(tmp_path / "run", ["baseline"])
    write_trial(run, "baseline", windows(), result=COMPLETE, values=EIGHT_STEPS)
    summary = summarise(load_run(run)).iloc[0].to_dict()
    assert summary == {
        "configuration": "baseline",
        "seed": 0,
        "status": "COMPLETE",
        "d_model": 384,
        "n_heads": 6,
        "n_layers": 12,
        "batch_size": 8,
        "learning_rate": 3e-4,
        "seq_len": 512,
        "total_tokens": 8 * 512 * STEPS,
        "train_loss_last": 3.0,
        "study_eval_loss": 3.0,
        "accuracy": 0.7,
        "perplexity": 93.0,
        "confidence": 0.35,
        "initial_top5": pytest.approx(0.3),
        "final_top5": pytest.approx(0.9),
        "initial_val_loss": 9.0,
        "val_accuracy": 0.07,
        "val_perplexity": 993.0,
        "early_loss": pytest.approx(LOSSES[:2].mean()),
        "late_loss": pytest.approx(LOSSES[-2:].mean()),
        "steps_per_second": pytest.approx(1 / SECONDS[1:].mean()),
        "step_time_mean_s": pytest.approx(SECONDS[1:].mean()),
        "step_time_std_s": pytest.approx(SECONDS[1:].std()),
        "peak_memory_bytes": 1_000_000_008,
        "trials_on_device": 1,
    }


def test_a_quarter_whose_windows_are_not_all_there_has_no_mean(tmp_path: Path):
    run = write_experiment(tmp_path / "run", ["baseline"])
    write_trial(run, "baseline", windows((1, 4, 8)), values=EIGHT_STEPS)
    assert summarise(load_run(run))[["early_loss", "late_loss"]].isna().all(axis=None)


def test_a_mean_is_over_no_fewer_seeds_than_it_says():
    summary = pd.DataFrame(
        {"configuration": "a", "status": "COMPLETE", "train_loss_last": [1.0, float("nan")]}
    )
    means = mean_over_seeds(summary)
    assert means.loc["a", "seeds"] == 2
    assert np.isnan(means.loc["a", "train_loss_last"])
