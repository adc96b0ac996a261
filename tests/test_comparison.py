from pathlib import Path

import pandas as pd
import pytest
from eight_steps import EIGHT_STEPS, SECONDS, six_of_the_quick_kind, study_rows, windows
from shown import text_of
from test_runs import COMPLETE, write_experiment, write_trial

from quarterhour.analysis.chapters.paper.comparison import Comparison, beside_published, write_csv
from quarterhour.analysis.chapters.paper.tables import TABLES
from quarterhour.analysis.measures import summarise
from quarterhour.analysis.runs import load_run
from quarterhour.analysis.terminal import comparison_table


def printed(comparison: Comparison) -> str:
    return text_of(comparison_table(comparison))


def table(comparisons: list[Comparison], name: str) -> Comparison:
    return next(comparison for comparison in comparisons if comparison.name == name)


def test_a_trial_that_stops_early_lacks_its_end_and_nothing_else(tmp_path: Path):
    run = write_experiment(tmp_path / "run", ["baseline"])
    stops = EIGHT_STEPS | {"budget.max_steps": 3}
    write_trial(run, "baseline", windows((1, 2, 3)), result=COMPLETE, values=stops)
    loaded = load_run(run)
    summary = summarise(loaded).iloc[0]
    missing = {
        "train_loss_last",
        "study_eval_loss",
        "accuracy",
        "perplexity",
        "confidence",
        "final_top5",
    }
    missing |= {"val_accuracy", "val_perplexity", "late_loss"}
    assert set(summary.index[summary.isna()]) == missing
    assert summary["total_tokens"] == 8 * 512 * 3
    assert summary["step_time_mean_s"] == pytest.approx(SECONDS[1:3].mean())
    performance = table(beside_published(loaded), "performance")
    assert performance.unfinished["baseline"] == "seed 0 COMPLETE at step 3 of 8"
    assert "stopped after 3 of 8 steps" in performance.not_comparable["baseline"]
    assert printed(performance).count("missing") == 4


def test_a_loss_that_is_no_number_is_no_figure(tmp_path: Path):
    run = write_experiment(tmp_path / "run", ["baseline"])
    rows = windows()
    rows[-1] |= {"train_loss": float("nan"), "train_loss_last": float("nan")}
    diverged = COMPLETE | {"diverged": True}
    write_trial(run, "baseline", rows, result=diverged, values=EIGHT_STEPS)
    loaded = load_run(run)
    assert summarise(loaded)[["train_loss_last", "late_loss"]].isna().all(axis=None)
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
    assert performance.ours["train_loss_last"].dropna().to_dict() == {
        "baseline": 4.0,
        "high_lr": 4.5,
    }
    assert performance.seeds.to_dict() == {"baseline": 3, "high_lr": 2, "low_lr": 0}
    text = " ".join(printed(performance).split())
    assert "high_lr seed 1 FAILED at step 2,000 of 2,000: out of memory" in text
    assert "low_lr seed 0 WAITING; seed 1 WAITING; seed 2 WAITING" in text


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
    assert row.split() == ["my[own]", "3.000", "3.000", "0.700", "93.00"]


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
    assert header[:4] == ["configuration", "seeds", "train_loss_last", "train_loss_last_published"]
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
