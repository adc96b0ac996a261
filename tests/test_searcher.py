"""What Ray Tune asks of a search and is told, by its own interfaces, without a cluster."""

import errno
import os
import pickle
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune as ray_tune
from ray.air.execution._internal import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune import TuneError
from ray.tune.execution import tune_controller
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from searches import (
    TWO_AT_ONCE,
    Driver,
    append_row,
    complete,
    measured,
    planned_rows,
    statuses,
    tiny_search,
)
from tiny import tiny_config

from quarterhour.tune.cluster.fit import MAX_FAILURES, FailureCallback, NoTrialStartsError, fit
from quarterhour.tune.cluster.searcher import PruningScheduler, StateSearcher
from quarterhour.tune.cluster.trainable import from_param_space, to_param_space
from quarterhour.tune.ledger import TrialSpec
from quarterhour.tune.run_folder import CONFIG, METRICS, RESULT, Status


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


@pytest.mark.parametrize("damaged", [CONFIG, METRICS, RESULT])
@pytest.mark.parametrize("scheduler", ["none", "asha"])
def test_a_trial_that_is_damaged_while_it_trains_is_told_and_stops_no_other(
    scheduler: str, damaged: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    budget = "seconds:60" if damaged == CONFIG else "steps:8"  # only such a trial is read again
    search = tiny_search(tmp_path, scheduler=scheduler, budget=budget)
    driver = Driver(search, trials=8).run(at_most=6)
    searcher = StateSearcher(driver.state)
    spec = begin(searcher, "a")
    (row, *_, last) = planned_rows(measured(spec) if damaged == CONFIG else spec)
    append_row(spec, row)
    (spec.folder / damaged).write_text('{"heldout_loss":\n')
    if pruner := driver.state.pruner:
        trial = SimpleNamespace(trial_id="a", config={"trial": to_param_space(spec)})
        PruningScheduler(pruner).on_trial_result(None, trial, row)
    if damaged != RESULT:
        complete(spec, last)
    searcher.on_trial_complete("a", error=damaged == RESULT)
    if not (damaged == CONFIG and scheduler == "none"):
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"quarterhour: {spec.folder / damaged}")
    driver.run()
    assert driver.state.ended
    assert (search.folder / "0007" / RESULT).exists()


def test_where_no_trial_can_start_all_fail_with_the_reason(tmp_path: Path):
    driver = Driver(tiny_search(tmp_path), trials=3, resources=TWO_AT_ONCE)
    searcher = StateSearcher(driver.state)
    begin(searcher, "a")
    begin(searcher, "b")
    searcher.fail_all("ImportError: no module")
    assert driver.state.ended
    results = [spec.result() for spec in driver.search.trials()]
    reasons = [(result.status, result.reason) for result in results if result]
    assert reasons == [(Status.FAILED, "ImportError: no module")] * 3


def failed_attempt(folder: Path, error: Exception, failures: int = 1) -> SimpleNamespace:
    """A trial as Tune has it after an error."""
    spec = tiny_search(folder).trial(0, tiny_config(), "baseline")
    (folder / "error").write_bytes(pickle.dumps(error))
    return SimpleNamespace(
        config={"trial": to_param_space(spec)},
        pickled_error_file=str(folder / "error"),
        run_metadata=SimpleNamespace(num_failures=failures),
    )


def test_a_trial_whose_process_died_waits_longer_each_time(tmp_path: Path):
    callback, trial = FailureCallback(), failed_attempt(tmp_path, RayActorError())
    callback.on_trial_start(0, [], trial)
    waits: list[float] = []
    for failures in (1, 2):
        trial.run_metadata.num_failures = failures
        callback.on_trial_recover(0, [], trial)
        waits.append(trial.config["pause"])
    assert 0 < waits[0] < waits[1]
    callback.on_trial_error(0, [], trial)
    result = from_param_space(trial.config["trial"]).result()
    assert result
    assert result.reason == "its process died, perhaps for want of memory"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_trial_waits_for_a_full_disk(number: int, tmp_path: Path):
    full = OSError(number, os.strerror(number), "metrics.jsonl")
    callback, trial = FailureCallback(), failed_attempt(tmp_path, full)
    callback.on_trial_start(0, [], trial)
    callback.on_trial_recover(0, [], trial)
    assert trial.config["pause"] > 0
    assert not from_param_space(trial.config["trial"]).result()


def test_what_ends_tune_is_raised_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "result.json")

    @contextmanager
    def no_ray(_: object) -> Generator[str]:
        yield str(tmp_path)

    def ends(_: object) -> None:
        try:
            raise full
        except OSError:
            raise TuneError("a traceback")  # noqa: B904 (as Tune does)

    monkeypatch.setattr("quarterhour.tune.cluster.fit.connected", no_ray)
    monkeypatch.setattr(ray_tune.Tuner, "fit", ends)
    monkeypatch.setattr(ray_tune.Tuner, "__init__", lambda *_, **__: None)
    monkeypatch.setattr(ray_tune, "with_parameters", lambda trainable, **_: trainable)
    nothing: Any = SimpleNamespace(folder=tmp_path)
    with pytest.raises(OSError, match=r"No space left on device: 'result.json'$"):
        fit(nothing, TWO_AT_ONCE, nothing, nothing)


def test_an_error_of_a_process_before_its_trial_is_that_of_all(tmp_path: Path):
    cannot_import = RayActorError(error_msg="Traceback\nImportError: x", actor_init_failed=True)
    trial = failed_attempt(tmp_path, cannot_import)
    with pytest.raises(NoTrialStartsError, match=r"^ImportError: x$"):
        FailureCallback().on_trial_recover(0, [], trial)
    callback = FailureCallback()
    callback.on_trial_start(0, [], trial)
    callback.on_trial_recover(0, [], trial)
    assert "pause" not in trial.config
    died = failed_attempt(tmp_path, RayActorError())
    callback = FailureCallback()
    for _ in range(MAX_FAILURES):
        callback.on_trial_recover(0, [], died)
    with pytest.raises(NoTrialStartsError, match="its process died before it began"):
        callback.on_trial_recover(0, [], died)


def test_what_rays_memory_monitor_kills_is_to_tune_a_process_that_died(
    monkeypatch: pytest.MonkeyPatch,
):
    seen: list[Exception] = []
    handle = "_actor_task_failed"
    monkeypatch.setattr(RayActorManager, handle, lambda _, __, error: seen.append(error))
    manager = tune_controller.RayActorManager.__new__(tune_controller.RayActorManager)
    for error in (OutOfMemoryError("95 %"), other := RayActorError()):
        getattr(manager, handle)(None, error)
    assert isinstance(seen[0], RayActorError)
    assert "95 %" in str(seen[0])
    assert seen[1] is other


def test_tune_can_pickle_what_it_is_given(tmp_path: Path):
    state = Driver(tiny_search(tmp_path, scheduler="asha")).state
    assert state.pruner
    assert pickle.loads(pickle.dumps(StateSearcher(state)))
    assert pickle.loads(pickle.dumps(PruningScheduler(state.pruner)))
