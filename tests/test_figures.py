"""What the figures show, asked of their lines and bars."""

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_up import SIX, training_rows, write_grid, write_search
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from scipy import stats
from test_runs import COMPLETE, write_experiment, write_trial
from test_scaling import run_of

from quarterhour.analysis.chapters import trust_figures
from quarterhour.analysis.chapters.paper import figures
from quarterhour.analysis.chapters.paper.published import published_rows
from quarterhour.analysis.chapters.search import figures as search_figures
from quarterhour.analysis.chapters.search.results import search_results, seed_comparison
from quarterhour.analysis.plots import COLOURS, colours
from quarterhour.analysis.runs import Run, load_run


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The six on the study's own data and settings, two seeds each."""
    return load_run(write_grid(tmp_path_factory.mktemp("grid") / "grid", seeds=2))


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A search of forty trials, some pruned, and its best with fresh seeds."""
    return load_run(write_search(tmp_path_factory.mktemp("search") / "search", 40, fresh=True))


def drawn(figure: Figure | None) -> Figure:
    assert figure
    return figure


def styles(figure: Figure, style: str) -> list[str]:
    """Colours of the lines of that style."""
    lines = [line for axes in figure.axes for line in axes.lines]
    return [to_hex(line.get_color()).upper() for line in lines if line.get_linestyle() == style]


def note_of(figure: Figure) -> str:
    """The remark below the axes, on one line."""
    return " ".join(figure.get_supxlabel().split())


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_six_have_their_colour_and_others_one_of_the_rest():
    own = colours(["mine", "high_lr", "yours", "baseline", "mine"])
    assert own["high_lr"] == COLOURS["high_lr"]
    assert own["mine"] != own["yours"]
    assert not {own["mine"], own["yours"]} & set(COLOURS.values())
    assert len(set(COLOURS.values())) == len(COLOURS) == 6


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
    theirs = published_rows().query("configuration == 'baseline'")
    assert list(dashed[0].get_ydata()) == theirs["train_loss_last"].to_list()


def test_published_series_are_left_out_where_it_is_another(tmp_path: Path):
    run = load_run(write_grid(tmp_path / "run", data={"corpus": "builtin"}))
    for figure in (figures.training_loss(run), figures.validation_curves(run)):
        assert not styles(drawn(figure), "--")
        assert note_of(drawn(figure)) == "published not drawn, not comparable: other corpus"
    bars = drawn(figures.final_performance(run))
    assert not any(bar.get_hatch() for axes in bars.axes for bar in axes.patches)


def test_every_hundredth_step_of_the_study_is_drawn(grid: Run):
    lines = drawn(figures.training_loss(grid)).axes[0].lines
    assert list(lines[0].get_xdata()) == [1, *range(101, 2000, 100)]


def test_bars_stand_at_the_tables_figures_beside_hatched_published_ones(grid: Run):
    figure = drawn(figures.final_performance(grid))
    axes = figure.axes[0]
    widths = {bool(bar.get_hatch()): [] for bar in axes.patches}
    for bar in axes.patches:
        widths[bool(bar.get_hatch())].append(bar.get_width())
    last = grid.rows.query("step == 2000").groupby("configuration")["train_loss_last"].mean()
    assert widths[False] == pytest.approx([last[name] for name in SIX])
    assert widths[True][0] == pytest.approx(3.642197608947754)
    assert axes.get_yticklabels()[0].get_text() == "baseline (n = 2)"


def test_a_clock_that_did_not_wait_is_beside_no_bar(grid: Run):
    figure = drawn(figures.throughput(grid))
    assert not any(bar.get_hatch() for bar in figure.axes[0].patches)
    assert note_of(figure).startswith("published not drawn: published clock did not wait")
    assert "each trial alone" in note_of(figure)


def test_convergence_is_that_of_the_study(grid: Run):
    figure = drawn(figures.convergence(grid))
    hatched = [bar.get_width() for bar in figure.axes[0].patches if bar.get_hatch()]
    assert [round(width, 3) for width in hatched] == [0.387, 0.550, 0.256, 0.734, 0.382, 0.349]


def test_what_no_row_has_is_called_missing(tmp_path: Path):
    run = write_experiment(tmp_path / "run", ["baseline"])
    write_trial(run, "baseline", [{"step": 1, "train_loss": 10.5}])
    axes = drawn(figures.training_curves(load_run(run))).axes
    assert [len(each.lines) for each in axes] == [1] + [0] * 7
    assert [each.texts[0].get_text() for each in axes[1:]] == ["missing"] * 7


def test_the_gap_is_held_out_less_leaky(grid: Run):
    axes = drawn(trust_figures.memorisation_gap(grid)).axes[2]
    assert np.asarray(axes.lines[0].get_ydata()) == pytest.approx(0.1)


def test_ranks_at_equal_cost_stand_by_their_dots(grid: Run):
    figure = drawn(trust_figures.equal_cost_losses(grid))
    assert [axes.get_title().split(":")[0] for axes in figure.axes] == [
        f"equal {view}" for view in ("steps", "tokens", "flops", "device-seconds")
    ]
    ranks = [text.get_text() for text in figure.axes[0].texts]
    assert sorted(ranks) == ["1", "2", "3", "4", "5", "6"]


def test_importance_is_that_of_the_setting_that_decides(search: Run):
    table = search_figures.importances(search)
    assert table["heldout_loss"].idxmax() == "optim.learning_rate"
    assert table["heldout_loss"].sum() == pytest.approx(1)
    complete = search.trials.query("status == 'COMPLETE' and seed == 0")
    assert set(table["trials"]) == {len(complete)}
    note = note_of(drawn(search_figures.importance_bars(search)))
    assert note == f"fANOVA on {len(complete)} complete trials"


def test_a_setting_that_follows_from_another_is_no_parameter(search: Run):
    ranges: dict[str, Any] = search_figures.parameters(search)
    assert "model.d_model" in ranges
    assert "model.d_ff" not in ranges
    assert {"optim.weight_decay", "optim.beta1"} <= set(ranges), "both differ in every proposal"
    assert ranges["optim.learning_rate"].log
    assert (ranges["data.batch_size"].low, ranges["data.batch_size"].high) == (2, 32)
    assert ranges["optim.schedule"].choices == ("constant", "cosine", "linear")


def test_the_best_so_far_never_rises(search: Run):
    axes = drawn(search_figures.optimisation_history(search)).axes[0]
    best = next(line for line in axes.lines if line.get_label() == "best so far")
    assert all(a >= b for a, b in pairwise(best.get_ydata()))
    assert legend_of(axes.figure)[:2] == ["not complete", "complete, proposed"]


def test_curves_of_all_trials_are_drawn(search: Run):
    axes = drawn(search_figures.learning_curves(search)).axes[0]
    curves = {each.get_label(): len(each.get_paths()) for each in axes.collections}
    pruned = (search.trials["status"] == "PRUNED").sum()
    assert curves["not complete"] == pruned
    assert curves["complete, proposed"] == 40 - pruned - 6
    assert {name: curves[name] for name in SIX} == dict.fromkeys(SIX, 1)


def test_the_front_joins_what_nothing_is_better_than(tmp_path: Path):
    folder = write_search(tmp_path / "run", 12, objectives=("heldout_loss", "tokens"))
    run = load_run(folder)
    axes = drawn(search_figures.pareto_front(run)).axes[0]
    front = next(line for line in axes.lines if line.get_label() == "front")
    points = np.column_stack(front.get_data())
    last = run.rows.groupby("configuration")[["heldout_loss", "tokens"]].last()
    complete = run.trials.set_index("configuration")["status"] == "COMPLETE"
    costs = last.loc[complete].to_numpy(float)
    best = [c for c in costs if not ((costs <= c).all(1) & (costs < c).any(1)).any()]
    assert sorted(map(tuple, points)) == sorted(set(map(tuple, best)))


def test_fresh_seeds_are_dots_around_their_mean(search: Run):
    axes = drawn(search_figures.fresh_seeds(search)).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "0000 baseline (n = 3)", "0001 high_lr (n = 3)", "0039 sampler (n = 3)",
    ]  # fmt: skip


def test_figures_need_no_pyplot():
    assert "matplotlib.pyplot" not in sys.modules


def test_rows_of_one_seed_have_no_band(tmp_path: Path):
    run = write_experiment(tmp_path / "run", ["baseline"])
    write_trial(run, "baseline", training_rows(2, {}), result=COMPLETE)
    means: pd.DataFrame = figures.over_seeds(load_run(run), "train_loss")
    assert means[["low", "high"]].isna().to_numpy().all()


def test_one_fresh_seed_judges_nothing(tmp_path: Path):
    results = search_results(load_run(write_search(tmp_path / "run", 8, fresh=True)))
    alone = replace(results, fresh=results.fresh.loc[results.fresh["seed"] == 1])
    compared = seed_comparison(alone).dropna(subset=["difference"])
    assert len(compared)
    assert set(compared["verdict"]) == {"one seed: cannot be judged"}
    assert compared["low"].isna().all()


def test_a_law_is_drawn_where_it_was_fitted(tmp_path: Path):
    small, large = np.geomspace(1e6, 1e7, 6), np.geomspace(1e8, 1e9, 6)
    runs = [
        run_of(tmp_path / name, sizes, 2 + 400 * sizes**-0.5, data=name, names=name)
        for name, sizes in (("small", small), ("large", large))
    ]
    axes = drawn(trust_figures.scaling_laws(runs)).axes[0]
    laws = [line for line in axes.lines if "exponent" in str(line.get_label())]
    ends = [line.get_xdata()[end] for line in laws for end in (0, -1)]
    assert ends == pytest.approx([1e6, 1e7, 1e8, 1e9])
    assert [str(line.get_label()).split(":")[0] for line in laws] == ["small", "large"]
    assert len({line.get_linestyle() for line in laws}) == 2
