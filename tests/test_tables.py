from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from test_runs import COMPLETE, write_experiment, write_trial

from quarterhour.analysis.chapters.paper.comparison import (
    Comparison,
    beside_published,
    render,
    write_csv,
)
from quarterhour.analysis.chapters.paper.tables import TABLES, mean_over_seeds, summarise
from quarterhour.analysis.runs import load_run

STEPS = 8
LOSSES = np.array([9.0, 8.0, 6.0, 7.0, 5.0, 4.0, 3.5, 3.0])
SECONDS = np.array([50.0, 0.3, 0.5, 0.2, 0.4, 0.9, 0.1, 0.6])
EIGHT_STEPS = {"budget.steps": STEPS, "budget.eval_every": 3}


def windows(ends: tuple[int, ...] = (1, 2, 4, 6, 7, 8), **figures: float) -> list[dict[str, Any]]:
    """Rows of a trial of eight steps, evaluated at steps 1, 4, 7 and 8, as their windows end."""
    rows: list[dict[str, Any]] = []
    for start, end in zip((0, *ends), ends, strict=False):
        row = {
            "step": end,
            "window_steps": end - start,
            "train_loss": LOSSES[start:end].mean(),
            "train_loss_last": LOSSES[end - 1],
            "step_seconds": SECONDS[start:end].mean(),
            "step_seconds_std": SECONDS[start:end].std(),
            "peak_memory_bytes": 1_000_000_000 + end,
            "trials_on_device": 1,
        }
        if end in (1, 4, 7, 8):
            row |= {
                "eval_loss": 10.0 - end,
                "eval_accuracy": end / 100,
                "eval_perplexity": 1000.0 - end,
                "train_batch_accuracy": end / 10,
                "train_batch_perplexity": 100.0 - end,
                "train_batch_confidence": end / 20,
                "train_batch_top5_accuracy": 0.2 + end / 10,
            }
        rows.append(row | figures)
    return rows


def study_rows(**figures: float) -> list[dict[str, Any]]:
    """The rows of a trial of 2,000 steps that the tables need."""
    first, *_, evaluated, last = windows()
    ends = {"step": 1}, {"step": 1601, "window_steps": 1600}, {"step": 2000, "window_steps": 399}
    rows = zip((first, evaluated, last), ends, strict=True)
    return [row | end | figures for row, end in rows]


def printed(comparison: Comparison) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(render(comparison))
    return capture.get()


def table(comparisons: list[Comparison], name: str) -> Comparison:
    return next(comparison for comparison in comparisons if comparison.name == name)


def test_figures_have_the_studys_definitions(tmp_path: Path):
    run = write_experiment(tmp_path / "run", ["baseline"])
    write_trial(run, "baseline", windows(), result=COMPLETE, values=EIGHT_STEPS)
    summary = summarise(load_run(run)).iloc[0].to_dict()
    assert summary == {
        "configuration": "baseline",
        "seed": 0,
        "status": "COMPLETE",
        "d_model": 384,
        "n_heads": 6,
        "n_layers": 12,
        "batch_size": 8,
        "learning_rate": 3e-4,
        "seq_len": 512,
        "total_tokens": 8 * 512 * STEPS,
        "train_loss": 3.0,
        "eval_loss": 3.0,
        "accuracy": 0.7,
        "perplexity": 93.0,
        "confidence": 0.35,
        "initial_top5": pytest.approx(0.3),
        "final_top5": pytest.approx(0.9),
        "initial_val_loss": 9.0,
        "val_accuracy": 0.07,
        "val_perplexity": 993.0,
        "early_loss": pytest.approx(LOSSES[:2].mean()),
        "late_loss": pytest.approx(LOSSES[-2:].mean()),
        "steps_per_second": pytest.approx(1 / SECONDS[1:].mean()),
        "step_time_mean_s": pytest.approx(SECONDS[1:].mean()),
        "step_time_std_s": pytest.approx(SECONDS[1:].std()),
        "peak_memory_bytes": 1_000_000_008,
        "trials_on_device": 1,
    }


def test_a_trial_that_stops_early_lacks_its_end_and_nothing_else(tmp_path: Path):
    run = write_experiment(tmp_path / "run", ["baseline"])
    stops = EIGHT_STEPS | {"budget.max_steps": 3}
    write_trial(run, "baseline", windows((1, 2, 3)), result=COMPLETE, values=stops)
    loaded = load_run(run)
    summary = summarise(loaded).iloc[0]
    missing = {"train_loss", "eval_loss", "accuracy", "perplexity", "confidence", "final_top5"}
    missing |= {"val_accuracy", "val_perplexity", "late_loss"}
    assert set(summary.index[summary.isna()]) == missing
    assert summary["total_tokens"] == 8 * 512 * 3
    assert summary["step_time_mean_s"] == pytest.approx(SECONDS[1:3].mean())
    performance = table(beside_published(loaded), "performance")
    assert performance.unfinished["baseline"] == "seed 0 COMPLETE at step 3 of 8"
    assert "stopped after 3 of 8 steps" in performance.not_comparable["baseline"]
    assert printed(performance).count("missing") == 4


def test_a_quarter_whose_windows_are_not_all_there_has_no_mean(tmp_path: Path):
    run = write_experiment(tmp_path / "run", ["baseline"])
    write_trial(run, "baseline", windows((1, 4, 8)), values=EIGHT_STEPS)
    assert summarise(load_run(run))[["early_loss", "late_loss"]].isna().all(axis=None)


def test_a_loss_that_is_no_number_is_no_figure(tmp_path: Path):
    run = write_experiment(tmp_path / "run", ["baseline"])
    rows = windows()
    rows[-1] |= {"train_loss": float("nan"), "train_loss_last": float("nan")}
    diverged = COMPLETE | {"diverged": True}
    write_trial(run, "baseline", rows, result=diverged, values=EIGHT_STEPS)
    loaded = load_run(run)
    assert summarise(loaded)[["train_loss", "late_loss"]].isna().all(axis=None)
    unfinished = table(beside_published(loaded), "performance").unfinished["baseline"]
    assert unfinished == "seed 0 COMPLETE and diverged at step 8 of 8"


def test_ours_is_the_mean_of_the_complete_seeds(tmp_path: Path):
    run = write_experiment(tmp_path / "run", ["baseline", "high_lr", "low_lr"], seeds=3)
    failed = {"status": "FAILED", "reason": "out of memory", "diverged": False}
    for seed, loss in enumerate((2.0, 3.0, 7.0)):
        rows = study_rows(train_loss_last=loss)
        write_trial(run, "baseline", rows, seed=seed, result=COMPLETE)
        write_trial(run, "high_lr", rows, seed=seed, result=failed if seed == 1 else COMPLETE)
    performance = table(beside_published(load_run(run)), "performance")
    assert performance.heading == "Table 2 · Performance · mean of 2 to 3 seeds"
    assert performance.ours["train_loss"].dropna().to_dict() == {"baseline": 4.0, "high_lr": 4.5}
    assert performance.seeds.to_dict() == {"baseline": 3, "high_lr": 2, "low_lr": 0}
    text = " ".join(printed(performance).split())
    assert "high_lr seed 1 FAILED at step 2,000 of 2,000: out of memory" in text
    assert "low_lr seed 0 WAITING; seed 1 WAITING; seed 2 WAITING" in text


def test_a_mean_is_over_no_fewer_seeds_than_it_says():
    summary = pd.DataFrame(
        {"configuration": "a", "status": "COMPLETE", "train_loss": [1.0, float("nan")]}
    )
    means = mean_over_seeds(summary)
    assert means.loc["a", "seeds"] == 2
    assert np.isnan(means.loc["a", "train_loss"])


def six_of_the_quick_kind(folder: Path) -> Path:
    names = ["baseline", "high_lr", "low_lr", "large_batch", "short_seq", "small_model"]
    data = {"corpus": "builtin", "tokenizer": "builtin", "train_documents": 480}
    run = write_experiment(
        folder, [*names, "a.longer=name,that.the=study,does.not=have"], data=data
    )
    for name in names:
        values = {"model.d_model": 96, "model.vocab_size": 8192, "data.seq_len": 128}
        write_trial(run, name, windows(), result=COMPLETE, values=EIGHT_STEPS | values)
    write_trial(run, "a.longer=name,that.the=study,does.not=have", windows(), values=EIGHT_STEPS)
    return run


def test_the_terminal_shows_marks_and_reasons_within_100_columns(tmp_path: Path):
    comparisons = beside_published(load_run(six_of_the_quick_kind(tmp_path / "run")))
    assert [comparison.number for comparison in comparisons] == [1, 2, 3, 4, 5, 6, 7, 8]
    for comparison in comparisons:
        text = printed(comparison)
        assert max(map(len, text.splitlines())) <= 100
        assert text.startswith(f"Table {comparison.number} · {TABLES[comparison.name][0]}\n")
        settings_only = comparison.name in ("configurations", "data_exposure")
        assert ("* not comparable: other corpus, tokenizer," in text) != settings_only
        assert ("*" in text) != settings_only
    performance = printed(table(comparisons, "performance"))
    assert "3.000 3.642*" in performance
    told = table(comparisons, "performance").not_comparable["baseline"]
    assert "tokenizer builtin instead of HuggingFaceTB/SmolLM-135M" in told
    assert "96   384" in printed(comparisons[0])


def test_a_run_like_the_studys_is_marked_only_where_no_run_is_comparable(tmp_path: Path):
    run = write_experiment(tmp_path / "run", ["baseline"])
    write_trial(run, "baseline", study_rows(), result=COMPLETE)
    comparisons = beside_published(load_run(run))
    marked = {
        column
        for comparison in comparisons
        for column in comparison.marked
        if comparison.marked[column].any()
    }
    clocks = {"steps_per_second", "step_time_mean_s", "step_time_std_s", "tokens_per_second"}
    assert marked == clocks | {"memory_usage", "val_accuracy", "val_perplexity"}
    validation = table(comparisons, "validation")
    reason = "published Val accuracy and perplexity are training-batch values"
    assert validation.not_comparable["baseline"] == reason
    assert f"* not comparable: {reason}\n" in printed(validation)
    assert "not comparable" not in printed(table(comparisons, "performance"))
    efficiency = printed(table(comparisons, "efficiency"))
    assert "published clock did not wait for its Tesla T4" in efficiency


def test_a_configuration_that_the_study_lacks_has_no_published_figure(tmp_path: Path):
    run = write_experiment(tmp_path / "run", ["my[own]"])
    write_trial(run, "my[own]", windows(), result=COMPLETE, values=EIGHT_STEPS)
    comparisons = beside_published(load_run(run))
    assert "sequence_length" not in [comparison.name for comparison in comparisons]
    performance = table(comparisons, "performance")
    assert performance.not_comparable["my[own]"] == ""
    row = next(line for line in printed(performance).splitlines() if "my[own]" in line)
    assert row.split() == ["my[own]", "3.000", "-", "3.000", "-", "0.700", "-", "93.00", "-"]


def test_throughput_is_not_ranked_across_differently_shared_devices(tmp_path: Path):
    run = write_experiment(tmp_path / "run", ["baseline", "high_lr", "low_lr"])
    shared = study_rows(trials_on_device=2, step_seconds=0.1)
    write_trial(run, "baseline", shared, result=COMPLETE)
    write_trial(run, "high_lr", study_rows(step_seconds=0.3), result=COMPLETE)
    write_trial(run, "low_lr", study_rows(step_seconds=0.2), result=COMPLETE)
    efficiency = table(beside_published(load_run(run)), "efficiency").ours
    assert efficiency["steps_per_second"].to_dict() == pytest.approx(
        {"low_lr": 5.0, "high_lr": 1 / 0.3, "baseline": 10.0}
    )
    assert list(efficiency.index) == ["low_lr", "high_lr", "baseline"]
    assert efficiency["trials_on_device"].to_list() == [1, 1, 2]


def test_measured_memory_and_throughput(tmp_path: Path):
    run = write_experiment(tmp_path / "run", ["baseline"])
    write_trial(run, "baseline", windows(), result=COMPLETE, values=EIGHT_STEPS)
    row = table(beside_published(load_run(run)), "sequence_length").ours.loc["baseline"]
    assert row["memory_usage"] == "1.00 GB"
    assert row["tokens_per_second"] == pytest.approx(8 * 512 / SECONDS[1:].mean())


def test_csv_files_give_back_every_figure(tmp_path: Path):
    comparisons = beside_published(load_run(six_of_the_quick_kind(tmp_path / "run")))
    files = write_csv(comparisons, tmp_path / "tables")
    assert [file.name for file in files][:2] == [
        "table1_configurations.csv",
        "table2_performance.csv",
    ]
    for comparison, file in zip(comparisons, files, strict=True):
        texts = ["not_comparable", "unfinished"]
        read = pd.read_csv(file, index_col="configuration", dtype=dict.fromkeys(texts, str))
        read = read.fillna(dict.fromkeys(texts, ""))
        expected = comparison.frame()
        pd.testing.assert_frame_equal(read, expected, check_dtype=False, check_names=False)
    header = files[1].read_text().splitlines()[0].split(",")
    assert header[:4] == ["configuration", "seeds", "train_loss", "train_loss_published"]
    assert header[-2:] == ["not_comparable", "unfinished"]


def test_a_ninth_table_is_a_function_and_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def convergence(rows: pd.DataFrame) -> pd.DataFrame:
        """How far the loss has fallen from the first quarter to the last."""
        return pd.DataFrame({"fall": 1 - rows["late_loss"] / rows["early_loss"]})

    monkeypatch.setitem(TABLES, "convergence", ("Convergence", convergence))
    run = write_experiment(tmp_path / "run", ["baseline"])
    write_trial(run, "baseline", windows(), result=COMPLETE, values=EIGHT_STEPS)
    ninth = beside_published(load_run(run))[-1]
    text = printed(ninth)
    assert text.startswith("Table 9 · Convergence\n")
    assert f"{1 - 3.25 / 8.5:.3f}" in text
    assert list(ninth.frame().columns) == ["seeds", "fall", "not_comparable", "unfinished"]
