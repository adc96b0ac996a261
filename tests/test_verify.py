import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from study_run import MEASURES, RUNS, write_study_run
from test_cli import Quarterhour, quarterhour  # noqa: F401
from test_published import (
    A_TENTH,
    FROM_ROUNDED_FIGURES,
    TRAINING_BATCH,
    WORDS,
    WRONG_QUOTIENTS,
)
from test_runs import COMPLETE, write_experiment, write_trial

from quarterhour.analysis.chapters.paper.published import COLUMN_REASONS
from quarterhour.analysis.chapters.verify import (
    judge_cells,
    verify_cells,
    verify_orderings,
)
from quarterhour.analysis.measures import summarise
from quarterhour.analysis.runs import load_run

NOISY = [*MEASURES, "train_loss_last"]
SPREAD = 0.01
# Of three seeds SPREAD apart: t of 0.975 with 2 degrees of freedom · s · sqrt(1 + 1/3).
HALF_WIDTH = 4.3027 * SPREAD * (4 / 3) ** 0.5


def verdicts(cells: pd.DataFrame) -> dict[tuple[str, str, str], str]:
    places = zip(cells["table"], cells["configuration"], cells["column"], strict=True)
    return dict(zip(places, cells["status"], strict=True))


def test_the_studys_own_data_reproduce_every_cell_that_follows_from_them(tmp_path: Path):
    run = load_run(write_study_run(tmp_path / "run"))
    cells = judge_cells(summarise(run), differing={}, columns={}, within=0)
    contradicted = [*FROM_ROUNDED_FIGURES, *WRONG_QUOTIENTS, *A_TENTH, *TRAINING_BATCH]
    found = verdicts(cells)
    assert len(found) == len(cells) == 176
    assert {place for place, status in found.items() if status == "FAILED"} == {*contradicted}
    assert {place for place, status in found.items() if status == "MISSING"} == {*WORDS}
    assert set(found.values()) == {"REPRODUCED", "FAILED", "MISSING"}


def test_a_run_like_the_study_is_judged_where_the_study_can_be(tmp_path: Path):
    run = load_run(write_study_run(tmp_path / "run"))
    cells = verify_cells(run)
    not_judged = cells["column"].isin(COLUMN_REASONS)
    assert set(cells.loc[not_judged, "status"]) == {"NOT COMPARABLE"}
    assert set(cells.loc[~not_judged, "status"]) == {"REPRODUCED"}
    judged = cells.loc[~cells["setting"] & ~not_judged]
    assert set(judged["tolerance"]) == {"±5 %, one seed"}
    orderings = verify_orderings(run)
    compared = orderings.loc[orderings["column"] != "steps_per_second"]
    assert set(compared["status"]) == {"REPRODUCED"}
    assert set(orderings["correlation"].round(9)) == {1.0}
    assert (orderings["low"] < 0.7).all()


def shifted(by: float) -> Any:
    """Three seeds 1 % apart, but baseline's last losses around `by` above the published."""

    def change(name: str, seed: int, row: dict[str, Any]) -> dict[str, Any]:
        noisy = {
            measure: row[measure] * (0.99 + 0.01 * seed) for measure in NOISY if measure in row
        }
        if name == "baseline":
            noisy["train_loss_last"] = 3.642 + by + SPREAD * (seed - 1)
        return row | noisy

    return change


@pytest.mark.parametrize(
    ("by", "status"),
    [
        (0.0, "REPRODUCED"),
        (HALF_WIDTH * 0.99, "REPRODUCED"),
        (-HALF_WIDTH * 0.99, "REPRODUCED"),
        (HALF_WIDTH * 1.03, "DRIFT"),
        (-HALF_WIDTH * 1.95, "DRIFT"),
        (HALF_WIDTH * 2.03, "FAILED"),
        (-1.0, "FAILED"),
    ],
)
def test_the_tolerance_is_the_prediction_interval_of_the_seeds(
    tmp_path: Path, by: float, status: str
):
    run = load_run(write_study_run(tmp_path / "run", seeds=3, change=shifted(by)))
    cells = verify_cells(run).set_index(["table", "configuration", "column"])
    cell = cells.loc[("performance", "baseline", "train_loss_last")]
    assert (cell["n"], cell["status"]) == (3, status)
    assert cell["tolerance"] == "95 % prediction interval of 3 seeds"
    assert cell["ours"] == pytest.approx(3.642 + by)
    assert cell["high"] - cell["ours"] == pytest.approx(HALF_WIDTH, rel=1e-3)
    assert cells.loc[("normalized", "baseline", "train_loss_last"), "status"] == status
    others = cells.drop(index="baseline", level="configuration")
    assert not set(others["status"]) & {"DRIFT", "FAILED", "MISSING"}


def with_losses(**losses: list[float]) -> Any:
    """The study's rows with other last losses, one for each seed."""

    def change(name: str, seed: int, row: dict[str, Any]) -> dict[str, Any]:
        return row | ({"train_loss_last": losses[name][seed]} if name in losses else {})

    return change


@pytest.mark.parametrize(
    ("losses", "order", "best"),
    [
        ({}, "REPRODUCED", "REPRODUCED"),
        ({"baseline": [3.8, 3.9], "short_seq": [3.7, 3.95]}, "DRIFT", "REPRODUCED"),
        ({"baseline": [4.8, 4.81], "short_seq": [3.7, 3.71]}, "FAILED", "REPRODUCED"),
        ({"high_lr": [1.2, 1.4], "large_batch": [1.3, 1.5]}, "DRIFT", "DRIFT"),
        ({"high_lr": [1.20, 1.21], "large_batch": [1.33, 1.34]}, "FAILED", "FAILED"),
    ],
)
def test_an_order_fails_only_between_configurations_that_do_not_tie(
    tmp_path: Path, losses: dict[str, list[float]], order: str, best: str
):
    tight = {
        name: [run["train_loss_last_step"] + d for d in (0, 1e-3)] for name, run in RUNS.items()
    }
    change = with_losses(**(tight | losses))
    orderings = verify_orderings(
        load_run(write_study_run(tmp_path / "run", seeds=2, change=change))
    )
    by_loss = orderings.loc[orderings["column"] == "train_loss_last"].set_index("claim")
    assert by_loss["status"].to_dict() == {"order": order, "best": best}
    assert (by_loss["correlation"] < 1).all() == bool(losses)


@pytest.mark.parametrize(("loss", "status"), [(3.60, "DRIFT"), (3.30, "FAILED")])
def test_with_one_seed_what_is_within_the_tolerance_ties(tmp_path: Path, loss: float, status: str):
    change = with_losses(short_seq=[loss])
    orderings = verify_orderings(load_run(write_study_run(tmp_path / "run", change=change)))
    by_loss = orderings.loc[orderings["column"] == "train_loss_last"].set_index("claim")
    assert by_loss["status"].to_dict() == {"order": status, "best": "REPRODUCED"}


def test_an_unfinished_run_lacks_cells_and_fails_none(tmp_path: Path):
    run = write_study_run(tmp_path / "run", names=["baseline", "high_lr"])
    (run / "high_lr/seed0/result.json").unlink()
    metrics = run / "high_lr/seed0/metrics.jsonl"
    metrics.write_text("\n".join(metrics.read_text().splitlines()[:-1]) + "\n")
    loaded = load_run(run)
    cells = verify_cells(loaded).set_index(["table", "configuration", "column"])
    assert cells.loc[("performance", "high_lr", "train_loss_last"), "status"] == "MISSING"
    told = cells.loc[("performance", "high_lr", "train_loss_last"), "reason"]
    assert told == "seed 0 STOPPED at step 1,601 of 2,000"
    assert cells.loc[("performance", "high_lr", "study_eval_loss"), "status"] == "REPRODUCED"
    assert cells.loc[("performance", "low_lr", "study_eval_loss"), "reason"] == "not in this run"
    assert "FAILED" not in set(cells["status"])
    orderings = verify_orderings(loaded)
    assert set(orderings["status"]) == {"MISSING", "NOT COMPARABLE"}
    assert set(orderings["n"]) <= {1, 2}


def test_a_configuration_that_only_diverges_fails(tmp_path: Path):
    run = write_study_run(tmp_path / "run")
    ending = {"status": "FAILED", "reason": "train_loss is nan", "diverged": True}
    for file in run.glob("high_lr/*"):
        for path in file.iterdir():
            path.unlink()
        file.rmdir()
    values = {"optim.learning_rate": 1e-3}
    write_trial(run, "high_lr", [], result=ending, values=values)
    cells = verify_cells(load_run(run)).set_index(["table", "configuration", "column"])
    cell = cells.loc[("performance", "high_lr", "train_loss_last")]
    assert cell["status"] == "FAILED"
    assert "diverged" in cell["reason"]
    assert cells.loc[("performance", "baseline", "train_loss_last"), "status"] == "REPRODUCED"


def test_another_protocol_is_not_comparable_and_says_in_what(tmp_path: Path):
    run = load_run(write_study_run(tmp_path / "run", precision="bf16"))
    cells = verify_cells(run)
    assert set(cells.loc[~cells["setting"], "status"]) == {"NOT COMPARABLE"}
    assert set(cells.loc[cells["setting"], "status"]) == {"REPRODUCED"}
    measured = cells.loc[cells["column"] == "train_loss_last"]
    assert set(measured["reason"]) == {"precision bf16 instead of fp16"}
    orderings = verify_orderings(run)
    assert set(orderings["status"]) == {"NOT COMPARABLE"}
    assert set(orderings["correlation"].round(9)) == {1.0}


def test_a_setting_that_is_another_is_not_comparable(tmp_path: Path):
    run = load_run(write_study_run(tmp_path / "run", **{"optim.learning_rate": 3.01e-4}))
    cells = verify_cells(run).set_index(["table", "configuration", "column"])
    assert cells.loc[("configurations", "baseline", "learning_rate"), "status"] == "NOT COMPARABLE"
    assert cells.loc[("configurations", "baseline", "seq_len"), "status"] == "REPRODUCED"


@pytest.mark.parametrize(("by", "code"), [(0.0, 0), (-1.0, 1)])
def test_the_command_ends_with_1_if_a_cell_failed(
    tmp_path: Path,
    quarterhour: Quarterhour,  # noqa: F811
    by: float,
    code: int,
):
    write_study_run(tmp_path / "run", seeds=3, change=shifted(by))
    ended, output, errors = quarterhour("verify", "run")
    assert (ended, errors) == (code, "")
    assert ("FAILED" in output) == bool(code)
    ended, output, errors = quarterhour("verify", "run", "--json")
    assert (ended, "FAILED" in errors) == (code, bool(code))
    told = json.loads(output)
    cells = verify_cells(load_run(tmp_path / "run"))
    assert len(told["cells"]) + len(told["settings"]) == len(cells)
    assert told["counts"]["cells"]["FAILED"] == (3 if code else 0)
    measured = cells.loc[~cells["setting"]].reset_index(drop=True)
    for number, cell in enumerate(told["cells"]):
        assert cell["status"] == measured.at[number, "status"]
        if cell["ours"] is not None:
            assert cell["ours"] == pytest.approx(measured.at[number, "ours"], rel=1e-12)


def test_bad_input_is_one_line(tmp_path: Path, quarterhour: Quarterhour):  # noqa: F811
    code, output, errors = quarterhour("verify", "nowhere")
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert "run folder nowhere does not exist" in errors
    write_trial(write_experiment(tmp_path / "own", ["0001"]), "0001", [], result=COMPLETE)
    code, _, errors = quarterhour("verify", "own")
    assert (code, errors.count("\n")) == (2, 1)
    assert "own has none of the study's configurations (baseline," in errors


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("model.dropout", 0.3, "dropout 0.3 instead of 0"),
        ("optim.schedule", "linear", "schedule linear instead of cosine"),
        ("budget.eval_batches", 2, "eval_batches 2 instead of 20"),
    ],
)
def test_whatever_changes_a_measurement_makes_it_not_comparable(
    tmp_path: Path, path: str, value: Any, reason: str
):
    run = write_experiment(tmp_path / "run", ["baseline"])
    write_trial(run, "baseline", [{"step": 1}], values={path: value}, result=COMPLETE)
    cells = verify_cells(load_run(run))
    measured = cells.loc[~cells["setting"] & (cells["configuration"] == "baseline")]
    assert set(measured["status"]) == {"NOT COMPARABLE"}
    assert measured["reason"].str.startswith(reason).all()


def test_a_cell_says_which_seeds_are_not_in_it(tmp_path: Path):
    run = write_study_run(tmp_path / "run", seeds=2)
    diverged = {"status": "FAILED", "reason": "loss is NaN", "diverged": True}
    file = run / "baseline/seed1/result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | diverged))
    cells = verify_cells(load_run(run)).set_index(["table", "configuration", "column"])
    cell = cells.loc[("performance", "baseline", "train_loss_last")]
    assert (cell["status"], cell["n"]) == ("REPRODUCED", 1)
    assert "seed 1 FAILED" in cell["reason"]
    assert "loss is NaN" in cell["reason"]
    assert cells.loc[("performance", "high_lr", "train_loss_last"), "reason"] == ""
