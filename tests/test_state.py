import itertools
import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import BaseTrial, TrialState
from searches import (
    TWO_AT_ONCE,
    Driver,
    append_row,
    complete,
    die,
    diverge,
    loss_of,
    optuna_trials,
    planned_rows,
    proposals,
    run_out_of_memory,
    statuses,
    tiny_search,
)

from quarterhour.search_spaces.profiles import QUICK
from quarterhour.search_spaces.reference import SIX
from quarterhour.tune.run_folder import CONFIG, METRICS, QUEUE, RESULT, STUDY, Status
from quarterhour.tune.run_reader import read_rows
from quarterhour.tune.search.first_points import points_of, starting_points
from quarterhour.tune.search.queue import add_point, waiting_points
from quarterhour.tune.search.settings import Search
from quarterhour.tune.search.study import STATES

ENDINGS = [complete, diverge, run_out_of_memory, die]


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch):
    """The machine stays on."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def three_rates(trial: BaseTrial) -> dict[str, Any]:
    rates = [1e-3, 2e-3, 3e-3]
    return {"optim.learning_rate": trial.suggest_categorical("optim.learning_rate", rates)}


def states(driver: Driver) -> list[TrialState]:
    return [trial.state for trial in optuna_trials(driver.search)]


def expected_states(driver: Driver) -> list[TrialState]:
    results = [spec.result() for spec in driver.search.trials()]
    return [STATES[result.status] if result else TrialState.RUNNING for result in results]


def rungs(driver: Driver) -> dict[int, dict[str, float]]:
    assert driver.state.pruner
    return driver.state.pruner.rungs.values


def inodes(folder: Path) -> dict[Path, tuple[int, int]]:
    """What changes where a file below `folder` is written again."""
    stats = {path: path.stat() for path in folder.rglob("*.json*") if "elapsed" not in path.name}
    return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in stats.items()}


def test_the_six_come_first_and_then_what_the_sampler_proposes(tmp_path: Path):
    search = tiny_search(tmp_path)
    Driver(search, trials=9).run()
    specs = search.trials()
    assert [spec.origin for spec in specs] == [*SIX, "sampler", "sampler", "sampler"]
    assert [spec.name for spec in specs] == [f"{number:04d}" for number in range(9)]
    assert [spec.config for spec in specs[:6]] == list(search.reference.values())
    assert len({spec.key for spec in specs}) == 9
    assert {spec.config.budget.steps for spec in specs} == {8}


def test_optuna_has_the_state_values_and_parameters_of_every_folder_live_and_rebuilt(
    tmp_path: Path,
):
    search = tiny_search(tmp_path, scheduler="asha")
    driver = Driver(search, trials=20)
    endings = itertools.chain([complete] * 6, itertools.cycle(ENDINGS))
    for ending in itertools.islice(endings, 18):
        trial = driver.next()
        assert trial
        driver.end(trial, ending)
        assert states(driver) == expected_states(driver)
    assert driver.next()
    assert set(statuses(search)) == {*STATES, "RUNNING"}
    live, specs = optuna_trials(search), search.trials()
    assert live[-1].state is TrialState.RUNNING
    for trial, spec in zip(live[:-1], specs[:-1], strict=True):
        result, rows = spec.result(), read_rows(spec.folder)
        assert result
        assert trial.intermediate_values == {row["tokens"]: row["heldout_loss"] for row in rows}
        assert trial.params["optim.learning_rate"] == spec.config.optim.learning_rate
        assert trial.constraints == ({"memory": 1.0} if result.status is Status.INFEASIBLE else {})
        if result.status is Status.COMPLETE:
            assert trial.value == result.metrics["heldout_loss"]
    crashed = [number for number, spec in enumerate(specs) if (r := spec.result()) and r.crashed]
    again = Driver(search, trials=20)
    assert states(again) == expected_states(again)
    for number, (before, after) in enumerate(zip(live, optuna_trials(search), strict=True)):
        assert (after.params, after.constraints) == (before.params, before.constraints)
        if number in crashed:
            assert (before.state, after.state) == (TrialState.FAIL, TrialState.RUNNING)
        else:
            assert after.state == before.state
            assert after.intermediate_values == before.intermediate_values
            if after.state is TrialState.COMPLETE:
                assert after.value == before.value


@pytest.mark.parametrize("damage", ["lost", "garbage", "cut off", "old lock"])
def test_a_study_that_is_lost_or_damaged_costs_nothing(damage: str, tmp_path: Path):
    search = tiny_search(tmp_path)
    Driver(search, trials=8).run()
    before, journal = proposals(search), search.folder / STUDY
    match damage:
        case "lost":
            journal.unlink()
        case "garbage":
            journal.write_bytes(b"\x00garbage\n" * 10)
        case "cut off":
            journal.write_bytes(journal.read_bytes()[:-40])
        case _:
            Path(f"{journal}.lock").write_text("")
    again = Driver(search, trials=8)
    assert again.state.ended
    assert proposals(search) == before
    assert again.run().trained == []


@pytest.mark.parametrize("damage", ["lost", "garbage", "cut off", "a folder", "lock", "a link"])
def test_a_running_search_survives_what_becomes_of_its_journal(damage: str, tmp_path: Path):
    search = tiny_search(tmp_path)
    driver, journal = Driver(search, trials=9).run(at_most=7), search.folder / STUDY
    before = journal.read_bytes()
    (tmp_path / "mine").write_bytes(before)
    match damage:
        case "lost":
            journal.unlink()
        case "garbage":
            journal.write_bytes(b"\x00garbage\n" * 10)
        case "cut off":
            journal.write_bytes(before[:-40])
        case "a folder":
            journal.unlink()
            journal.mkdir()
        case "lock":
            Path(f"{journal}.lock").symlink_to(journal)
        case _:
            journal.unlink()
            journal.symlink_to(tmp_path / "mine")
    began = time.monotonic()
    assert driver.run().trained[7:] == ["0007", "0008"]
    assert time.monotonic() - began < 20, "it waited for a lock"
    assert statuses(search) == ["COMPLETE"] * 9
    assert (tmp_path / "mine").read_bytes() == before
    if damage != "a folder":
        assert journal.read_bytes().startswith(before)
        assert states(driver) == [TrialState.COMPLETE] * 9


def test_a_trial_that_was_interrupted_runs_before_any_other(tmp_path: Path):
    search = tiny_search(tmp_path)
    first = Driver(search, trials=9, resources=TWO_AT_ONCE)
    first.run(at_most=2)
    assert first.next()
    assert first.next()
    add_point(search.folder, replace(search.baseline, seed=0).with_values({"model.dropout": 0.1}))
    again = Driver(search, trials=9, resources=TWO_AT_ONCE)
    assert not again.state.ended
    begun = [again.next(), again.next()]
    assert [trial.name for trial in begun if trial] == ["0002", "0003"]
    assert again.next() is None
    assert states(again) == [TrialState.COMPLETE] * 2 + [TrialState.RUNNING] * 2


def test_no_more_trials_run_than_there_are_places(tmp_path: Path):
    driver = Driver(tiny_search(tmp_path), resources=TWO_AT_ONCE)
    first, second = driver.next(), driver.next()
    assert first
    assert second
    assert driver.next() is None
    driver.end(second)
    third = driver.next()
    assert third
    assert third.name == "0002"


def test_a_queued_point_is_next_after_the_six_and_leaves_the_queue(tmp_path: Path):
    search = tiny_search(tmp_path)
    driver = Driver(search, trials=9).run(at_most=7)
    points = [search.config_of({"model.dropout": dropout}) for dropout in (0.25, 0.125)]
    for point in [*points, points[0]]:
        add_point(search.folder, point)
    assert [config for _, config in waiting_points(search.folder)] == [*points, points[0]]
    driver.run()
    assert [spec.config for spec in search.trials()[7:9]] == points
    assert [spec.origin for spec in search.trials()[7:]] == ["enqueued"] * 2
    extended = Driver(search, trials=10).run()
    assert not waiting_points(search.folder)
    assert extended.search.trials()[-1].origin == "sampler"


def test_a_queued_point_that_was_begun_before_the_kill_is_not_begun_again(tmp_path: Path):
    search = tiny_search(tmp_path)
    Driver(search, trials=7).run(at_most=6)
    point = search.config_of({"model.dropout": 0.25})
    add_point(search.folder, point)
    (file,) = (search.folder / "queue").iterdir()
    content = file.read_text()
    killed = Driver(search, trials=8).next()
    assert killed
    assert not waiting_points(search.folder)
    file.write_text(content)
    Driver(search, trials=8).run()
    assert [spec.config == point for spec in search.trials()] == [False] * 6 + [True, False]


@pytest.mark.parametrize("scheduler", ["none", "asha"])
@pytest.mark.parametrize("stops", [[6, 1, 1], [3, 5]])
def test_a_search_that_was_stopped_proposes_what_an_undisturbed_one_does(
    scheduler: str, stops: list[int], tmp_path: Path
):
    whole = tiny_search(tmp_path / "whole", scheduler=scheduler)
    Driver(whole, trials=14).run()
    stopped = tiny_search(tmp_path / "stopped", scheduler=scheduler)
    for trials in stops:
        killed = Driver(stopped, trials=14).run(at_most=trials)
        assert killed.next()  # it is killed while this one trains
    Driver(stopped, trials=14).run()
    assert proposals(stopped) == proposals(whole)
    assert statuses(stopped) == statuses(whole)
    assert len({spec.key for spec in stopped.trials()}) == 14


def test_a_space_without_some_of_the_six_begins_with_the_others(tmp_path: Path):
    def rates(trial: BaseTrial) -> dict[str, Any]:
        return {"optim.learning_rate": trial.suggest_float("optim.learning_rate", 1e-4, 1e-2)}

    search = tiny_search(tmp_path, space=rates)
    driver = Driver(search, trials=6).run()
    assert [spec.origin for spec in search.trials()] == [
        "baseline", "high_lr", "low_lr", "sampler", "sampler", "sampler",
    ]  # fmt: skip
    assert driver.state.stopped_because is None


def test_another_seed_proposes_other_points(tmp_path: Path):
    searches = [tiny_search(tmp_path, f"seed{seed}", seed=seed) for seed in (0, 1)]
    for search in searches:
        Driver(search, trials=8).run()
    first, second = ([point for _, point in proposals(search)] for search in searches)
    assert first[:6] == second[:6]
    assert all(a != b for a, b in zip(first[6:], second[6:], strict=True))


def test_two_trials_that_run_at_once_are_not_the_same(tmp_path: Path):
    driver = Driver(tiny_search(tmp_path), first_points=[], resources=TWO_AT_ONCE)
    first, second = driver.next(), driver.next()
    assert first
    assert second
    assert first.key != second.key


def test_a_search_beside_another_adopts_what_is_finished_and_trains_the_rest(tmp_path: Path):
    one = tiny_search(tmp_path, "one")
    done = Driver(one, trials=8)
    for number in range(8):
        trial = done.next()
        assert trial
        done.end(trial, diverge if number == 2 else complete)
    other = tiny_search(tmp_path, "other", objectives=("heldout_loss", "tokens_per_second"))
    driver = Driver(
        other, trials=8, first_points=starting_points(other, points_of(other, one.folder))
    ).run()
    assert driver.trained == []
    assert statuses(other) == statuses(one)
    assert states(driver) == expected_states(driver)
    for ours, theirs in zip(other.trials(), one.trials(), strict=True):
        result = ours.result()
        assert result
        assert ours.key == theirs.key
        assert result.adopted_from == str(theirs.folder)
        assert read_rows(ours.folder) == read_rows(theirs.folder)
    assert [spec.origin for spec in other.trials()] == [*SIX, "one", "one"]
    front = [trial.values for trial in optuna_trials(other) if trial.values]
    assert all(len(values) == 2 for values in front)


def test_what_was_trained_elsewhere_for_a_time_is_not_adopted(tmp_path: Path):
    one = tiny_search(tmp_path, "one", budget="seconds:5")
    Driver(one, trials=6).run()
    other = tiny_search(tmp_path, "other", budget="seconds:5")
    driver = Driver(
        other, trials=6, first_points=starting_points(other, points_of(other, one.folder))
    ).run()
    assert len(driver.trained) == 6
    assert [spec.key for spec in other.trials()] == [spec.key for spec in one.trials()]


def test_what_was_stopped_early_or_failed_elsewhere_is_not_adopted(tmp_path: Path):
    one = tiny_search(tmp_path, "one")
    first = Driver(one, trials=6)
    for ending in (die, run_out_of_memory, complete):
        trial = first.next()
        assert trial
        first.end(trial, ending)
    assert first.next()
    other = tiny_search(tmp_path, "other")
    driver = Driver(
        other, trials=3, first_points=starting_points(other, points_of(other, one.folder))
    ).run()
    assert other.trials()[0].key == one.trials()[2].key
    assert driver.trained == ["0001", "0002"]


def test_sources_with_another_seed_budget_or_space_give_no_first_points(tmp_path: Path):
    one = tiny_search(tmp_path, "one")
    Driver(one, trials=7).run()
    again = tiny_search(tmp_path, "again")
    assert len(starting_points(again, points_of(again, one.folder))) == 7
    for other in (
        tiny_search(tmp_path, "seed", seed=1),
        tiny_search(tmp_path, "budget", budget="steps:9"),
    ):
        assert starting_points(other, points_of(other, one.folder)) == list(other.reference.items())
    rates = tiny_search(tmp_path, "rates", space=three_rates)
    assert starting_points(rates, points_of(rates, one.folder)) == []


def test_a_finished_search_does_nothing_at_its_next_start(tmp_path: Path):
    search = tiny_search(tmp_path, scheduler="asha")
    Driver(search, trials=12).run()
    before = inodes(search.folder)
    again = Driver(search, trials=12)
    assert again.state.ended
    assert again.next() is None
    assert inodes(search.folder) == before


def test_more_trials_extend_a_search_and_touch_nothing_finished(tmp_path: Path):
    search = tiny_search(tmp_path)
    Driver(search, trials=7).run()
    before = inodes(search.folder)
    assert Driver(search, trials=9).run().trained == ["0007", "0008"]
    assert inodes(search.folder).items() >= before.items()


def test_hours_are_counted_over_all_starts_and_begin_no_trial_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    now = 1_000.0
    monkeypatch.setattr("quarterhour.tune.search.limits.time.monotonic", lambda: now)
    search = tiny_search(tmp_path)
    driver = Driver(search, hours=1)
    for seconds in (1_500, 1_500):
        trial = driver.next()
        assert trial
        now += seconds
        driver.end(trial)
    now = 5.0  # the machine was started again
    driver = Driver(search, hours=1)
    assert not driver.state.ended
    trial = driver.next()
    assert trial
    now += 700
    driver.end(trial)
    assert driver.state.ended
    assert driver.next() is None
    assert not Driver(search, hours=1.1).state.ended
    assert Driver(search, hours=1).state.ended


def test_five_failures_in_a_row_stop_a_search_and_the_next_start_tries_them_again(tmp_path: Path):
    search = tiny_search(tmp_path)
    driver = Driver(search, trials=20)
    for ending in (die, complete, die, die, die, die):
        trial = driver.next()
        assert trial
        driver.end(trial, ending)
        assert driver.state.stopped_because is None
    trial = driver.next()
    assert trial
    driver.end(trial, die)
    assert driver.next() is None
    assert driver.state.ended
    assert driver.state.stopped_because == "the last 5 trials failed"
    assert states(driver).count(TrialState.FAIL) == 6
    again = Driver(search, trials=7).run()
    assert again.trained == ["0000", "0002", "0003", "0004", "0005", "0006"]
    assert set(statuses(search)) == {"COMPLETE"}


def test_diverged_trials_are_no_failures_that_stop_a_search(tmp_path: Path):
    driver = Driver(tiny_search(tmp_path), trials=8).run(diverge)
    assert driver.state.stopped_because is None
    assert statuses(driver.search) == ["FAILED"] * 8
    assert Driver(driver.search, trials=8).run().trained == []


def test_a_space_with_nothing_left_to_train_stops_the_search(tmp_path: Path):
    driver = Driver(tiny_search(tmp_path, space=three_rates), first_points=[]).run(at_most=9)
    assert driver.state.stopped_because == (
        "the last 50 points were known already or do not fit in memory or budget"
    )
    assert len(driver.trained) == 3
    assert {spec.key for spec in driver.search.trials()} == {
        driver.search.config_of({"optim.learning_rate": rate}).key("data")
        for rate in (1e-3, 2e-3, 3e-3)
    }


def test_a_disk_that_is_nearly_full_begins_no_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    driver = Driver(tiny_search(tmp_path), trials=9).run(at_most=2)
    usage = shutil.disk_usage("/")._replace(free=1_000_000)
    monkeypatch.setattr("quarterhour.tune.search.limits.shutil.disk_usage", lambda _: usage)
    assert driver.next() is None
    assert "its disk has less than" in str(driver.state.stopped_because)
    assert statuses(driver.search) == ["COMPLETE"] * 2


@pytest.fixture
def _little_memory(monkeypatch: pytest.MonkeyPatch):
    """A trial may be as wide as the baseline."""
    monkeypatch.setattr("quarterhour.tune.places.device_memory_bytes", lambda _: 96e9)
    monkeypatch.setattr(
        "quarterhour.tune.places.peak_bytes", lambda config, *_: config.model.d_model * 1e9
    )


@pytest.mark.usefixtures("_little_memory")
def test_a_point_that_cannot_fit_is_infeasible_without_training(tmp_path: Path):
    search = tiny_search(tmp_path)
    driver = Driver(search, trials=16).run()
    large = [spec.name for spec in search.trials() if spec.config.model.d_model > 96]
    assert large
    assert [spec.name for spec in search.trials() if spec.name not in large] == driver.trained
    for spec, trial in zip(search.trials(), optuna_trials(search), strict=True):
        infeasible = spec.name in large
        assert (statuses(search)[trial.number] == "INFEASIBLE") == infeasible
        assert (trial.constraints == {"memory": 1.0}) == infeasible
        assert (trial.state is TrialState.PRUNED) == infeasible
    before = proposals(search)
    Driver(search, trials=16)
    assert proposals(search) == before


def test_asha_stops_the_worse_half_of_the_samplers_trials_and_tells_why(tmp_path: Path):
    search = tiny_search(tmp_path, scheduler="asha")
    driver = Driver(search, trials=9)
    for _ in range(6):
        trial = driver.next()
        assert trial
        driver.end(trial, losses=[5, 4, 3, 2.5])
    bad, good, late = driver.next(), driver.next(), None
    assert bad
    driver.end(bad, losses=[6, 6, 6, 1.0])
    good = driver.next()
    assert good
    driver.end(good, losses=[4.5, 3.5, 2.0, 1.5])
    late = driver.next()
    assert late
    driver.end(late, losses=[4.4, 4.1, 1.0, 1.0])
    assert statuses(search)[6:] == ["PRUNED", "COMPLETE", "PRUNED"]
    results = [spec.result() for spec in search.trials()[6:]]
    assert [len(read_rows(spec.folder)) for spec in search.trials()[6:]] == [1, 4, 2]
    assert [result.metrics["heldout_loss"] for result in results if result] == [6, 1.5, 4.1]
    reason = "heldout_loss 6 after a quarter of the budget is in the worse half"
    assert results[0]
    assert results[0].reason == reason
    pruned = optuna_trials(search)[8]
    assert list(pruned.intermediate_values.values()) == [4.4, 4.1]


def test_reference_and_queued_trials_are_never_stopped_early(tmp_path: Path):
    search = tiny_search(tmp_path, scheduler="asha")
    driver = Driver(search, trials=8)
    for number in range(8):
        if number == 6:
            for dropout in (0.1, 0.2):
                add_point(search.folder, search.config_of({"model.dropout": dropout}))
        trial = driver.next()
        assert trial
        driver.end(trial, losses=[5 + number, 4 + number, 3 + number, 2 + number])
    assert statuses(search) == ["COMPLETE"] * 8
    assert [len(values) for values in rungs(driver).values()] == [8, 8]


def test_maximized_objectives_are_stopped_from_below(tmp_path: Path):
    search = tiny_search(tmp_path, scheduler="asha", objectives=("tokens_per_second",), seed=3)
    Driver(search, trials=16).run()
    speeds = {spec.name: 1e4 / spec.config.model.d_model for spec in search.trials()}
    pruned = {
        spec.name for spec in search.trials() if (r := spec.result()) and r.status == "PRUNED"
    }
    assert pruned
    assert max(speeds, key=lambda name: speeds[name]) not in pruned
    six = sorted(speeds[f"{number:04d}"] for number in range(6))
    assert all(speeds[name] < six[-1] for name in pruned)


def test_ashas_rungs_are_the_same_after_a_restart(tmp_path: Path):
    search = tiny_search(tmp_path, scheduler="asha")
    driver = Driver(search, trials=24)
    endings = itertools.chain([complete] * 8, itertools.cycle([complete, diverge, complete]))
    for ending in itertools.islice(endings, 24):
        trial = driver.next()
        assert trial
        driver.end(trial, ending)
    assert len(rungs(driver)[1]) == 24
    assert 6 < len(rungs(driver)[2]) < 24
    again = Driver(search, trials=24)
    assert rungs(again) == rungs(driver)


def test_a_trial_killed_between_a_quarter_and_its_judgement_is_judged_at_the_next_start(
    tmp_path: Path,
):
    search = tiny_search(tmp_path, scheduler="asha")
    driver = Driver(search, trials=10).run(at_most=6)
    for losses in ([90], [1]):
        trial = driver.next()
        assert trial
        for row in planned_rows(trial, losses):
            append_row(trial, row)
        driver = Driver(search, trials=10)
    assert statuses(search)[6:] == ["PRUNED", "RUNNING"]
    assert states(driver)[6:] == expected_states(driver)[6:]


def test_ashas_rungs_have_the_rows_of_adopted_trials(tmp_path: Path):
    one = tiny_search(tmp_path, "one")
    Driver(one, trials=8).run()
    other = tiny_search(tmp_path, "other", scheduler="asha")
    driver = Driver(
        other, trials=8, first_points=starting_points(other, points_of(other, one.folder))
    ).run()
    losses = {spec.name: loss_of(spec.config) for spec in other.trials()}
    for rung, values in rungs(driver).items():
        above = (4 - rung) / 2
        assert values == {name: pytest.approx(loss + above) for name, loss in losses.items()}


def test_only_the_best_keeps_its_checkpoint(tmp_path: Path):
    search = tiny_search(tmp_path)
    driver = Driver(search, trials=12)
    for _ in range(12):
        trial = driver.next()
        assert trial
        driver.end(trial)
        losses = {spec.name: loss_of(spec.config) for spec in search.trials()}
        kept = {path.parent.name for path in search.folder.rglob("checkpoint.pt")}
        assert kept == {name for name, loss in losses.items() if loss == min(losses.values())}


def test_a_trial_that_crashed_keeps_its_checkpoint_to_be_tried_again(tmp_path: Path):
    search = tiny_search(tmp_path)
    driver = Driver(search, trials=2)
    trial = driver.next()
    assert trial
    (trial.folder / "checkpoint.pt").write_text("weights")
    driver.end(trial, die)
    assert statuses(search) == ["FAILED"]
    driver.end(driver.next() or trial)
    again = Driver(search, trials=2).next()
    assert again
    assert (again.folder / "checkpoint.pt").read_text() == "weights"


def test_checkpoints_of_running_trials_are_left_alone(tmp_path: Path):
    search = tiny_search(tmp_path)
    driver = Driver(search, trials=12, resources=TWO_AT_ONCE)
    running, other = driver.next(), driver.next()
    assert running
    assert other
    (running.folder / "checkpoint.pt").write_text("weights")
    (running.folder / "checkpoint.previous.pt").write_text("weights")
    driver.end(other)
    Driver(search, trials=12)
    assert len(list(running.folder.glob("checkpoint*.pt"))) == 2


def test_several_objectives_give_a_pareto_front_with_its_checkpoints(tmp_path: Path):
    search = tiny_search(tmp_path, objectives=("heldout_loss", "tokens_per_second"))
    driver = Driver(search, trials=14)
    for number in range(14):
        trial = driver.next()
        assert trial
        driver.end(trial, {3: diverge, 4: run_out_of_memory}.get(number, complete))
    assert states(driver) == expected_states(driver)
    values = {t.number: t.values for t in optuna_trials(search) if t.values}
    assert values.keys() == {*range(14)} - {3, 4}
    front = {
        number
        for number, (loss, speed) in values.items()
        if not any(
            other[0] <= loss and other[1] >= speed and other != [loss, speed]
            for other in values.values()
        )
    }
    assert len(front) > 1
    assert {int(p.parent.name) for p in search.folder.rglob("checkpoint.pt")} == front
    before = values
    Driver(search, trials=14)
    assert {t.number: t.values for t in optuna_trials(search) if t.values} == before


def test_a_folder_that_was_being_made_when_the_search_was_killed_is_taken_again(tmp_path: Path):
    search = tiny_search(tmp_path)
    Driver(search, trials=3).run()
    (search.folder / "0003").mkdir()
    (search.folder / "0003" / ".config.json.1.tmp").write_text("{")
    assert Driver(search, trials=5).run().trained == ["0003", "0004"]
    assert [spec.origin for spec in search.trials()] == list(SIX)[:5]


def test_a_cut_off_last_row_is_no_row(tmp_path: Path):
    search = tiny_search(tmp_path, scheduler="asha")
    driver = Driver(search, trials=2).run(at_most=1)
    trial = driver.next()
    assert trial
    rows = [json.dumps(row) for row in planned_rows(trial)[:2]]
    (trial.folder / METRICS).write_text(rows[0] + "\n" + rows[1][:-9])
    again = Driver(search, trials=2)
    assert [len(values) for values in rungs(again).values()] == [2, 1]
    assert states(again.run()) == [TrialState.COMPLETE] * 2


def test_a_point_that_asha_stopped_is_not_trained_again(tmp_path: Path):
    search = tiny_search(tmp_path, space=three_rates, scheduler="asha")
    good = search.config_of({"optim.learning_rate": 1e-3})
    driver = Driver(search, first_points=[("good", good)])
    losses = {1e-3: [4.0, 3, 2, 1], 2e-3: [6.0, 5, 4, 3], 3e-3: [5.0, 4, 3, 2]}
    while trial := driver.next():
        driver.end(trial, losses=losses[trial.config.optim.learning_rate])
    assert len(driver.trained) == 3
    assert statuses(search)[:2] == ["COMPLETE", "PRUNED"]
    assert states(driver) == expected_states(driver)
    for spec in search.trials()[3:]:
        first = next(other for other in search.trials() if other.key == spec.key)
        result, theirs = spec.result(), first.result()
        assert result
        assert theirs
        assert (result.status, result.metrics) == (theirs.status, theirs.metrics)
        assert result.adopted_from == str(first.folder)


def test_a_search_of_which_nothing_fits_in_memory_ends_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("quarterhour.tune.places.device_memory_bytes", lambda _: 1e6)
    search = tiny_search(tmp_path)
    driver = Driver(search)
    assert driver.next() is None
    assert "do not fit in memory" in str(driver.state.stopped_because)
    assert set(statuses(search)) == {"INFEASIBLE"}
    assert states(driver) == expected_states(driver)


def test_a_point_for_which_the_budget_is_too_small_is_infeasible(tmp_path: Path):
    search = tiny_search(tmp_path, budget="tokens:9k", reference={"baseline": QUICK.baseline})
    driver = Driver(search, trials=9, first_points=[]).run()
    assert driver.state.ended
    for spec, trial in zip(search.trials(), optuna_trials(search), strict=True):
        result = spec.result()
        assert result
        tokens = spec.config.data.batch_size * spec.config.data.seq_len
        if tokens * 4 > 9_000:
            assert result.status is Status.INFEASIBLE
            assert "it must be at least 4" in str(result.reason)
            assert trial.constraints == {"memory": 1.0}
        else:
            assert result.status is Status.COMPLETE
            assert spec.config.budget.steps == 9_000 // tokens
    assert set(statuses(search)) == {"INFEASIBLE", "COMPLETE"}
    before = proposals(search)
    assert Driver(search, trials=9).run().trained == []
    assert proposals(search) == before


def test_a_space_is_evaluated_once_a_trial(tmp_path: Path):
    evaluated: list[dict[str, Any]] = []

    def space(trial: BaseTrial) -> dict[str, Any]:
        evaluated.append(three_rates(trial))
        return evaluated[-1]

    search = tiny_search(tmp_path, space=space)
    point = search.config_of({"optim.learning_rate": 2e-3})
    driver = Driver(search, trials=2, first_points=[("given", point)]).run()
    assert len(driver.search.trials()) == len(evaluated) == 2


def test_a_point_that_cannot_be_built_stops_the_search_with_its_reason(tmp_path: Path):
    def space(trial: BaseTrial) -> dict[str, Any]:
        beta1 = trial.suggest_float("optim.beta1", 0.8, 0.98)
        return {"optim.beta1": beta1, "optim.warmup_fraction": 1.5 if beta1 > 0.9 else 0.0}

    search = tiny_search(tmp_path, space=space)
    for _ in range(2):
        driver = Driver(search, trials=60, first_points=[]).run()
        assert "optim.warmup_fraction is 1.5" in str(driver.state.stopped_because)
        assert set(statuses(search)) <= {"COMPLETE"}


def test_points_of_several_sources_come_once_and_the_six_by_their_names(tmp_path: Path):
    one, two = tiny_search(tmp_path, "one"), tiny_search(tmp_path, "two")
    Driver(one, trials=8).run()
    Driver(two, trials=4).run()
    search = tiny_search(tmp_path, "search")
    points = starting_points(
        search, [point for run in (one, two, one) for point in points_of(search, run.folder)]
    )
    assert sorted(origin for origin, _ in points) == sorted([*SIX, "one", "one"])
    assert Driver(search, trials=8, first_points=points).run().trained == []
    assert len({spec.key for spec in search.trials()}) == 8


def test_a_trial_with_a_budget_in_seconds_is_in_the_rungs_of_the_next_start_by_its_own_quarters(
    tmp_path: Path,
):
    one = tiny_search(tmp_path, "one", budget="seconds:60", scheduler="asha")
    driver = Driver(one, trials=2)
    for _ in range(2):
        trial = driver.next()
        assert trial
        driver.end(trial)
    assert [len(values) for values in rungs(driver).values()] == [2, 2]
    assert rungs(Driver(one, trials=2)) == rungs(driver)


@pytest.mark.parametrize("damaged", [CONFIG, RESULT, METRICS])
def test_a_damaged_trial_is_told_and_left_alone_and_the_search_goes_on(
    damaged: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    search = tiny_search(tmp_path)
    Driver(search, trials=8).run()
    file = search.trials()[3].folder / damaged
    file.write_text('{"heldout_loss": \n')
    before = inodes(search.folder)
    again = Driver(search, trials=10).run()
    (line,) = set(capsys.readouterr().err.splitlines())
    assert line.startswith(f"quarterhour: {file}")
    assert not {"0003"} & {*again.trained}
    names = [path.name for path in sorted(search.folder.glob("0*"))]
    assert names == [f"{number:04d}" for number in range(len(names))]
    assert inodes(search.folder).items() >= before.items()
    keys = [json.loads(path.read_text())["key"] for path in search.folder.glob(f"*/{RESULT}")
            if path.parent.name != "0003"]  # fmt: skip
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("value", [None, "x", [1], float("nan"), 10**400, [[1]]])
def test_a_complete_trial_without_the_objective_is_told_and_left_alone(
    value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    search = tiny_search(tmp_path)
    Driver(search, trials=8).run()
    file = search.trials()[3].folder / RESULT
    result = json.loads(file.read_text())
    result["metrics"]["heldout_loss"] = value
    file.write_text(json.dumps(result))
    again = Driver(search, trials=9).run()
    (line,) = set(capsys.readouterr().err.splitlines())
    assert line.startswith(f"quarterhour: {file} ")
    assert again.state.ended
    assert "0003" not in again.trained


def test_the_key_of_a_damaged_trial_is_not_trained_again(tmp_path: Path):
    search = tiny_search(tmp_path, space=three_rates)
    Driver(search, trials=3, first_points=[]).run()
    (search.trials()[1].folder / RESULT).write_text("")
    assert Driver(search, trials=3).run().trained == []


@pytest.mark.parametrize("name", ["0002 (copy)", "0099", "00002", "2", "notes"])
def test_a_copy_of_a_trials_folder_is_somebody_elses(name: str, tmp_path: Path):
    search = tiny_search(tmp_path)
    Driver(search, trials=8).run()
    specs = search.trials()
    shutil.copytree(search.folder / "0002", search.folder / name)
    again = Driver(search, trials=8)
    assert search.trials() == specs
    assert again.state.ended


def test_optunas_trials_have_the_numbers_of_their_folders(tmp_path: Path):
    search = tiny_search(tmp_path)
    Driver(search, trials=8).run()
    shutil.rmtree(search.folder / "0002")
    driver = Driver(search, trials=8)
    assert driver.next()
    has_folder = {int(path.name) for path in search.folder.glob("0*")}
    numbered = {t.number: t for t in optuna_trials(search)}
    assert {n for n, t in numbered.items() if t.params} == has_folder
    for spec in search.trials():
        rate = numbered[int(spec.name)].params["optim.learning_rate"]
        assert rate == spec.config.optim.learning_rate
    assert len(list(search.folder.glob("0*/checkpoint.pt"))) == 1
    best = min(has_folder - {8}, key=lambda n: numbered[n].value or 9)
    assert (search.folder / f"{best:04d}/checkpoint.pt").exists()


def test_bad_files_in_the_queue_are_told_and_wait_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    search = tiny_search(tmp_path)
    good = search.point({"optim.learning_rate": 2.5e-3})
    add_point(search.folder, good)
    queue = search.folder / QUEUE
    bad = {"000000-a.json": "", "000000-b.json": "[]", "000000-c.json": '{"model": 3}'}
    bad |= {"000000-d.json": "[" * 100_000}
    for name, content in (bad | {"notes.json": "mine"}).items():
        (queue / name).write_text(content)
    driver = Driver(search, trials=8).run()
    assert driver.state.stopped_because is None
    assert good in [spec.config for spec in search.trials()]
    assert {path.name for path in queue.iterdir()} == {*bad, "notes.json"}
    told = {*capsys.readouterr().err.splitlines()}
    assert len(told) == len(bad)
    assert all(any(name in line for line in told) for name in bad)
    add_point(search.folder, good)
    assert len(waiting_points(search.folder)) == 1


def test_a_queued_point_that_is_none_of_the_search_is_refused_and_the_search_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    search = tiny_search(tmp_path)
    good = search.point({"optim.learning_rate": 2.5e-3})
    bad = {
        "outside the search space: The value 0.5": {"optim.beta1": 0.5},
        "outside the search space: The value 100": {"data.seq_len": 100},
        "its budget, seed or precision is not that of the search": {"budget.max_steps": 3},
        "its budget, seed or precision is not that of the": {"seed": 1},
    }
    for config in [*(good.with_values(values) for values in bad.values()), good]:
        add_point(search.folder, config)
    driver = Driver(search, trials=8).run()
    assert driver.state.stopped_because is None
    assert [spec.origin for spec in search.trials()][6:] == ["enqueued", "sampler"]
    assert search.trials()[6].config == good
    told = capsys.readouterr().err.splitlines()
    refused = sorted((search.folder / QUEUE).iterdir())
    for line, reason, file in zip(told, bad, refused, strict=True):
        assert line.startswith(f"quarterhour: {file.with_suffix('')} is not trained: {reason}")
        assert file.suffix == ".refused"


def on_machine(search: Search, name: str, sharing: int) -> Search:
    place = {"versions": {}, "git_commit": None, "hardware": {"name": name}}
    return replace(search, provenance=place, sharing=sharing)


@pytest.mark.parametrize(("machine", "sharing", "adopts"), [
    ("this", 1, True), ("this", 2, False), ("other", 1, False)
])  # fmt: skip
def test_a_figure_of_the_machine_is_adopted_from_equal_hardware_and_sharing_alone(
    machine: str, sharing: int, adopts: bool, tmp_path: Path
):
    objectives = ("heldout_loss", "tokens_per_second")
    first, second = (tiny_search(tmp_path, name, objectives=objectives) for name in "ab")
    first, second = on_machine(first, "this", 1), on_machine(second, machine, sharing)
    Driver(first, trials=2).run()
    assert bool(points_of(second, first.folder)) == adopts
    driver = Driver(second, trials=2).run()
    assert driver.trained == ([] if adopts else ["0000", "0001"])
    plain = replace(on_machine(tiny_search(tmp_path, "c"), "other", 1), sharing=None)
    assert Driver(plain, trials=2).run().trained == []
