from pathlib import Path

import numpy as np
import pytest
from made_up import write_grid
from shown import drawn
from test_runs import COMPLETE, write_experiment, write_trial

from quarterhour.analysis.chapters.memorisation import (
    gap_over_time,
    memorisation,
    memorisation_gap,
)
from quarterhour.analysis.runs import load_run


def test_the_gap_is_heldout_less_leaky_loss(tmp_path: Path):
    rows = [
        {"step": 1, "epochs": 0.1, "eval_loss": 9.0, "heldout_loss": 9.1, "train_loss": 9.0},
        {"step": 5, "epochs": 0.5, "heldout_loss": 8.0, "train_loss": 7.0},
        {"step": 9, "epochs": 4.5, "eval_loss": 2.0, "heldout_loss": 5.0, "train_loss": 1.5,
         "heldout_bits_per_byte": 1.9},
    ]  # fmt: skip
    run = write_experiment(tmp_path / "run", ["a", "b", "waiting"], seeds=2)
    for seed, more in enumerate((0.0, 0.2)):
        later = [row | {"heldout_loss": row["heldout_loss"] + more} for row in rows]
        write_trial(run, "a", rows[:2], seed=seed)
        write_trial(run, "b", later, seed=seed, result=COMPLETE)
    loaded = load_run(run)
    table = memorisation(loaded)
    assert len(table) == 1
    row = table.iloc[0]
    assert row[["configuration", "n", "epochs"]].to_list() == ["b", 2, 4.5]
    assert row[["train_loss", "eval_loss"]].to_list() == [1.5, 2.0]
    assert row[["heldout_loss", "gap"]].to_list() == pytest.approx([5.1, 3.1])
    half = 12.7062 * 0.1  # t of 0.975 with one degree of freedom; s / sqrt(2) is 0.1
    assert row[["gap_low", "gap_high"]].to_list() == pytest.approx([3.1 - half, 3.1 + half])
    curves = gap_over_time(loaded)
    assert len(curves) == 2 + 4
    of_b = curves.loc[(curves["configuration"] == "b") & (curves["seed"] == 1)]
    assert of_b["step"].to_list() == [1, 9]
    assert of_b["gap"].to_list() == pytest.approx([0.3, 3.2])


def test_a_run_that_has_only_begun_has_empty_tables(tmp_path: Path):
    run = load_run(write_experiment(tmp_path / "run", ["baseline"], seeds=2))
    assert memorisation(run).empty
    assert gap_over_time(run).empty


def test_the_figure_shows_the_gap(tmp_path: Path):
    grid = load_run(write_grid(tmp_path / "grid", seeds=2))
    axes = drawn(memorisation_gap(grid)).axes[2]
    assert np.asarray(axes.lines[0].get_ydata()) == pytest.approx(0.1)
