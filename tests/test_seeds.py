from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_run import write_study_run
from test_runs import write_experiment

from quarterhour.analysis.chapters.seeds import (
    intervals_table,
    pairwise,
    pairwise_table,
    seed_intervals,
)
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


def test_an_interval_ends_where_its_measure_cannot_go_and_p_has_three_decimals(tmp_path: Path):
    def accuracies(name: str, seed: int, row: dict[str, Any]) -> dict[str, Any]:
        return row | {"train_batch_accuracy": (0.05, 0.5, 0.95)[seed], "heldout_loss": 3 + seed}

    names = ["baseline", "high_lr"]
    run = load_run(write_study_run(tmp_path / "run", seeds=3, names=names, change=accuracies))
    table = seed_intervals(run).set_index(["configuration", "measure"])
    assert table.loc[("baseline", "accuracy"), ["low", "high"]].to_list() == [0, 1]
    apart = heldout(baseline=[4.0, 4.001, 4.002], high_lr=[3.0, 3.001, 3.002])
    run = load_run(write_study_run(tmp_path / "two", seeds=3, names=names, change=apart))
    assert pairwise_table(run).cells["p holm"].to_list() == ["<0.001"]


def test_the_figures_of_a_measure_have_equal_decimals(tmp_path: Path):
    change = heldout(baseline=[4.0, 4.1, 4.2], high_lr=[3.0, 3.5, 4.0])
    names = ["baseline", "high_lr"]
    run = load_run(write_study_run(tmp_path / "run", seeds=3, names=names, change=change))
    cells = intervals_table(run).cells
    for measure, own in cells.groupby("measure"):
        figures = own[["mean", "low", "high"]].to_numpy().ravel()
        assert len({len(figure.partition(".")[2]) for figure in figures}) == 1, measure
    assert "4.100" in set(cells["mean"])


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


def test_a_run_that_has_only_begun_has_empty_tables(tmp_path: Path):
    run = load_run(write_experiment(tmp_path / "run", ["baseline"], seeds=2))
    assert pairwise(run).empty
    assert seed_intervals(run)["mean"].isna().all()
