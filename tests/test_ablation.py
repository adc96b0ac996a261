"""Effects of an ablation: their figures, their verdicts, their intervals, and the command."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_grid import quarterhour
from tiny import write_corpus

from quarterhour.analysis.chapters.ablation.effects import effects, fit_effects, rates
from quarterhour.analysis.chapters.ablation.section import (
    effects_figure,
    effects_table,
    half_normal,
    sentences,
)
from quarterhour.analysis.runs import Run, load_run
from quarterhour.search_spaces.designs import Design, build_design
from quarterhour.tune.ablation import describe_ablation
from quarterhour.tune.cli import main

FOUR = dict.fromkeys("abcd", (0, 1))


def made_up(
    design: Design, losses: dict[str, list[float]], variants: dict[str, Any] | None = None
) -> Run:
    """A run of the design's cells, or of their variants, with these held-out losses, one a seed."""
    keys = [(name, seed) for name, of_cell in losses.items() for seed in range(len(of_cell))]
    frame = pd.DataFrame(keys, columns=["configuration", "seed"])
    folder = Path("runs/made_up/a/seed0")
    ended: dict[str, Any] = {
        "status": "COMPLETE",
        "reason": None,
        "diverged": False,
        "steps_done": 4,
    }
    trials = frame.assign(**ended, folder=folder, **{"budget.steps": 4})
    rows = frame.assign(heldout_loss=[loss for of_cell in losses.values() for loss in of_cell])
    rows = rows.assign(step=4, tokens=4_000, flops=4e9, seconds=1.0)
    plain = {name: {"cell": name, "budget": "tokens:1M", "rate": 1.0} for name in losses}
    budgets = list(dict.fromkeys(told["budget"] for told in (variants or plain).values()))
    ablation = describe_ablation(design, budgets, variants or plain)
    experiment: dict[str, Any] = {"ablation": ablation, "data": {}}
    return Run(folder=Path("made_up"), experiment=experiment, trials=trials, rows=rows)


def noisy(
    design: Design, true: dict[str, float], rng: Any, seeds: int = 3
) -> dict[str, list[float]]:
    """Losses of these effects of single factors and of seeds that deviate by 0.05, by cell."""
    means = {
        name: 4 + sum(true[path] * level for path, level in cell.items())
        for name, cell in design.cells.items()
    }
    return {n: list(m + 0.05 * rng.standard_normal(seeds)) for n, m in means.items()}


def test_the_effect_is_the_contrast_of_means_with_the_pooled_noise():
    design = build_design("cross", {"a": (1, 2), "b": (1, 2)}, 4, {})
    losses = {"cell1": [4.0, 4.2], "cell2": [3.4, 3.6], "cell3": [3.0, 3.0], "cell4": [2.0, 2.4]}
    table = effects(made_up(design, losses)).set_index("effect")
    assert table.loc["a 1 → 2", "difference"] == pytest.approx((3.0 + 2.2) / 2 - (4.1 + 3.5) / 2)
    assert table.loc["b 1 → 2", "difference"] == pytest.approx((3.5 + 2.2) / 2 - (4.1 + 3.0) / 2)
    assert set(table["freedom"]) == {4}
    noise = np.sqrt((0.02 + 0.02 + 0 + 0.08) / 4)
    half = 2.7764 * noise * np.sqrt(1 / 4 + 1 / 4)  # of two means of four trials
    width = table["high"] - table["difference"]
    assert width.to_numpy() == pytest.approx([half] * 3, rel=1e-4)


def test_one_at_a_time_compares_with_the_reference():
    design = build_design("one-at-a-time", {"a": (1,), "b": (2,)}, 4, {})
    losses = {"reference": [4.0, 4.1, 3.9], "a=1": [3.0, 3.1, 2.9], "b=2": [4.0, 4.1, 3.95]}
    run = made_up(design, losses)
    table = effects(run).set_index("effect")
    assert table["difference"].to_dict() == pytest.approx({"a=1": -1.0, "b=2": 0.05 / 3})
    assert table["verdict"].to_dict() == {"a=1": "lowers the loss", "b=2": "within seed noise"}
    begun, found, detectable, after = sentences(run)
    assert begun == "Design one-at-a-time of 3 cells; 9 trials, 3.6e+10 training FLOPs."
    assert "1 of 2 effects are more than seed noise (Holm's correction for all" in found
    assert found.endswith("a=1 -1.000.")
    assert "--around runs/made_up/a/seed0 --free a --budget tokens:1M" in after
    assert "(6 degrees of freedom)" in detectable
    assert half_normal(run) is None


def test_one_seed_gives_effects_without_verdicts_and_says_why():
    design = build_design("cross", {"a": (1, 2), "b": (1, 2)}, 4, {})
    run = made_up(design, {"cell1": [4.0], "cell2": [3.4], "cell3": [3.0], "cell4": [2.0]})
    assert set(effects(run)["verdict"]) == {"one seed: cannot be judged"}
    assert effects(run)["low"].isna().all()
    said = sentences(run)
    assert said[1] == "At tokens:1M, the largest effect is a 1 → 2: -1.200 nats."
    assert "--seeds 3, trains two more" in said[2]
    assert effects_figure(run)


def test_without_a_cell_there_are_no_effects():
    design = build_design("cross", {"a": (1, 2), "b": (1, 2)}, 4, {})
    run = made_up(design, {"cell1": [4.0, 4.1], "cell2": [3.4, 3.5]})
    assert effects(run).empty
    assert "effects cannot be told yet: trials are missing." in sentences(run)[1]
    assert effects_figure(run) is None


def test_the_table_and_the_figures_of_a_screen():
    design = build_design("fraction", FOUR, 4, {})
    true = {"a": -0.5, "b": 0.2, "c": 0.0, "d": 0.0}
    run = made_up(design, noisy(design, true, np.random.default_rng(0)))
    table = effects_table(run)
    assert list(table.cells["effect"][:2]) == ["a 0 → 1", "b 0 → 1"]
    assert list(table.frame["verdict"][:2]) == ["lowers the loss", "raises the loss"]
    assert table.cells["tokens:1M, as trained"][0].startswith("-0.5")
    assert "c × d" in "; ".join(table.cells["aliases"])
    assert "Benjamini and Hochberg" in table.notes[0]
    assert effects_figure(run)
    assert half_normal(run)


TWO = build_design("cross", {"a": (1, 2), "b": (1, 2)}, 4, {})


def test_equal_losses_of_all_seeds_tell_no_noise():
    run = made_up(
        TWO, {"cell1": [4.0, 4.0], "cell2": [3.4] * 2, "cell3": [3.0] * 2, "cell4": [2] * 2}
    )
    assert set(effects(run)["verdict"]) == {"no spread: cannot be judged"}
    assert "Seeds make no difference" in sentences(run)[2]


def test_effects_of_several_budgets_stand_beside_each_other():
    budgets = ("tokens:1M", "tokens:4M")
    variants = {
        f"{cell}-{budget}": {"cell": cell, "budget": budget, "rate": 1.0}
        for budget in budgets
        for cell in TWO.cells
    }
    shift = {"tokens:1M": 1.0, "tokens:4M": -1.0}
    losses = {
        name: [4 + shift[told["budget"]] * TWO.cells[told["cell"]]["a"] + s for s in (0, 0.1)]
        for name, told in variants.items()
    }
    run = made_up(TWO, losses, variants)
    table = effects(run).set_index(["budget", "effect"])["difference"]
    assert table["tokens:1M", "a 1 → 2"] == pytest.approx(1)
    assert table["tokens:4M", "a 1 → 2"] == pytest.approx(-1)
    assert list(effects_table(run).cells) == ["effect", *(f"{b}, as trained" for b in budgets)]
    assert effects_figure(run)
    del losses["cell1-tokens:4M"]
    assert {*effects(made_up(TWO, losses, variants))["budget"]} == {"tokens:1M"}


def test_each_cell_is_compared_at_its_own_best_learning_rate():
    variants = {
        f"{cell}-lr{rate:g}": {"cell": cell, "budget": "tokens:1M", "rate": rate}
        for cell in TWO.cells
        for rate in (0.5, 1.0, 2.0)
    }
    losses = {
        name: [told["rate"] if told["cell"] != "cell4" else 5 - told["rate"]] * 2
        for name, told in variants.items()
    }
    losses["cell1-lr1"] = [0.1, 0.2]
    losses["cell2-lr0.5"] = [0.4]  # its other seed failed
    run = made_up(TWO, losses, variants)
    best = rates(run).loc[rates(run)["best"]].set_index("cell")
    assert best["rate"].to_dict() == {"cell1": 1.0, "cell2": 1.0, "cell3": 0.5, "cell4": 2.0}
    assert best["at_edge"].to_dict() == {
        "cell1": False, "cell2": False, "cell3": True, "cell4": True
    }  # fmt: skip
    assert effects(run).set_index("effect").loc["a 1 → 2", "difference"] == pytest.approx(
        (0.5 + 3.0) / 2 - (0.15 + 1.0) / 2
    )
    told = " ".join(sentences(run))
    assert "of cell3 at tokens:1M (x0.5), cell4 at tokens:1M (x2)." in told


def test_costs_that_differ_are_compared_at_equal_flops_too():
    run = made_up(TWO, {f"cell{n}": [4.0, 4.1] for n in (1, 2, 3, 4)})
    early = run.rows.assign(step=1, flops=1e9, heldout_loss=5.0)
    rows = pd.concat([early, run.rows], ignore_index=True)
    rows.loc[rows["configuration"].isin(["cell3", "cell4"]), "flops"] *= 2
    table = effects(replace(run, rows=rows)).set_index(["at", "effect"])["difference"]
    assert table["as trained", "a 1 → 2"] == pytest.approx(0)
    # At 4 GFLOPs those of 8 are half way between 2 and 8, on a log scale.
    assert table["equal FLOPs", "a 1 → 2"] == pytest.approx((5 - 4.05) / 2)
    notes = effects_table(replace(run, rows=rows)).notes
    assert "read off the curves where the cheapest trial of the budget ends" in notes[1]


@pytest.mark.slow
def test_over_made_up_runs_intervals_cover_and_false_discoveries_are_rare():
    rng = np.random.default_rng(0)
    design = build_design("fraction", FOUR, 4, {})
    true = {"a": -0.5, "b": 0.1, "c": 0.0, "d": 0.0}
    covered: list[bool] = []
    false_shares: list[float] = []
    described = describe_ablation(design, [], {})
    for _ in range(2_000):
        trials = pd.DataFrame(noisy(design, true, rng)).melt(var_name="cell", value_name="loss")
        table = fit_effects(described, trials, "loss").set_index("effect")
        expected = pd.Series({f"{path} 0 → 1": effect for path, effect in true.items()})
        expected = expected.reindex(table.index).fillna(0.0)
        covered += list((table["low"] < expected) & (expected < table["high"]))
        found = table["verdict"] != "within seed noise"
        false_shares.append(float((found & (expected == 0)).sum() / max(1, found.sum())))
    assert 0.93 < np.mean(covered) < 0.97
    assert np.mean(false_shares) < 0.05


@pytest.mark.slow
def test_an_ablation_is_trained_told_and_goes_on_with_more_seeds(tmp_path: Path):
    write_corpus(tmp_path / "tiny.jsonl")
    command = ["ablate", "baseline", "--vary", "model.n_layers=1,2", "--vary"]
    command += ["optim.learning_rate=6e-4,2.4e-3", "--corpus", "tiny.jsonl", "--design", "cross"]
    command += ["--budget", "steps:6", "--name", "a"]
    output, errors = (first := quarterhour(tmp_path, *command)).communicate()
    assert (first.returncode, errors) == (0, "")
    assert "One seed a cell" in output
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs/a").rglob("result.json")}
    assert len(before) == 4
    output, errors = quarterhour(tmp_path, *command, "--seeds", "2", "--json").communicate()
    answer = json.loads(output)
    assert {"run", "trials", "effects"} < answer.keys()
    assert [told["at"] for told in answer["effects"]] == ["as trained"] * 3 + ["equal FLOPs"] * 3
    assert "effects are more than seed noise" in errors
    assert "8 of 8 trials complete" in errors
    assert before == {p: p.stat().st_mtime_ns for p in before}
    run = load_run(tmp_path / "runs/a")
    assert {*run.trials["model.n_layers"]} == {1, 2}
    other = [*command[:-4], "--budget", "steps:7", "--name", "a"]
    _, errors = (refused := quarterhour(tmp_path, *other)).communicate()
    assert refused.returncode == 2
    assert "was made with ablation.budget steps:6, and this is steps:7" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vary", "model.d_model=64,100"], "model.d_model 100 cannot be built: model.n_heads"),
        (["--vary", "modl.x=1"], "modl.x 1 cannot be built: unknown key 'modl.x'"),
        (["--vary", "model.n_layers=1", "--budget", "5"], "--budget is '5'"),
        (["--vary", "model.n_layers=1", "--budget", "steps:9,steps:9"], "has steps:9 twice"),
        (["--vary", "optim.learning_rate=1e-3", "--tune-lr"], "its own optim.learning_rate"),
        ([], "Missing option '--vary'"),
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
    monkeypatch.setattr("sys.argv", ["quarterhour", "ablate", "baseline", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
