"""What Ray Tune asks of a search and is told, by its own interfaces, without a cluster."""

import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from searches import TWO_AT_ONCE, Driver, append_row, complete, planned_rows, statuses, tiny_search

from quarterhour.tune.cluster.searcher import PruningScheduler, StateSearcher
from quarterhour.tune.cluster.trainable import from_param_space
from quarterhour.tune.ledger import TrialSpec
from quarterhour.tune.run_folder import Status


def begin(searcher: StateSearcher, trial_id: str) -> TrialSpec:
    config = searcher.suggest(trial_id)
    assert isinstance(config, dict)
    return from_param_space(config["trial"])


def test_no_more_trials_run_than_there_are_places(tmp_path: Path):
    driver = Driver(tiny_search(tmp_path), trials=3, resources=TWO_AT_ONCE)
    searcher = StateSearcher(driver.state)
    first, second = begin(searcher, "a"), begin(searcher, "b")
    assert searcher.suggest("c") is None
    complete(second, planned_rows(second)[-1])
    searcher.on_trial_complete("b")
    third = begin(searcher, "c")
    assert [spec.name for spec in (first, second, third)] == ["0000", "0001", "0002"]
    complete(first, planned_rows(first)[-1])
    searcher.on_trial_complete("a")
    assert searcher.suggest("d") == Searcher.FINISHED
    assert statuses(driver.search) == ["COMPLETE", "COMPLETE", "RUNNING"]


def test_a_failed_trial_has_its_errors_last_line_as_reason(tmp_path: Path):
    driver = Driver(tiny_search(tmp_path), trials=2)
    searcher = StateSearcher(driver.state)
    trial = begin(searcher, "a")
    append_row(trial, planned_rows(trial)[0])
    (trial.folder / "error.txt").write_text("Traceback\n  a line\nOSError: no such disk\n")
    searcher.on_trial_complete("a", error=True)
    result = trial.result()
    assert result
    assert (result.status, result.reason) == (Status.FAILED, "OSError: no such disk")
    assert result.metrics["step"] == 2
    assert begin(searcher, "b").name == "0001"


def test_a_trial_that_tune_stops_with_the_search_stays_open(tmp_path: Path):
    driver = Driver(tiny_search(tmp_path), trials=1)
    searcher = StateSearcher(driver.state)
    begin(searcher, "a")
    searcher.on_trial_complete("a")
    assert not driver.state.ended
    assert statuses(driver.search) == ["RUNNING"]
    assert Driver(driver.search, trials=1).run().trained == ["0000"]


@pytest.mark.parametrize(
    ("loss", "decision"), [(9.0, TrialScheduler.STOP), (1.0, TrialScheduler.CONTINUE)]
)
def test_tune_stops_a_trial_whose_row_is_in_the_worse_half(
    loss: float, decision: str, tmp_path: Path
):
    driver = Driver(tiny_search(tmp_path, scheduler="asha"), trials=8).run(at_most=6)
    assert driver.state.pruner
    scheduler, searcher = PruningScheduler(driver.state.pruner), StateSearcher(driver.state)
    config = searcher.suggest("a")
    assert isinstance(config, dict)
    trial = from_param_space(config["trial"])
    (row,) = planned_rows(trial, [loss])
    append_row(trial, row)
    told = scheduler.on_trial_result(None, SimpleNamespace(trial_id="a", config=config), row)
    assert told == decision
    assert statuses(driver.search)[6] == ("PRUNED" if loss == 9.0 else "RUNNING")


def test_tune_can_pickle_what_it_is_given(tmp_path: Path):
    state = Driver(tiny_search(tmp_path, scheduler="asha")).state
    assert state.pruner
    assert pickle.loads(pickle.dumps(StateSearcher(state)))
    assert pickle.loads(pickle.dumps(PruningScheduler(state.pruner)))
