from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import write_search
from shown import drawn
from test_runs import COMPLETE, write_experiment, write_trial

from quarterhour.analysis.chapters.paper.published import SIX
from quarterhour.analysis.chapters.scaling import (
    AXES,
    LAW,
    OTHERS,
    fits,
    fits_table,
    points,
    points_table,
    scaling_laws,
)
from quarterhour.analysis.runs import Run, load_run

E, A, ALPHA = 2.0, 400.0, 0.35


def run_of(folder: Path, sizes: Any, losses: Any, *, data: str = "one", names: str = "a") -> Run:
    """A run with a configuration of each size, whose tokens and FLOPs are equal."""
    trials = {
        f"{names}{number}": trial for number, trial in enumerate(zip(sizes, losses, strict=True))
    }
    run = write_experiment(folder, list(trials), data={"fingerprint": data})
    for name, (size, loss) in trials.items():
        row = {"step": 9, "tokens": 1e6, "flops": 6e6 * 1e3, "heldout_loss": float(loss)}
        write_trial(run, name, [row], result=COMPLETE | {"parameters": int(size)})
    return load_run(run)


def test_the_law_that_made_the_points_is_found(tmp_path: Path):
    sizes = np.geomspace(1e6, 1e9, 7)
    table = fits([run_of(tmp_path / "run", sizes, E + A * sizes**-ALPHA)]).set_index("axis")
    assert list(table.index) == list(AXES)
    found = table.loc["parameters"]
    assert found[[*LAW]].to_list() == pytest.approx([E, A, ALPHA], rel=1e-3)
    assert (found["points"], found["reason"]) == (7, "")
    assert table.loc["tokens", "reason"] == "fewer than 5 points differ in size or budget alone: 1"
    assert table.loc["tokens", list(LAW)].isna().all()


def test_noise_widens_the_intervals_around_the_law(tmp_path: Path):
    sizes = np.geomspace(1e6, 1e9, 8)
    noise = 0.01 * np.random.default_rng(0).standard_normal(8)
    run = run_of(tmp_path / "run", sizes, E + A * sizes**-ALPHA + noise)
    found, again = (fits([run]).set_index("axis").loc["parameters"] for _ in range(2))
    for name, true in zip(LAW, (E, A, ALPHA), strict=True):
        assert found[f"{name}_low"] < true < found[f"{name}_high"]
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"]
    assert found.to_dict() == again.to_dict()


def test_the_best_at_each_size_counts_and_budgets_equal_to_a_step_are_one(tmp_path: Path):
    sizes = np.geomspace(1e6, 1e9, 7)
    lowest = E + A * sizes**-ALPHA
    best = run_of(tmp_path / "best", sizes, lowest)
    worse = run_of(tmp_path / "worse", sizes * 1.001, lowest + 0.5, names="b")
    both = fits([best, worse]).set_index("axis").loc["parameters"]
    assert both["points"] == 7
    assert both[[*LAW]].to_list() == pytest.approx([E, A, ALPHA], rel=1e-3)
    assert len(points([best, worse])) == 14
    assert set(points([best, worse])["settings"]) == {1}, "all differ in size alone"


def test_a_figure_without_a_law_says_why(tmp_path: Path):
    few = run_of(tmp_path / "few", np.geomspace(1e6, 1e7, 3), np.array([3.0, 2.5, 2.2]))
    title = drawn(scaling_laws([few])).axes[0].get_title()
    assert " ".join(title.split()).startswith("no fit: fewer than 5 points differ in size or")


def test_the_six_of_a_search_have_their_colours_and_one_corpus_needs_no_name(tmp_path: Path):
    search = load_run(write_search(tmp_path / "search", 12, fresh=True))
    figure = scaling_laws([search])
    assert figure
    (legend,) = figure.legends
    assert {*SIX, OTHERS} == {text.get_text() for text in legend.get_texts()}
    for table in (points_table([search]), fits_table([search])):
        assert "data" in table.frame
        assert "data" not in table.cells
    assert points([search])["low"].notna().any()


def test_other_data_are_another_fit(tmp_path: Path):
    sizes = np.geomspace(1e6, 1e9, 3)
    runs = [run_of(tmp_path / data, sizes, [4, 3, 2], data=data) for data in ("one", "two")]
    table = fits(runs)
    assert table["data"].to_list() == ["one"] * 3 + ["two"] * 3
    assert set(table.loc[table["axis"] == "parameters", "points"]) == {3}


@pytest.mark.parametrize("losses", [[3.0, 3.2, 3.4, 3.6, 3.8, 4.0], [3.0, 3.01, 2.99, 3, 3.01, 3]])
def test_points_that_do_not_fall_have_no_law(tmp_path: Path, losses: list[float]):
    run = run_of(tmp_path / "run", np.geomspace(1e6, 1e9, 6), losses)
    found = fits([run]).set_index("axis").loc["parameters"]
    assert found["reason"] == "the points determine no power law with an offset"
    assert found[[*LAW]].isna().all()


def test_runs_without_a_complete_trial_have_no_points(tmp_path: Path):
    run = load_run(write_experiment(tmp_path / "run", ["a"]))
    assert points([run]).empty
    assert fits([run]).empty
    assert fits([]).empty


def test_many_sizes_do_not_grow_together(tmp_path: Path):
    sizes = np.geomspace(1e6, 2e6, 200)  # 0.35 % apart, over 35 times what is one
    run = run_of(tmp_path / "run", sizes, E + A * sizes**-ALPHA)
    assert fits([run]).set_index("axis").loc["parameters", "points"] == 34


def test_a_law_is_drawn_where_it_was_fitted(tmp_path: Path):
    small, large = np.geomspace(1e6, 1e7, 6), np.geomspace(1e8, 1e9, 6)
    runs = [
        run_of(tmp_path / name, sizes, 2 + 400 * sizes**-0.5, data=name, names=name)
        for name, sizes in (("small", small), ("large", large))
    ]
    axes = drawn(scaling_laws(runs)).axes[0]
    laws = [line for line in axes.lines if "exponent" in str(line.get_label())]
    ends = [line.get_xdata()[end] for line in laws for end in (0, -1)]
    assert ends == pytest.approx([1e6, 1e7, 1e8, 1e9])
    assert [str(line.get_label()).split(":")[0] for line in laws] == ["small", "large"]
    assert len({line.get_linestyle() for line in laws}) == 2


def test_what_a_run_has_adopted_from_another_counts_once(tmp_path: Path):
    row = {"step": 9, "tokens": 1e6, "flops": 6e9, "heldout_loss": 3.0}
    first, second = (write_experiment(tmp_path / name, ["a", "b"]) for name in ("one", "two"))
    write_trial(first, "a", [row], result=COMPLETE, key="known")
    copy = COMPLETE | {"adopted_from": "one/a/seed0"}
    write_trial(second, "a", [row], result=copy, key="known")
    write_trial(second, "b", [row], result=COMPLETE, key="new")
    runs = [load_run(second), load_run(first)]
    assert points(runs)[["run", "configuration"]].to_numpy().tolist() == [
        ["one", "a"],
        ["two", "b"],
    ]
    assert len(points(runs[:1])) == 2  # where the other run is not compared, the copy counts
