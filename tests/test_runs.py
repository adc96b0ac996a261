import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from quarterhour.analysis.runs import load_run

BASELINE = {
    "model.vocab_size": 49_152,
    "model.d_model": 384,
    "model.n_heads": 6,
    "model.n_layers": 12,
    "model.d_ff": 1536,
    "model.positions": "none",
    "model.dropout": 0.0,
    "optim.learning_rate": 3e-4,
    "optim.beta1": 0.9,
    "optim.beta2": 0.999,
    "optim.weight_decay": 0.1,
    "optim.eps": 1e-8,
    "optim.clip_norm": 1.0,
    "optim.warmup_fraction": 0.0,
    "optim.final_lr_fraction": 0.1,
    "optim.schedule": "cosine",
    "data.batch_size": 8,
    "data.seq_len": 512,
    "budget.steps": 2000,
    "budget.max_steps": None,
    "budget.report_every": 20,
    "budget.eval_every": 400,
    "budget.eval_batches": 20,
}


def write_experiment(folder: Path, names: list[str], *, seeds: int = 1, **other: Any) -> Path:
    """An experiment on the study's own data, with `other` written over it."""
    data = {
        "corpus": "HuggingFaceTB/smollm-corpus:cosmopedia-v2",
        "tokenizer": "HuggingFaceTB/SmolLM-135M",
        "train_documents": 500,
    }
    experiment = {
        "name": "a-run",
        "protocol": "as-run",
        "configurations": names,
        "seeds": list(range(seeds)),
        "data": data | other.pop("data", {}),
    }
    folder.mkdir()
    (folder / "experiment.json").write_text(json.dumps(experiment | other))
    return folder


def write_trial(
    run: Path,
    name: str,
    rows: list[dict[str, Any]],
    *,
    seed: int = 0,
    result: dict[str, Any] | None = None,
    values: dict[str, Any] | None = None,
    key: str = "k",
) -> Path:
    """A trial of the study's baseline with `values` changed; without a `result` it is running."""
    config: dict[str, Any] = {"precision": "fp16", "seed": seed}
    for path, value in (BASELINE | (values or {})).items():
        section, _, field = path.rpartition(".")
        (config.setdefault(section, {}) if section else config)[field] = value
    folder = run / name / f"seed{seed}"
    folder.mkdir(parents=True)
    trial = {"key": key, "name": name, "seed": seed, "data_fingerprint": "f", "config": config}
    (folder / "config.json").write_text(json.dumps(trial))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if result:
        (folder / "result.json").write_text(json.dumps(UNTOLD | result))
    return folder


UNTOLD = {"key": "k", "parameters": 1, "metrics": {}, "reason": None, "diverged": False}
UNTOLD |= {"adopted_from": None}
COMPLETE = {"status": "COMPLETE", "reason": None, "diverged": False, "parameters": 40_117_632}
ROWS = [{"step": 1, "train_loss": 10.5}, {"step": 21, "train_loss": float("nan")}]


def test_trials_in_every_state_and_their_rows(tmp_path: Path):
    run = write_experiment(tmp_path / "run", ["baseline", "high_lr", "low_lr", "short_seq"])
    write_trial(run, "high_lr", ROWS)
    write_trial(run, "baseline", ROWS, result=COMPLETE, values={"budget.steps": 21})
    failed = {"status": "FAILED", "reason": "loss is NaN", "diverged": True}
    write_trial(run, "low_lr", [], result=failed)
    loaded = load_run(run)
    trials = loaded.trials.set_index("configuration")
    assert trials["status"].to_dict() == {
        "baseline": "COMPLETE",
        "high_lr": "STOPPED",
        "low_lr": "FAILED",
        "short_seq": "WAITING",
    }
    assert trials.loc["low_lr", "reason"] == "loss is NaN"
    assert trials["diverged"].to_list() == [False, False, True, False]
    assert trials["steps_done"].to_list() == [21, 21, 0, 0]
    assert trials.loc["baseline", "budget.steps"] == 21
    assert trials.loc["baseline", "parameters"] == 40_117_632
    assert loaded.experiment["name"] == "a-run"
    rows = loaded.rows.set_index(["configuration", "seed", "step"])["train_loss"]
    assert len(rows) == 4
    assert rows["baseline", 0, 1] == 10.5
    assert rows.isna()["high_lr", 0, 21]
    with FileLock(run / ".lock"):
        (run / ".owner").write_text("a process")
        assert load_run(run).trials["status"].to_list().count("RUNNING") == 1


def test_a_run_that_has_only_begun(tmp_path: Path):
    loaded = load_run(write_experiment(tmp_path / "run", ["baseline"], seeds=2))
    assert loaded.trials["status"].to_list() == ["WAITING", "WAITING"]
    assert loaded.rows.empty


def test_a_last_line_that_is_cut_off_is_left_out(tmp_path: Path):
    run = write_experiment(tmp_path / "run", ["baseline"])
    metrics = write_trial(run, "baseline", ROWS) / "metrics.jsonl"
    with metrics.open("a") as file:
        file.write('{"step": 41, "train_lo')
    assert load_run(run).rows["step"].to_list() == [1, 21]


@pytest.mark.parametrize("broken", ['{"step": 2, "tr', "17", '{"tokens": 3}', "", "\0\0\0\0"])
def test_a_broken_line_in_the_middle_is_named(
    tmp_path: Path, broken: str, capsys: pytest.CaptureFixture[str]
):
    run = write_experiment(tmp_path / "run", ["baseline"])
    metrics = write_trial(run, "baseline", []) / "metrics.jsonl"
    metrics.write_text(f'{{"step": 1}}\n{broken}\n{{"step": 21}}\n')
    (line,) = damage_told_of(run, capsys)
    assert f"{metrics}, line 2 is no row" in line


def damage_told_of(run: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines on a run's damaged trials, which have FAILED for it; the others are read."""
    write_trial(run, "sound", ROWS, result=COMPLETE)
    trials = load_run(run).trials.set_index("configuration")
    told = capsys.readouterr().err.splitlines()
    sound = trials.loc["sound", ["status", "steps_done"]]
    assert sound.to_list() == ["COMPLETE", 21]
    damaged = trials.drop(index="sound")
    assert set(damaged["status"]) == {"FAILED"}
    assert all(reason in "".join(told) for reason in damaged["reason"])
    return told


def test_lines_that_are_rows_only_together_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = write_experiment(tmp_path / "run", ["baseline"])
    metrics = write_trial(run, "baseline", []) / "metrics.jsonl"
    metrics.write_text('{"step": 1\n"tokens": 3}\n{"step": 21}\n')
    (line,) = damage_told_of(run, capsys)
    assert f"{metrics}, line 1 is no row" in line


@pytest.mark.slow
def test_a_thousand_trials_of_a_hundred_rows_are_read(tmp_path: Path):
    names = [f"{number:04d}" for number in range(1000)]
    run = write_experiment(tmp_path / "run", names)
    figures = {f"measure{number}": 1 / (number + 1) for number in range(24)}
    rows = "".join(json.dumps({"step": step, **figures}) + "\n" for step in range(1, 101))
    for name in names:
        (write_trial(run, name, [], result=COMPLETE) / "metrics.jsonl").write_text(rows)
    loaded = load_run(run)
    assert (len(loaded.trials), len(loaded.rows)) == (1000, 100_000)
    assert loaded.rows.groupby(["configuration", "seed"])["step"].max().eq(100).all()


def test_rows_that_were_written_twice_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = write_experiment(tmp_path / "run", ["baseline"])
    write_trial(run, "baseline", [{"step": 1}, {"step": 21}, {"step": 21}])
    (line,) = damage_told_of(run, capsys)
    assert "metrics.jsonl, line 3 has step 21 after step 21" in line


def test_what_is_no_run_folder(tmp_path: Path):
    with pytest.raises(ValueError, match=r"run folder .*nowhere does not exist: .* runs/grid"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"has no experiment\.json: .* runs/grid"):
        load_run(tmp_path)
    with pytest.raises(ValueError, match="has no trial yet"):
        load_run(write_experiment(tmp_path / "run", []))


DEEP = b"[" * 100_000
NO_CONFIGURATION = {"key": "k", "name": "baseline", "seed": 0, "data_fingerprint": "f"}
NO_CONFIGURATION |= {"config": {"budget": {"steps": "9"}}}
DAMAGED = [
    ("config.json", b'{"status": "COMP', "Unterminated string"),
    ("result.json", b'{"status": "COMP', "Unterminated string"),
    ("config.json", b"", "Expecting value"),
    ("result.json", b"", "Expecting value"),
    ("config.json", b"[]", "it holds a list, where a dict must be"),
    ("result.json", b"[]", "it holds a list, where a dict must be"),
    ("config.json", b"{}", "key is missing"),
    ("result.json", b"{}", "status is missing"),
    ("result.json", json.dumps(UNTOLD | {"status": "DONE"}).encode(), "its status is 'DONE'"),
    ("config.json", DEEP, "maximum recursion depth"),
    ("result.json", DEEP, "maximum recursion depth"),
    ("config.json", b'{"name": "\xff"}', "codec can't decode"),
    ("config.json", json.dumps(NO_CONFIGURATION).encode(), "steps holds a str"),
    (
        "result.json",
        json.dumps(UNTOLD | {"status": "COMPLETE", "metrics": {"a": 1}}).encode(),
        "are no row",
    ),
    ("result.json", json.dumps(UNTOLD | {"parameters": 10**400}).encode(), "has 401 digits"),
    ("metrics.jsonl", b'{"step": 1, "tokens": 1' + b"0" * 400 + b"}\n", "line 1 is no row"),
    ("metrics.jsonl", DEEP + b"\n", "line 1 is no row"),
    ("metrics.jsonl", b'{"step": "1"}\n', "line 1 is no row"),
    ("metrics.jsonl", b'{"step": 1, "tokens": Infinity}\n', "line 1 is no row"),
    ("metrics.jsonl", b'{"step": 1, "train_loss": "$x$"}\n', "line 1 is no row"),
    ("metrics.jsonl", b'{"step": 1, "eval_calibration": [1]}\n', "line 1 is no row"),
]


@pytest.mark.parametrize(("name", "content", "fault"), DAMAGED)
def test_a_damaged_file_is_named_and_the_other_trials_are_read(
    tmp_path: Path, name: str, content: bytes, fault: str, capsys: pytest.CaptureFixture[str]
):
    run = write_experiment(tmp_path / "run", ["baseline"])
    file = write_trial(run, "baseline", ROWS, result=COMPLETE) / name
    file.write_bytes(content)
    (line,) = damage_told_of(run, capsys)
    assert line.startswith(f"quarterhour: {file}")
    assert fault in line
    assert "restore it, or delete it and start the run again" in line or "delete the line" in line


def pipe(file: Path) -> None:
    os.mkfifo(file)


def link(file: Path) -> None:
    file.symlink_to(file.parent.parent / "elsewhere")
    (file.parent.parent / "elsewhere").write_text("{}")


def huge(file: Path) -> None:
    with file.open("w") as hole:
        hole.truncate(2**41)


@pytest.mark.parametrize("name", ["config.json", "result.json", "metrics.jsonl"])
@pytest.mark.parametrize("make", [pipe, link, huge])
def test_what_is_no_plain_file_is_named(
    tmp_path: Path, name: str, make: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
):
    run = write_experiment(tmp_path / "run", ["baseline"])
    file = write_trial(run, "baseline", ROWS, result=COMPLETE) / name
    file.unlink()
    make(file)
    (line,) = damage_told_of(run, capsys)
    assert line.startswith(f"quarterhour: {file} cannot be read")


@pytest.mark.parametrize("copy", ["a/seed0 (copy)", "a (copy)/seed0", "0001", "model"])
def test_a_folder_that_is_not_called_as_its_trial_is_somebody_elses(tmp_path: Path, copy: str):
    run = write_experiment(tmp_path / "run", ["a"])
    shutil.copytree(write_trial(run, "a", ROWS), run / copy)
    assert load_run(run).trials["folder"].to_list() == [run / "a/seed0"]


def test_a_copy_of_a_trial_in_the_run_folder_is_named(tmp_path: Path):
    run = write_experiment(tmp_path / "run", ["a"])
    shutil.copytree(write_trial(run, "a", ROWS), run / "backup/a/seed0")
    with pytest.raises(
        ValueError, match=r"backup/a/seed0 and .*run/a/seed0 are the same trial: move"
    ):
        load_run(run)


@pytest.mark.parametrize("name", ["configurations", "seeds", "protocol", "data"])
@pytest.mark.parametrize("value", [None, 3])
def test_an_experiment_that_lacks_a_name_or_has_another_kind_is_named(
    tmp_path: Path, name: str, value: object
):
    run = write_experiment(tmp_path / "run", ["a"])
    file = run / "experiment.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    with pytest.raises(ValueError, match=rf"experiment\.json cannot be read \({name}"):
        load_run(run)


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("resources", 3, "resources holds a int"),
        ("resources", {"concurrency": "x"}, "concurrency holds a str"),
        ("resources", {"cluster": 3}, "cluster holds a int"),
        ("domains", {"optim.beta1": [{}]}, "optim.beta1 0 holds a dict"),
        ("data", {"heldout_lost_share": "x"}, "heldout_lost_share holds a str"),
        ("resolved", {"a": {"budget": {}, "model": 3}}, "steps is missing"),
    ],
)
def test_a_part_of_an_experiment_that_is_of_another_kind_is_named(
    tmp_path: Path, name: str, value: object, fault: str
):
    run = write_experiment(tmp_path / "run", ["a"], **{name: value})
    with pytest.raises(ValueError, match=rf"experiment\.json cannot be read \({fault}"):
        load_run(run)
