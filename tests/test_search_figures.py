"""What a search's figures show, asked of their lines and dots."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from made_up import SIX, write_search
from shown import drawn, legend_of, note_of

from quarterhour.analysis.chapters.search import figures
from quarterhour.analysis.runs import Run, load_run


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A search of forty trials, some pruned, and its best with fresh seeds."""
    return load_run(write_search(tmp_path_factory.mktemp("search") / "search", 40, fresh=True))


def test_the_best_so_far_never_rises(search: Run):
    axes = drawn(figures.optimisation_history(search)).axes[0]
    best = next(line for line in axes.lines if line.get_label() == "best so far")
    assert all(a >= b for a, b in pairwise(best.get_ydata()))
    assert legend_of(axes.figure)[:2] == ["not complete", "complete, proposed"]


def test_curves_of_all_trials_are_drawn(search: Run):
    axes = drawn(figures.learning_curves(search)).axes[0]
    curves = {each.get_label(): len(each.get_paths()) for each in axes.collections}
    pruned = (search.trials["status"] == "PRUNED").sum()
    assert curves["not complete"] == pruned
    assert curves["complete, proposed"] == 40 - pruned - 6
    assert {name: curves[name] for name in SIX} == dict.fromkeys(SIX, 1)


def test_the_front_joins_what_nothing_is_better_than(tmp_path: Path):
    folder = write_search(tmp_path / "run", 12, objectives=("heldout_loss", "tokens"))
    run = load_run(folder)
    axes = drawn(figures.pareto_front(run)).axes[0]
    front = next(line for line in axes.lines if line.get_label() == "front")
    points = np.column_stack(front.get_data())
    last = run.rows.groupby("configuration")[["heldout_loss", "tokens"]].last()
    complete = run.trials.set_index("configuration")["status"] == "COMPLETE"
    costs = last.loc[complete].to_numpy(float)
    best = [c for c in costs if not ((costs <= c).all(1) & (costs < c).any(1)).any()]
    assert sorted(map(tuple, points)) == sorted(set(map(tuple, best)))


def test_fresh_seeds_are_dots_around_their_mean(search: Run):
    axes = drawn(figures.fresh_seeds(search)).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "0001 high_lr (n = 3)", "0000 baseline (n = 3)", "0039 sampler (n = 3)",
    ]  # fmt: skip
    zero, *_ = axes.lines
    assert list(zero.get_xdata()) == [0, 0]
    seeds = [line.get_xdata() for line in axes.lines if line.get_alpha()]
    assert [list(own) for own in seeds] == [pytest.approx([-0.02, 0, 0.02], abs=1e-3)] * 3
    assert "Welch's intervals, 95 % for all comparisons together (Bonferroni)" in note_of(
        axes.figure
    )


def test_the_best_trial_is_marked_among_its_coordinates(search: Run):
    axes = drawn(figures.parallel_coordinates(search)).axes[0]
    assert legend_of(axes.figure) == ["best, trial 0001 high_lr"]
    assert {label.get_rotation() for label in axes.get_xticklabels()} == {0}
