from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_up import write_search
from shown import drawn, note_of

from quarterhour.analysis.chapters.search.figures import importance_intervals
from quarterhour.analysis.chapters.search.rungs import rungs
from quarterhour.analysis.chapters.search.tables import (
    MIN_PROPOSALS,
    importances,
    parameters,
    proposed,
    too_few,
    weighed,
)
from quarterhour.analysis.runs import Run, load_run


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A search of forty trials, some pruned, and its best with fresh seeds."""
    return load_run(write_search(tmp_path_factory.mktemp("search") / "search", 40, fresh=True))


def test_importance_is_that_of_the_setting_that_decides(search: Run):
    table = importances(search)
    assert table.loc[0, "setting"] == "optim.learning_rate"
    assert table["share"].sum() == pytest.approx(1)
    assert (table["low"] <= table["share"]).all()
    assert (table["share"] <= table["high"]).all()
    complete = search.trials.query("status == 'COMPLETE' and seed == 0 and origin == 'sampler'")
    figure = drawn(importance_intervals(search))
    assert note_of(figure) == f"fANOVA on {len(complete)} complete proposals"
    assert figure.axes[0].get_yticklabels()[0].get_text() == "optim.learning_rate"


def test_importances_are_withheld_where_too_few_proposals_are_complete(tmp_path: Path):
    run = load_run(write_search(tmp_path / "few", 24))
    assert len(proposed(run)) < MIN_PROPOSALS
    assert importances(run).empty
    assert importance_intervals(run) is None
    assert f"at least {MIN_PROPOSALS} are needed" in too_few(run)


def test_what_rises_and_falls_together_is_left_out(search: Run):
    settings = {"model.d_model", "optim.learning_rate", "optim.beta1"}
    assert settings <= {*weighed(search)}
    assert "model.n_heads" not in weighed(search), "only the six differ in it"
    tied = search.trials.assign(**{"optim.beta1": search.trials["optim.learning_rate"] ** 2})
    kept = weighed(replace(search, trials=tied))
    assert settings & {*kept} == {"model.d_model"}


def test_a_setting_that_follows_from_another_is_no_parameter(search: Run):
    ranges: dict[str, Any] = parameters(search)
    assert "model.d_model" in ranges
    assert "model.d_ff" not in ranges
    assert {"optim.weight_decay", "optim.beta1"} <= set(ranges), "both differ in every proposal"
    assert ranges["optim.learning_rate"].log
    assert (ranges["data.batch_size"].low, ranges["data.batch_size"].high) == (2, 32)
    assert ranges["optim.schedule"].choices == ("constant", "cosine", "linear")


def test_rungs_tell_who_was_stopped_and_how_well_they_tell_the_end(tmp_path: Path):
    run = load_run(write_search(tmp_path / "search", 40))
    table = rungs(run)
    states = run.trials["status"].value_counts()
    assert [*table.index] == ["a quarter", "half"]
    assert [*table["trials"]] == [40, states["COMPLETE"]]
    assert [*table["stopped"]] == [states["PRUNED"], 0]
    assert [*table["n"]] == [states["COMPLETE"]] * 2
    assert [*table["rank_correlation"]] == pytest.approx([1, 1])
    turned = run.rows["heldout_loss"].where(run.rows["step"] != 500, -run.rows["heldout_loss"])
    table = rungs(replace(run, rows=run.rows.assign(heldout_loss=turned)))
    assert [*table["rank_correlation"]] == pytest.approx([-1, 1])
    assert table.loc["a quarter", "low"] < table.loc["a quarter", "high"] < -0.99


def test_a_search_that_stops_nobody_early_has_no_rungs(tmp_path: Path):
    run = load_run(write_search(tmp_path / "search", 12))
    run.experiment["search"]["scheduler"] = "none"
    assert rungs(run).empty
