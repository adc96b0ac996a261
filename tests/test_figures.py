"""What the paper's figures show, asked of their lines and bars."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up import SIX, training_rows, write_grid
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from scipy import stats
from shown import drawn, legend_of, note_of
from test_runs import COMPLETE, write_experiment, write_trial

from quarterhour.analysis.chapters.paper import figures, published
from quarterhour.analysis.plots import COLOURS
from quarterhour.analysis.runs import Run, load_run


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The six on the study's own data and settings, two seeds each."""
    return load_run(write_grid(tmp_path_factory.mktemp("grid") / "grid", seeds=2))


def styles(figure: Figure, style: str) -> list[str]:
    """Colours of the lines of that style."""
    lines = [line for axes in figure.axes for line in axes.lines]
    return [to_hex(line.get_color()).upper() for line in lines if line.get_linestyle() == style]


def test_a_mean_over_seeds_has_students_interval(tmp_path: Path):
    run = write_experiment(tmp_path / "run", ["baseline"], seeds=3)
    losses = [2.0, 3.0, 7.0]
    for seed, loss in enumerate(losses):
        rows = [{"step": 1, "train_loss": loss}, {"step": 21, "train_loss": loss + 1}]
        write_trial(run, "baseline", rows[: 1 + (seed > 0)], seed=seed, result=COMPLETE)
    means = figures.over_seeds(load_run(run), "train_loss")
    assert list(means.index) == [("baseline", 1)]  # not all seeds have step 21
    low, high = stats.t.interval(0.95, 2, np.mean(losses), stats.sem(losses))
    assert means.iloc[0].to_list() == pytest.approx([4.0, low, high, 3])


def test_published_series_are_dashed_where_the_protocol_is_the_same(grid: Run):
    figure = drawn(figures.training_loss(grid))
    assert sorted(styles(figure, "--")) == sorted(COLOURS.values())
    assert sorted(styles(figure, "-")) == sorted(COLOURS.values())
    assert note_of(figure) == "dashed: published, one run"
    assert legend_of(figure) == [f"{name} (n = 2)" for name in SIX]
    dashed = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    theirs = published.rows().query("configuration == 'baseline'")
    assert list(dashed[0].get_ydata()) == theirs["train_loss_last"].to_list()


def test_published_series_are_left_out_where_it_is_another(tmp_path: Path):
    run = load_run(write_grid(tmp_path / "run", data={"corpus": "builtin"}))
    for figure in (figures.training_loss(run), figures.validation_curves(run)):
        assert not styles(drawn(figure), "--")
        assert note_of(drawn(figure)) == "published not drawn, not comparable: other corpus"
    assert not published_dots(drawn(figures.final_performance(run)))


def test_every_hundredth_step_of_the_study_is_drawn(grid: Run):
    lines = drawn(figures.training_loss(grid)).axes[0].lines
    assert list(lines[0].get_xdata()) == [1, *range(101, 2000, 100)]


def published_dots(figure: Figure) -> list[float]:
    """Where the hollow dots of the study stand, from the top of the first panel down."""
    lines = figure.axes[0].lines
    return [float(line.get_xdata()[0]) for line in lines if line.get_marker() == "D"]


def test_dots_stand_at_the_tables_figures_beside_hollow_published_ones(grid: Run):
    figure = drawn(figures.final_performance(grid))
    axes = figure.axes[0]
    ours = [float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == "o"]
    last = grid.rows.query("step == 2000").groupby("configuration")["train_loss_last"].mean()
    assert ours == pytest.approx([last[name] for name in SIX])
    assert published_dots(figure)[0] == pytest.approx(3.642197608947754)
    assert axes.get_yticklabels()[0].get_text() == "baseline (n = 2)"


def test_a_clock_that_did_not_wait_is_beside_no_dot(grid: Run):
    figure = drawn(figures.throughput(grid))
    assert not published_dots(figure)
    assert note_of(figure).startswith("published not drawn: published clock did not wait")
    assert "each trial alone" in note_of(figure)


def test_convergence_is_that_of_the_study(grid: Run):
    figure = drawn(figures.convergence(grid))
    assert [round(x, 3) for x in published_dots(figure)] == [
        0.387,
        0.550,
        0.256,
        0.734,
        0.382,
        0.349,
    ]


def test_what_no_row_has_is_called_missing(tmp_path: Path):
    run = write_experiment(tmp_path / "run", ["baseline"])
    write_trial(run, "baseline", [{"step": 1, "train_loss": 10.5}])
    axes = drawn(figures.training_curves(load_run(run))).axes
    assert [len(each.lines) for each in axes] == [1] + [0] * 7
    assert [each.texts[0].get_text() for each in axes[1:]] == ["missing"] * 7


def test_rows_of_one_seed_have_no_band(tmp_path: Path):
    run = write_experiment(tmp_path / "run", ["baseline"])
    write_trial(run, "baseline", training_rows(2, {}), result=COMPLETE)
    means: pd.DataFrame = figures.over_seeds(load_run(run), "train_loss")
    assert means[["low", "high"]].isna().to_numpy().all()


def test_figures_need_no_pyplot():
    assert "matplotlib.pyplot" not in sys.modules
