from pathlib import Path

import pytest
from eight_steps import EIGHT_STEPS, SECONDS, study_rows, windows
from test_runs import COMPLETE, write_experiment, write_trial

from quarterhour.analysis.chapters.paper.comparison import compare
from quarterhour.analysis.runs import load_run


def test_throughput_is_not_ranked_across_differently_shared_devices(tmp_path: Path):
    run = write_experiment(tmp_path / "run", ["baseline", "high_lr", "low_lr"])
    shared = study_rows(trials_on_device=2, step_seconds=0.1)
    write_trial(run, "baseline", shared, result=COMPLETE)
    write_trial(run, "high_lr", study_rows(step_seconds=0.3), result=COMPLETE)
    write_trial(run, "low_lr", study_rows(step_seconds=0.2), result=COMPLETE)
    efficiency = compare(load_run(run), "efficiency").ours
    assert efficiency["steps_per_second"].to_dict() == pytest.approx(
        {"low_lr": 5.0, "high_lr": 1 / 0.3, "baseline": 10.0}
    )
    assert list(efficiency.index) == ["low_lr", "high_lr", "baseline"]
    assert efficiency["trials_on_device"].to_list() == [1, 1, 2]


def test_measured_memory_and_throughput(tmp_path: Path):
    run = write_experiment(tmp_path / "run", ["baseline"])
    write_trial(run, "baseline", windows(), result=COMPLETE, values=EIGHT_STEPS)
    row = compare(load_run(run), "sequence_length").ours.loc["baseline"]
    assert row["memory_usage"] == "1.00 GB"
    assert row["tokens_per_second"] == pytest.approx(8 * 512 / SECONDS[1:].mean())
