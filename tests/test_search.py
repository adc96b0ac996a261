"""The search as a user runs it: to its end, stopped, steered, killed."""

import json
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from kill import kill_until_done
from searches import ONE_AT_ONCE
from test_answer import HEAD
from test_answer import SEARCH as SEARCH_FORM
from test_grid import quarterhour
from tiny import write_corpus

from quarterhour.analysis.chapters.search.results import search_results, seed_comparison
from quarterhour.analysis.runs import load_run
from quarterhour.model.optim import Schedule
from quarterhour.search_spaces.budget import SearchBudget
from quarterhour.search_spaces.reference import SIX
from quarterhour.tune.experiment import ExperimentRequest
from quarterhour.tune.machine import cpu_count
from quarterhour.tune.run_reader import read_rows
from quarterhour.tune.search.first_points import starting_points
from quarterhour.tune.search.settings import SearchRequest, build_search, read_search

SEARCH = ("search", "--corpus", "tiny.jsonl")


def words(text: str) -> str:
    return " ".join(text.split())


def any_trial_has_just_begun(run: Path) -> bool:
    """Whether one has a row, and most of its 16 steps before it."""
    unended = (path for path in run.glob("[0-9]*") if not (path / "result.json").exists())
    return any(0 < len(read_rows(path)) < 3 for path in unended)


@pytest.mark.slow
def test_a_search_is_stopped_steered_and_goes_on_to_its_end(tmp_path: Path):
    write_corpus(tmp_path / "tiny.jsonl")
    command = [*SEARCH, "--budget", "steps:16", "--name", "mine", "--trials"]
    run = tmp_path / "runs/mine"
    first = quarterhour(tmp_path, *command, "7")
    while len(read_rows(run / "0001")) < 3:
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    enqueue = quarterhour(tmp_path, "enqueue", "runs/mine", "optim.learning_rate=2e-3")
    assert enqueue.communicate()[1] == ""
    status = quarterhour(tmp_path, "status", "runs/mine")
    assert f"running, process {first.pid}" in status.communicate()[0]
    while not any_trial_has_just_begun(run):
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    first.send_signal(signal.SIGTERM)
    output, _ = first.communicate(timeout=30)
    assert first.returncode == 130
    assert "stopped; to go on: quarterhour search" in words(output)
    assert "STOPPED" in output
    assert "RUNNING" not in output
    ended = {path: path.stat().st_mtime_ns for path in run.rglob("result.json")}
    output, errors = (second := quarterhour(tmp_path, *command, "8")).communicate()
    assert (second.returncode, errors) == (0, "")
    assert ended == {path: path.stat().st_mtime_ns for path in ended}
    results = search_results(load_run(run))
    assert list(results.searched["origin"]) == [*SIX, "enqueued", "sampler"]
    assert results.searched.iloc[6]["optim.learning_rate"] == 2e-3
    comparison = seed_comparison(results)
    assert len(results.fresh) == 3 * len(comparison)
    assert set(comparison["n"]) == {3}
    assert "best of the six" in words(output)
    assert list(run.glob("[0-9]*/checkpoint.pt")) == [
        run / results.ranked().iloc[0]["configuration"] / "checkpoint.pt"
    ]


@pytest.mark.slow
def test_what_another_run_has_trained_is_adopted_at_no_cost(tmp_path: Path):
    write_corpus(tmp_path / "tiny.jsonl")
    cadence = ["budget.steps=12", "budget.report_every=1", "budget.eval_every=20"]
    settings = [word for assignment in cadence for word in ("--set", assignment)]
    command = ["run", "high_lr", "--corpus", "tiny.jsonl", "--name", "one", *settings]
    assert quarterhour(tmp_path, *command).communicate()[1] == ""
    command = [*SEARCH, "--budget", "steps:12", "--trials", "1", "--from", "runs/one"]
    command += ["--objective", "heldout_loss,train_loss", "--json"]
    answer = json.loads(quarterhour(tmp_path, *command).communicate()[0])
    assert answer.keys() == HEAD | SEARCH_FORM | {"stopped_because"}
    assert answer["exit_code"] == 0
    folder = next((tmp_path / "runs").glob("search-*"))
    result = json.loads((folder / "0000/result.json").read_text())
    assert result["adopted_from"] == "runs/one/high_lr/seed0"
    assert json.loads((folder / "0000/config.json").read_text())["origin"] == "high_lr"


@pytest.mark.slow
def test_all_places_are_filled_at_once(tmp_path: Path):
    write_corpus(tmp_path / "tiny.jsonl")
    share = str(cpu_count() / 4)
    command = [*SEARCH, "--budget", "steps:16", "--cpus-per-trial", share, "--name", "s"]
    search, run = quarterhour(tmp_path, *command), tmp_path / "runs/s"
    while not any(read_rows(trial) for trial in run.glob("[0-9]*")):
        assert search.poll() is None, search.communicate()
        time.sleep(0.05)
    assert len([*run.glob("[0-9]*")]) == 4
    search.send_signal(signal.SIGTERM)
    search.communicate(timeout=30)


@pytest.mark.slow
def test_killed_at_random_moments_nothing_is_lost_or_trained_twice(tmp_path: Path):
    torch.set_num_threads(1)
    toll = kill_until_done(tmp_path, kills=3, trials=3)
    assert len(toll.blows) == 3
    assert toll.trials >= 3
    assert (toll.lost, toll.trained_twice, toll.other_rows, toll.other_states) == (0, [], [], [])


def test_a_run_folder_is_named_after_what_is_not_the_default(tmp_path: Path):
    asked: Any = {
        "corpus": None, "tokenizer": None, "values": {"optim.beta1": 0.8}, "seeds": (0,),
        "resources": ONE_AT_ONCE, "runs": tmp_path,
    }  # fmt: skip
    run = ExperimentRequest(
        kind="run", chosen=("baseline",), profile="paper", protocol="as-run", name=None, **asked
    )
    assert run.folder == tmp_path / "run-baseline-paper-optim.beta1=0.8"
    search = SearchRequest(
        profile="quick", space="mine/space.py:one", budget="steps:8", objective="heldout_loss",
        scheduler=None, name=None, **asked,
    )  # fmt: skip
    assert search.folder == tmp_path / "search-mine_space.py-one-steps-8"
    assert replace(search, name="mine").folder == tmp_path / "mine"
    with pytest.raises(ValueError, match=r"--name is '\.\.': it must be a plain name"):
        replace(search, name="..")


def test_the_run_folder_tells_what_hyperparameters_range_over(tmp_path: Path):
    request = SearchRequest(
        space="open-ended", budget="steps:8", objective="heldout_loss", scheduler=None, seeds=(0,),
        name=None, runs=tmp_path, profile="quick", values={},
        corpus=str(write_corpus(tmp_path / "tiny.jsonl")), tokenizer=None,
        resources=ONE_AT_ONCE,
    )  # fmt: skip
    experiment, _ = build_search(request)
    domains = experiment.describe()["domains"]
    assert domains["optim.beta1"] == [0.8, 0.98]
    assert domains["optim.decay_fraction"] == [0.1, 0.9], "only some points have it"
    assert domains["optim.schedule"] == sorted(get_args(Schedule))
    assert domains["model.dropout"] == [0.0, 0.3]
    assert domains["optim.eps"] == [1e-8]
    assert domains["model.n_heads"][0] < domains["model.n_heads"][1], "it follows from the width"
    assert "budget.max_steps" not in domains


def test_a_search_around_a_trial_varies_what_is_free_and_is_read_again(tmp_path: Path):
    asked: Any = {
        "space": "open-ended", "objective": "heldout_loss", "scheduler": None, "seeds": (0,),
        "name": None, "runs": tmp_path, "profile": None, "values": {}, "tokenizer": None,
        "corpus": str(write_corpus(tmp_path / "tiny.jsonl")), "resources": ONE_AT_ONCE,
        "budget": None,
    }  # fmt: skip
    request = SearchRequest(around="high_lr", free=("optim.beta1",), **asked)
    assert request.folder == tmp_path / "search-around-high_lr-optim.beta1"
    experiment, search = build_search(request)
    assert list(search.reference) == ["high_lr"]
    assert search.budget == SearchBudget.same_tokens_as(experiment.configurations["high_lr"])
    assert starting_points(search, []) == [("high_lr", search.reference["high_lr"])]
    with experiment.opened():
        again = read_search(experiment.folder)
        assert again.reference == search.reference
        assert not again.why_outside(again.point({"optim.beta1": 0.9}))
        with pytest.raises(ValueError, match=r"optim\.beta2"):
            again.point({"optim.beta2": 0.9})
    with pytest.raises(ValueError, match="--free needs --around TRIAL"):
        replace(request, around=None)
    _, whole = build_search(replace(request, free=()))
    assert not whole.why_outside(whole.point({"optim.beta2": 0.9}))
    assert [*whole.reference] == ["high_lr"]
