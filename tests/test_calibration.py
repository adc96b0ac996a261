import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from study_run import write_study_run
from test_runs import COMPLETE, write_experiment, write_trial

from quarterhour.analysis.chapters.calibration import (
    calibration,
    correlations,
    reliability,
    reliability_diagram,
)
from quarterhour.analysis.runs import load_run

EARLIER = {"step": 1, "eval_calibration": [[8, 0, 0], [8, 0, 0], [8, 0, 0]]}
# Of 10 tokens, 4 are 0.25 confident and half of those right, 6 are 0.9 confident and 3 right.
BINS = [[4, 0, 6], [1.0, 0.0, 5.4], [2, 0, 3]]
# Calibrated: as many right as the confidences add up to.
EXACT = [[10, 10, 10], [2.0, 5.0, 9.0], [2, 5, 9]]


def run_with(folder: Path, *bins: Any) -> Path:
    run = write_experiment(folder, ["a", "old"], seeds=len(bins))
    for seed, of_seed in enumerate(bins):
        rows = [EARLIER, {"step": 9, "eval_calibration": of_seed}, {"step": 10, "train_loss": 1.0}]
        write_trial(run, "a", rows, seed=seed, result=COMPLETE)
    write_trial(run, "old", [{"step": 1, "eval_loss": 3.0}])
    return run


def test_the_expected_error_is_the_mean_distance_of_the_bins(tmp_path: Path):
    table = calibration(load_run(run_with(tmp_path / "run", BINS)))
    assert table["configuration"].to_list() == ["a"]
    row = table.iloc[0]
    assert row["ece"] == pytest.approx(0.4 * abs(0.5 - 0.25) + 0.6 * abs(0.5 - 0.9))
    assert row[["n", "tokens"]].to_list() == [1, 10]
    assert row[["confidence", "accuracy"]].to_list() == pytest.approx([0.64, 0.5])
    assert np.isnan(row[["low", "high"]].astype(float)).all()


def test_seeds_give_an_interval_and_are_pooled_in_the_diagram(tmp_path: Path):
    run = load_run(run_with(tmp_path / "run", BINS, EXACT))
    row = calibration(run).iloc[0]
    assert row["ece"] == pytest.approx(0.34 / 2)
    half = 12.7062 * 0.34 / 2  # t of 0.975 with one degree of freedom; the seeds are 0.34 apart
    assert row["high"] - row["ece"] == pytest.approx(half, rel=1e-4)
    diagram = reliability(run)
    assert diagram["tokens"].to_list() == [14, 10, 16]
    assert diagram["confidence"].to_list() == pytest.approx([3 / 14, 0.5, 14.4 / 16])
    assert diagram["accuracy"].to_list() == pytest.approx([4 / 14, 0.5, 12 / 16])
    assert diagram["bin_low"].to_list() == pytest.approx([0, 1 / 3, 2 / 3])
    assert diagram["bin_high"].to_list() == pytest.approx([1 / 3, 2 / 3, 1])


def test_an_empty_bin_has_no_accuracy(tmp_path: Path):
    diagram = reliability(load_run(run_with(tmp_path / "run", BINS)))
    assert diagram["accuracy"].isna().to_list() == [False, True, False]
    assert diagram["tokens"].to_list() == [4, 0, 6]


def test_bins_of_few_tokens_are_not_drawn(tmp_path: Path):
    run = load_run(run_with(tmp_path / "run", [[99, 100, 500], [20, 50, 450], [20, 50, 400]]))
    figure = reliability_diagram(run)
    assert figure
    (dots,) = figure.axes[0].collections
    assert np.asarray(dots.get_offsets()) == pytest.approx(np.array([[0.5, 0.5], [0.9, 0.8]]))
    assert reliability(run)["tokens"].to_list() == [99, 100, 500]


def test_runs_without_the_counts_have_empty_tables(tmp_path: Path):
    run = load_run(write_study_run(tmp_path / "run"))
    assert calibration(run).empty
    assert reliability(run).empty
    assert calibration(load_run(write_experiment(tmp_path / "begun", ["a"]))).empty


def test_the_correlations_are_the_papers_with_intervals(tmp_path: Path):
    table = correlations(load_run(write_study_run(tmp_path / "run")))
    published = table[["published_correlation", "published_low", "published_high", "published_n"]]
    own = table[["correlation", "low", "high", "n"]]
    np.testing.assert_allclose(own.to_numpy(float), published.to_numpy(float))
    by_pair = table.set_index(["x", "y"])
    loss = by_pair.loc[("train_loss_last", "confidence")]
    assert round(loss["correlation"], 3) == -0.943
    half = 1.959964 / 3**0.5
    bounds = np.tanh(np.arctanh(loss["correlation"]) + np.array([-half, half]))
    assert loss[["low", "high"]].to_list() == pytest.approx(list(bounds))
    assert round(by_pair.loc[("confidence", "final_top5"), "correlation"], 3) == 0.993


def test_an_unfinished_run_correlates_what_it_has(tmp_path: Path):
    run = load_run(write_study_run(tmp_path / "run", names=["baseline", "high_lr"]))
    table = correlations(run)
    assert table["n"].to_list() == [2, 2]
    assert table["correlation"].isna().all()
    assert pd.notna(table["published_correlation"]).all()


def test_a_seed_that_diverged_does_not_count(tmp_path: Path):
    run = run_with(tmp_path / "run", BINS, EXACT)
    diverged = {"status": "FAILED", "reason": "loss is NaN", "diverged": True}
    (run / "a/seed1/result.json").write_text(json.dumps(diverged))
    row = calibration(load_run(run)).iloc[0]
    assert row[["n", "tokens"]].to_list() == [1, 10]
