from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_run import write_study_run
from test_runs import COMPLETE, write_experiment, write_trial

from quarterhour.analysis.chapters.memorisation import gap_over_time, memorisation
from quarterhour.analysis.chapters.seeds import pairwise, seed_intervals
from quarterhour.analysis.runs import load_run

LAST = {"tokens": 1, "epochs": 3.0, "heldout_bits_per_byte": 2.0}


def heldout(**losses: list[float]) -> Any:
    """The study's rows, with held-out losses by configuration and seed at the last step."""

    def change(name: str, seed: int, row: dict[str, Any]) -> dict[str, Any]:
        last = row["step"] == 2000 and name in losses
        return row | (LAST | {"heldout_loss": losses[name][seed], "eval_loss": 2.5} if last else {})

    return change


def test_every_measure_has_its_interval(tmp_path: Path):
    change = heldout(baseline=[4.0, 4.1, 4.2])
    names = ["baseline"]
    run = load_run(write_study_run(tmp_path / "run", seeds=3, names=names, change=change))
    table = seed_intervals(run).set_index("measure")
    assert set(table["configuration"]) == {"baseline"}
    row = table.loc["heldout_loss"]
    half = 4.3027 * 0.1 / 3**0.5
    assert (row["n"], row["mean"]) == (3, pytest.approx(4.1))
    assert (row["low"], row["high"]) == pytest.approx((4.1 - half, 4.1 + half), rel=1e-4)
    assert table.loc["tokens_per_second", "mean"] == pytest.approx(64.51 * 4096, rel=1e-3)
    assert table["remark"].to_list() == [""] * 6


def test_one_seed_has_no_interval_and_shared_throughput_is_marked(tmp_path: Path):
    run = load_run(
        write_study_run(tmp_path / "run", change=lambda _, __, r: r | {"trials_on_device": 2})
    )
    table = seed_intervals(run).set_index(["configuration", "measure"])
    assert table[["low", "high"]].isna().all(axis=None)
    assert table.loc[("baseline", "accuracy"), "remark"] == "one seed: no interval"
    shared = table.loc[("baseline", "tokens_per_second"), "remark"]
    assert shared == "one seed: no interval; 2 trials shared the device"
    assert np.isnan(table.loc[("baseline", "heldout_loss"), "mean"])
    assert pairwise(run).empty


def test_pairs_are_judged_by_heldout_loss(tmp_path: Path):
    losses = {
        "baseline": [4.0, 4.01, 4.02],
        "high_lr": [3.0, 3.01, 3.03],
        "low_lr": [4.0, 4.02, 4.01],
    }
    change = heldout(**losses)
    run = load_run(write_study_run(tmp_path / "run", seeds=3, names=list(losses), change=change))
    pairs = pairwise(run).set_index(["one", "other"])["verdict"].to_dict()
    assert pairs == {
        ("baseline", "high_lr"): "worse",
        ("baseline", "low_lr"): "tie",
        ("high_lr", "low_lr"): "better",
    }
    first = load_run(write_study_run(tmp_path / "one", names=list(losses), change=change))
    assert set(pairwise(first)["verdict"]) == {"one seed: cannot be judged"}


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
    assert pairwise(run).empty
    assert seed_intervals(run)["mean"].isna().all()
