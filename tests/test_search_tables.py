from typing import Any

import pytest
from made_up import write_search
from shown import drawn, note_of

from quarterhour.analysis.chapters.search.figures import importance_bars
from quarterhour.analysis.chapters.search.tables import importances, parameters
from quarterhour.analysis.runs import Run, load_run


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A search of forty trials, some pruned, and its best with fresh seeds."""
    return load_run(write_search(tmp_path_factory.mktemp("search") / "search", 40, fresh=True))


def test_importance_is_that_of_the_setting_that_decides(search: Run):
    table = importances(search)
    assert table["heldout_loss"].idxmax() == "optim.learning_rate"
    assert table["heldout_loss"].sum() == pytest.approx(1)
    complete = search.trials.query("status == 'COMPLETE' and seed == 0")
    assert set(table["trials"]) == {len(complete)}
    note = note_of(drawn(importance_bars(search)))
    assert note == f"fANOVA on {len(complete)} complete trials"


def test_a_setting_that_follows_from_another_is_no_parameter(search: Run):
    ranges: dict[str, Any] = parameters(search)
    assert "model.d_model" in ranges
    assert "model.d_ff" not in ranges
    assert {"optim.weight_decay", "optim.beta1"} <= set(ranges), "both differ in every proposal"
    assert ranges["optim.learning_rate"].log
    assert (ranges["data.batch_size"].low, ranges["data.batch_size"].high) == (2, 32)
    assert ranges["optim.schedule"].choices == ("constant", "cosine", "linear")
