"""Effects of an ablation: their figures, their verdicts, their intervals, and the command."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_grid import quarterhour
from tiny import write_corpus

from quarterhour.analysis.chapters.ablation import (
    effects,
    effects_figure,
    effects_table,
    half_normal,
    sentences,
)
from quarterhour.analysis.runs import Run, load_run
from quarterhour.search_spaces.designs import Design, build_design
from quarterhour.tune.ablation import described
from quarterhour.tune.cli import main

FOUR = dict.fromkeys("abcd", (0, 1))


def made_up(design: Design, losses: dict[str, list[float]]) -> Run:
    """A run of the design's cells with these held-out losses, one a seed."""
    keys = [(name, seed) for name, of_cell in losses.items() for seed in range(len(of_cell))]
    frame = pd.DataFrame(keys, columns=["configuration", "seed"])
    trials = frame.assign(status="COMPLETE")
    rows = frame.assign(heldout_loss=[loss for of_cell in losses.values() for loss in of_cell])
    experiment: dict[str, Any] = {"ablation": described(design, "tokens:1M"), "search": None}
    return Run(folder=Path("made_up"), experiment=experiment, trials=trials, rows=rows)


def noisy(design: Design, true: dict[str, float], rng: Any, seeds: int = 3) -> Run:
    """Losses of these effects of single factors and of seeds that deviate by 0.05."""
    means = {
        name: 4 + sum(true[path] * level for path, level in cell.items())
        for name, cell in design.cells.items()
    }
    return made_up(
        design, {n: list(m + 0.05 * rng.standard_normal(seeds)) for n, m in means.items()}
    )


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
    begun, detectable = sentences(run)
    assert "1 of 2 effects are more than seed noise (Holm's correction for all" in begun
    assert begun.endswith("a=1 -1.000.")
    assert "(6 degrees of freedom)" in detectable
    assert half_normal(run) is None


def test_one_seed_gives_effects_without_verdicts_and_says_why():
    design = build_design("cross", {"a": (1, 2), "b": (1, 2)}, 4, {})
    run = made_up(design, {"cell1": [4.0], "cell2": [3.4], "cell3": [3.0], "cell4": [2.0]})
    assert set(effects(run)["verdict"]) == {"one seed: cannot be judged"}
    assert effects(run)["low"].isna().all()
    said = sentences(run)
    assert "The largest effect is a 1 → 2: -1.200 nats." in said[0]
    assert "--seeds 3, trains two more" in said[1]
    assert effects_figure(run)


def test_without_a_cell_there_are_no_effects():
    design = build_design("cross", {"a": (1, 2), "b": (1, 2)}, 4, {})
    run = made_up(design, {"cell1": [4.0, 4.1], "cell2": [3.4, 3.5]})
    assert effects(run).empty
    assert "Effects cannot be told yet: trials are missing." in sentences(run)[0]
    assert effects_figure(run) is None


def test_the_table_and_the_figures_of_a_screen():
    design = build_design("fraction", FOUR, 4, {})
    run = noisy(design, {"a": -0.5, "b": 0.2, "c": 0, "d": 0}, np.random.default_rng(0))
    table = effects_table(run)
    assert list(table.cells["effect"][:2]) == ["a 0 → 1", "b 0 → 1"]
    assert list(table.cells["verdict"][:2]) == ["lowers the loss", "raises the loss"]
    assert table.cells["p corrected"][0] == "<0.001"
    assert "c × d" in "; ".join(table.cells["aliases"])
    assert "Benjamini and Hochberg" in table.notes[0]
    assert effects_figure(run)
    assert half_normal(run)


@pytest.mark.slow
def test_over_made_up_runs_intervals_cover_and_false_discoveries_are_rare():
    rng = np.random.default_rng(0)
    design = build_design("fraction", FOUR, 4, {})
    true = {"a": -0.5, "b": 0.1, "c": 0.0, "d": 0.0}
    covered: list[bool] = []
    false_shares: list[float] = []
    for _ in range(2_000):
        table = effects(noisy(design, true, rng)).set_index("effect")
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
    assert len(answer["effects"]) == 3
    assert "effects are more than seed noise" in errors
    assert "8 of 8 trials complete" in errors
    assert before == {p: p.stat().st_mtime_ns for p in before}
    run = load_run(tmp_path / "runs/a")
    assert len(effects(run)) == 3
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
