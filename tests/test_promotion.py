"""A promotion: who goes on by its rule, what its table tells, and the command."""

import json
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_grid import quarterhour
from test_runs import write_experiment
from tiny import write_corpus

from quarterhour.analysis.chapters.promotion.results import (
    cost_of_all,
    going_on,
    ranked_folders,
    stages,
    standings,
)
from quarterhour.analysis.chapters.promotion.section import ranks, sentences, standings_table
from quarterhour.analysis.runs import Run, load_run
from quarterhour.tune.cli import main
from quarterhour.tune.foreign import DamagedError
from quarterhour.tune.promotion import Rule

BUDGETS = ["tokens:1M", "tokens:4M", "tokens:16M"]


def made_up(losses: list[Mapping[str, list[float]]], **rule: Any) -> Run:
    """A run in which candidates had these losses at each stage; a NaN has failed."""
    told: dict[str, Any] = {"budgets": BUDGETS, "keep": [2, 1], "seeds": [2, 2, 2], "margin": None}
    trials = [
        {"configuration": f"{name}-{budget.replace(':', '-')}", "seed": seed, "heldout_loss": loss}
        for budget, stage in zip(BUDGETS, losses, strict=False)
        for name, of_name in stage.items()
        for seed, loss in enumerate(of_name)
    ]
    frame = pd.DataFrame(trials)
    failed = frame["heldout_loss"].isna()
    ended: dict[str, Any] = {
        "reason": None, "diverged": False, "steps_done": 4, "budget.steps": 4,
        "adopted_from": None, "folder": None,
    }  # fmt: skip
    status = np.where(failed, "FAILED", "COMPLETE")
    table = frame[["configuration", "seed"]].assign(**ended, status=status)
    budget = frame["configuration"].str.extract(r"(\d+)M$")[0].astype(float)
    rows = frame.assign(step=4, flops=budget * 1e9, seconds=budget * 2)
    experiment: dict[str, Any] = {
        "promotion": told | rule,
        "configurations": list(dict.fromkeys(frame["configuration"])),
        "data": {},
    }
    return Run(folder=Path("made_up"), experiment=experiment, trials=table, rows=rows)


FIRST = {"a": [4.0, 4.1], "b": [4.2, 4.3], "c": [4.25, 4.35], "d": [6.0, 6.1]}


def outcomes(run: Run, stage: int) -> dict[str, str]:
    table: Any = standings(run)
    return dict(table.loc[table["stage"] == stage, ["candidate", "outcome"]].to_numpy())


def test_the_best_go_on_and_who_cannot_be_told_from_the_last_of_them():
    run = made_up([FIRST])
    # s = 0.0707 with 4 degrees of freedom: 2.776 s sqrt(1/2 + 1/2) = 0.196.
    assert outcomes(run, 0) == {
        "a": "goes on", "b": "goes on", "c": "goes on, within noise of the last", "d": "dropped",
    }  # fmt: skip
    assert going_on(run, 0) == ["a", "b", "c"]
    half = standings(run)["high"] - standings(run)["mean"]
    assert half.to_numpy() == pytest.approx([2.7764 * 0.05**0.5 / 10 / 2**0.5 * 10**0.5] * 4, 1e-3)


def test_a_margin_takes_the_place_of_noise():
    assert going_on(made_up([FIRST], margin=0.01), 0) == ["a", "b"]
    assert going_on(made_up([FIRST], margin=2.0), 0) == ["a", "b", "c", "d"]


def test_without_a_second_seed_the_best_alone_go_on_and_it_is_said():
    run = made_up([{name: losses[:1] for name, losses in FIRST.items()}])
    assert going_on(run, 0) == ["a", "b"]
    assert "One seed each: nothing says how much is seed noise." in sentences(run)[1]


def test_who_fails_is_dropped_and_ranks_nowhere():
    run = made_up([FIRST | {"a": [3.0, np.nan]}])
    assert outcomes(run, 0)["a"] == "dropped: a trial failed"
    assert "a" not in going_on(run, 0)
    assert "failed: a" in sentences(run)[1]
    assert standings_table(run).cells.set_index("candidate").loc["a", BUDGETS[0]] == "failed"


def test_a_stage_that_has_not_ended_decides_nothing():
    run = made_up([FIRST])
    run.trials.loc[0, "status"] = "STOPPED"
    assert standings(run).empty
    assert going_on(run, 0) == []
    assert ranks(run) is None
    assert sentences(run)[1] == "The first stage has not ended."


SECOND = {"a": [3.5, 3.6], "b": [3.0, 3.1], "c": [2.0, 2.1]}
THIRD = {"c": [1.0, 1.1]}


def test_the_winner_and_what_a_stricter_rule_would_have_done():
    run = made_up([FIRST, SECOND, THIRD])
    assert going_on(run, 1) == ["c"]
    assert outcomes(run, 2) == {"c": "wins"}
    told = " ".join(sentences(run))
    assert "The winner c had rank 3 at tokens:1M, 1 at tokens:4M: without the allowance" in told
    assert "it would have been dropped at tokens:1M." in told
    assert "Spent 6.4e+10 training FLOPs and 128 device-seconds" in told
    assert cost_of_all(run) == {"flops": 4 * 16e9 * 2, "seconds": 4 * 32 * 2}
    assert ranks(run)
    shown = standings_table(run).cells
    assert list(shown["candidate"]) == ["c", "b", "a", "d"]
    assert list(shown["outcome"]) == [
        "wins", "dropped at tokens:4M", "dropped at tokens:4M", "dropped at tokens:1M"
    ]  # fmt: skip


def test_stages_tell_noise_correlation_and_cost():
    table: Any = stages(
        made_up([{**FIRST, "e": [4.3, 4.4]}, SECOND | {"e": [1.0, 1.1]}], keep=[4, 1])
    )
    assert list(table["candidates"]) == [5, 4]
    assert list(table["go_on"]) == [4, 1]
    assert table["rank_correlation"][0] == pytest.approx(-1)
    assert table["noise"].to_numpy() == pytest.approx(0.05**0.5 / 10**0.5, rel=1e-6)
    assert list(table["flops"]) == [10e9, 32e9]


def test_a_candidate_that_comes_later_may_displace_another():
    run = made_up(
        [{**FIRST, "e": [1.0, 1.1], "f": [1.0, 1.1]}, {**SECOND, "e": [1, 1], "f": [2, 2]}]
    )
    assert going_on(run, 0) == ["e", "f"]
    assert outcomes(run, 1) == {"e": "goes on", "f": "dropped"}


@given(
    st.lists(st.floats(1, 9), min_size=2, max_size=12),
    st.integers(1, 12),
    st.floats(0, 2) | st.none(),
)
def test_at_least_the_best_go_on_and_nobody_before_a_better(
    means: list[float], keep: int, margin: float | None
):
    losses = {f"c{n}": [mean, mean + 0.1] for n, mean in enumerate(means)}
    run = made_up([losses], keep=[keep, 1], margin=margin)
    on = going_on(run, 0)
    assert len(on) >= min(keep, len(means))
    kept = [losses[name][0] for name in on]
    assert all(mean >= max(kept) for name, (mean, _) in losses.items() if name not in on)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"budgets": ("tokens:1M",)}, "give two or more of one kind"),
        ({"budgets": ("tokens:1M", "steps:9", "steps:10")}, "give two or more of one kind"),
        ({"budgets": ("tokens:4M", "tokens:1M", "tokens:9M")}, "each must be above the last"),
        ({"budgets": ("tokens:4", "x", "tokens:9M")}, "--budgets is 'x': it must be one of"),
        ({"keep": (4, 2, 1)}, "--keep has 3 numbers: give 2, how many go on from each budget"),
        ({"keep": (1, 2)}, "it must fall, and be at least 1"),
        ({"seeds": (1, 2)}, "give 3 numbers of at least 1, one a budget"),
        ({"margin": -1.0}, "--margin is -1.0: it must be at least 0"),
    ],
)
def test_what_is_no_rule_is_refused(rule: dict[str, Any], message: str):
    good: dict[str, Any] = {"budgets": tuple(BUDGETS), "keep": (2, 1), "seeds": (1, 1, 1)}
    with pytest.raises(ValueError, match=message):
        Rule(**(good | rule))


COMMAND = (
    *("--budgets", "steps:5,steps:10", "--keep", "1", "--margin", "0", "--seeds", "1,2"),
    *("--corpus", "tiny.jsonl"),
)


@pytest.mark.slow
def test_a_promotion_is_stopped_goes_on_and_takes_a_candidate_later(tmp_path: Path):
    write_corpus(tmp_path / "tiny.jsonl")
    command = ["promote", "baseline", "low_lr", *COMMAND]
    stopped, run = quarterhour(tmp_path, *command), tmp_path / "runs/promotion"
    while not [*run.rglob("result.json")]:
        assert stopped.poll() is None, stopped.communicate()
        time.sleep(0.05)
    stopped.send_signal(signal.SIGINT)
    stopped.communicate()
    before = {p: p.stat().st_mtime_ns for p in run.rglob("result.json")}
    output, errors = (again := quarterhour(tmp_path, *command)).communicate()
    assert (again.returncode, errors) == (0, "")
    assert "mean held-out loss go on (1 from steps:5)" in " ".join(output.split())
    assert before == {p: p.stat().st_mtime_ns for p in before}
    names = ["baseline-steps-5", "low_lr-steps-5", "baseline-steps-10"]
    assert sorted(path.name for path in run.iterdir() if path.is_dir()) == sorted(names)
    assert len(load_run(run).trials) == 4, "no trial waits that will not be trained"
    later = quarterhour(tmp_path, "promote", "baseline", "low_lr", "high_lr", *COMMAND, "--json")
    answer = json.loads(later.communicate()[0])
    assert later.returncode == 0
    winner = [row for row in answer["standings"] if row["outcome"] == "wins"]
    assert [row["candidate"] for row in winner] == ["high_lr"]
    assert len(answer["trials"]) == 5
    assert ranked_folders(load_run(run))[0].parent.name == "high_lr-steps-10"
    other = quarterhour(tmp_path, *command[:-4], "--seeds", "2", *COMMAND[-2:])
    errors = other.communicate()[1]
    assert other.returncode == 2
    assert "was made with promotion.seeds [1, 2], and this is [2, 2]" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["baseline"], "baseline-steps-10 is alone: give two or more candidates"),
        (["baseline", "nosuch"], "unknown configuration 'nosuch'"),
        (["baseline", "twin.py:twins"], "are the same point: leave one of them out"),
        (["baseline", "low_lr", "--keep", "x"], "--keep is 'x': it must be whole numbers"),
    ],
)
def test_bad_input_ends_in_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "tiny.jsonl")
    (tmp_path / "twin.py").write_text("twins = {'twin': {}}\n")
    monkeypatch.setattr("sys.argv", ["quarterhour", "promote", *COMMAND, *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["budgets", "keep", "seeds"])
def test_a_received_rule_with_another_number_of_stages_is_damage(tmp_path: Path, name: str):
    told: dict[str, Any] = {"budgets": BUDGETS, "keep": [2, 1], "seeds": [2, 2, 2], "margin": None}
    run = write_experiment(tmp_path / "run", ["a-tokens-1M"], promotion=told | {name: []})
    with pytest.raises(DamagedError, match="another number of stages in each list"):
        load_run(run)
    good = write_experiment(tmp_path / "good", ["a-tokens-1M"], promotion=told)
    assert sentences(load_run(good))[1] == "The first stage has not ended."
