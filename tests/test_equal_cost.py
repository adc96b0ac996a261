from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_up import write_grid
from shown import drawn
from test_runs import COMPLETE, write_experiment, write_trial

from quarterhour.analysis.chapters.equal_cost import (
    VIEWS,
    equal_cost,
    equal_cost_losses,
    side_by_side,
)
from quarterhour.analysis.runs import Run, load_run


def curve(
    steps: int, tokens: int, seconds: float, loss: float, at_start: float = 9.0, sharing: int = 1
) -> list[dict[str, Any]]:
    """Rows whose losses fall linearly in the logarithm of the step, from `at_start` to `loss`."""
    rows: list[dict[str, Any]] = []
    for step in (1, steps // 4, steps // 2, steps):
        fallen = np.log(step) / np.log(steps)
        row = {"step": step, "tokens": step * tokens, "flops": step * tokens * 10}
        row |= {"seconds": step * seconds, "trials_on_device": sharing}
        rows.append(
            row | {"heldout_loss": at_start + fallen * (loss - at_start), "train_loss": 1.0}
        )
    return rows


def run_of(folder: Path, seeds: int = 1, **curves: list[dict[str, Any]]) -> Run:
    run = write_experiment(folder, list(curves), seeds=seeds)
    for name, rows in curves.items():
        for seed in range(seeds):
            shifted = [row | {"heldout_loss": row["heldout_loss"] + 0.1 * seed} for row in rows]
            write_trial(run, name, shifted, seed=seed, result=COMPLETE)
    return load_run(run)


def view(run: Run, name: str) -> pd.DataFrame:
    table = equal_cost(run)
    return table.loc[table["view"] == name].set_index("configuration")


def test_a_trial_that_spends_more_is_read_off_its_curve(tmp_path: Path):
    run = run_of(tmp_path / "run", small=curve(64, 10, 1, 5.0), large=curve(64, 80, 2, 3.0))
    steps = view(run, "steps")
    assert list(steps.index) == ["large", "small"]
    assert not steps["interpolated"].any()
    assert (steps["cost"] == 64).all()
    tokens = view(run, "tokens")
    assert (tokens["cost"] == 640).all()
    assert list(tokens.index) == ["small", "large"]
    # 640 tokens are 8 of its 64 steps: half of its fall, by the logarithm of the step
    assert tokens.loc["large", "heldout_loss"] == pytest.approx(6.0)
    assert tokens["interpolated"].to_dict() == {"small": False, "large": True}
    remarks = tokens["remark"].to_dict()
    assert remarks["small"] == "1, at equal steps 2"
    assert remarks["large"] == (
        "interpolated: its schedule was made for 64 steps; 2, at equal steps 1"
    )
    cells = side_by_side(run).cells.set_index("configuration")
    assert list(cells) == ["at 64 steps", "at 640 tokens", "at 6400 FLOPs", "at 64 s"]
    assert cells.loc["large"].to_list() == [
        "3.000 · rank 1", "6.000 · rank 2 · cut", "6.000 · rank 2 · cut", "4.000 · rank 1 · cut"
    ]  # fmt: skip
    assert cells.loc["small"].to_list() == [
        "5.000 · rank 2", "5.000 · rank 1", "5.000 · rank 1", "5.000 · rank 2"
    ]  # fmt: skip


def test_equal_budgets_are_exact_though_their_last_steps_differ(tmp_path: Path):
    run = run_of(tmp_path / "run", coarse=curve(12, 64, 5, 4.0), fine=curve(100, 8, 1, 3.0))
    tokens = view(run, "tokens")
    assert tokens["cost"].to_list() == [768, 768]
    assert tokens["heldout_loss"].to_dict() == pytest.approx({"fine": 3.0, "coarse": 4.0})
    assert not tokens["interpolated"].any()
    assert view(run, "steps").loc["fine", "interpolated"]


def test_seconds_of_a_shared_device_have_no_rank_and_set_no_cost(tmp_path: Path):
    run = run_of(
        tmp_path / "run",
        shared=curve(64, 10, 0.1, 2.0, sharing=2),
        alone=curve(64, 10, 1, 4.0),
        slow=curve(64, 10, 2, 3.0),
    )
    seconds = view(run, "device-seconds")
    assert list(seconds.index) == ["alone", "slow", "shared"]
    assert (seconds["cost"] == 64).all()
    assert seconds["rank"].to_list()[:2] == [1, 2]
    assert seconds["rank_at_equal_steps"].to_list()[:2] == [2, 1], "among the two"
    assert np.isnan(seconds.loc["shared", "rank"])
    assert seconds.loc["shared", "remark"] == "2 trials shared the device: not ranked"
    assert view(run, "tokens").loc["shared", "rank"] == 1
    table = side_by_side(run)
    assert table.cells.set_index("configuration").loc["shared", "at 64 s"] == "not ranked"
    assert table.notes == ["device-seconds: 2 trials shared the device: not ranked"]


def test_no_panel_is_empty_where_all_trials_shared_the_device(tmp_path: Path):
    run = run_of(
        tmp_path / "run", a=curve(64, 10, 1, 2, sharing=2), b=curve(64, 10, 1, 4, sharing=2)
    )
    titles = [axes.get_title() for axes in drawn(equal_cost_losses(run)).axes]
    assert titles == ["at 64 steps", "at 640 tokens", "at 6400 FLOPs"]
    assert list(side_by_side(run).cells)[1:] == titles


def test_trials_of_a_run_beside_it_that_were_made_for_the_cost_are_taken(tmp_path: Path):
    small, large = curve(64, 10, 1, 5.0), curve(64, 80, 1, 3.0)
    run = run_of(tmp_path / "run", small=small, large=large)
    made_for_it = write_experiment(tmp_path / "search", ["0003", "0004"])
    write_trial(made_for_it, "0003", curve(8, 80, 1, 4.0), result=COMPLETE, key="its own")
    rates = {"optim.learning_rate": 1.0}
    write_trial(made_for_it, "0004", curve(8, 80, 1, 1.0), result=COMPLETE, key="b", values=rates)
    told = replace(run, trials=run.trials.assign(**{"optim.eps": [1.0, 1e-8]}))
    tokens = view(replace(told, beside=(load_run(made_for_it),)), "tokens")
    assert tokens["cost"].to_list() == [640, 640]
    assert tokens["heldout_loss"].to_dict() == {"large": 4.0, "small": 5.0}
    assert not tokens["interpolated"].any()
    assert view(told, "tokens").loc["large", "interpolated"]


def test_seeds_give_an_interval_and_unfinished_trials_are_left_out(tmp_path: Path):
    run = run_of(tmp_path / "run", seeds=3, a=curve(64, 10, 1, 5.0), b=curve(64, 10, 1, 4.0))
    write_trial(run.folder, "c", curve(32, 10, 1, 1.0))
    table = view(load_run(run.folder), "steps")
    assert list(table.index) == ["b", "a"]
    assert table["n"].to_list() == [3, 3]
    assert table["heldout_loss"].to_list() == pytest.approx([4.1, 5.1])
    half = 4.3027 * 0.1 / 3**0.5
    assert (table["high"] - table["heldout_loss"]).to_list() == pytest.approx([half] * 2, rel=1e-4)


def test_a_run_without_a_finished_trial_has_an_empty_table(tmp_path: Path):
    run = write_experiment(tmp_path / "run", ["a"])
    assert equal_cost(load_run(run)).empty
    write_trial(run, "a", curve(64, 10, 1, 5.0))
    assert equal_cost(load_run(run)).empty
    assert side_by_side(load_run(run)).frame.empty


def test_ranks_at_equal_cost_stand_by_their_dots(tmp_path: Path):
    grid = load_run(write_grid(tmp_path / "grid", seeds=2))
    figure = drawn(equal_cost_losses(grid))
    assert len(figure.axes) == len(VIEWS)
    ranks = [text.get_text() for text in figure.axes[0].texts]
    assert sorted(ranks) == ["1", "2", "3", "4", "5", "6"]
