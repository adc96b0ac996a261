import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up import write_grid
from test_runs import COMPLETE, write_experiment, write_trial
from tiny import exact_rows, write_corpus

import quarterhour.data.corpora
from quarterhour.tune.cli import main
from quarterhour.tune.run_folder import Row
from quarterhour.tune.run_reader import read_rows
from quarterhour.tune.training.recorder import Recorder
from quarterhour.tune.training.trainer import Trainer

Quarterhour = Callable[..., tuple[int, str, str]]


@pytest.fixture
def quarterhour(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Quarterhour:
    """The command as a user types it, in an empty folder: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["quarterhour", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        output, errors = capfd.readouterr()
        return int(ended.value.code or 0), output, errors

    return call


BAD_INPUT = [
    ("run nosuch", "unknown configuration 'nosuch': use one of baseline, high_lr,"),
    ("run baseline --set optim.lr=1", "unknown key 'optim.lr'"),
    ("run baseline --set optim.learning_rate=fast", "optim.learning_rate is 'fast'"),
    ("run baseline --set optim.learning_rate=-1", "optim.learning_rate is -1.0"),
    ("run baseline --set model.n_heads=5", "model.n_heads is 5: it must divide"),
    (
        "run baseline --set model.active_experts=9",
        "model.active_experts is 9: it must be at most model.n_experts 8",
    ),
    ("run baseline --set model.heads_per_kv=4", "model.heads_per_kv is 4: it must divide"),
    ("run baseline --set model.window=0", "model.window is 0: it must be at least 1"),
    ("run baseline --set optim.ema_decay=1", "optim.ema_decay is 1.0: it must be at least 0"),
    ("run baseline --set data.batch_size=0", "data.batch_size is 0"),
    ("run baseline --set budget.steps=0", "budget.steps is 0"),
    ("run baseline --set learning_rate", "'learning_rate' is not an assignment"),
    ("run baseline --set model.vocab_size=100", "model.vocab_size is 100: the tokenizer has 8192"),
    ("run baseline --set data.seq_len=400000", "too few for one batch"),
    ("run", "Missing argument 'configuration'"),
    ("grid --profile huge", "unknown profile 'huge': use paper or quick"),
    ("grid --protocol as-hoped", "unknown protocol 'as-hoped': use as-run or as-described"),
    ("grid --seeds 0", "--seeds is 0"),
    ("grid --seeds many", "Invalid value for '--seeds'"),
    ("grid --max-steps 0", "budget.max_steps is 0"),
    ("grid --precision int8", "precision is 'int8': it must be fp32 or bf16 or fp16"),
    ("grid --gpus-per-trial 64", "--gpus-per-trial is 64: this machine has"),
    ("grid --cpus-per-trial 0", "--cpus-per-trial is 0"),
    ("grid --corpus missing.jsonl", "corpus missing.jsonl: no such file"),
    ("grid --corpus broken.jsonl", "corpus broken.jsonl, line 2: not a JSON object"),
    ("grid --corpus empty.jsonl", "corpus empty.jsonl, line 3"),
    ("grid --corpus small.jsonl", "5 documents are too few"),
    ("grid --tokenizer broken.jsonl", "tokenizer broken.jsonl: not a tokenizer.json"),
    ("grid --name a/b", "--name is 'a/b'"),
    ("grid --name ..", "--name is '..'"),
    ("grid --runs /dev/null/runs", "/dev/null/runs/grid: Not a directory"),
    ("grid --profile paper", "the Hugging Face hub cannot be reached"),
    ("grid --no-such-option", "No such option: --no-such-option"),
    ("tensorboard", "run folder runs does not exist"),
    ("tensorboard missing", "run folder missing does not exist: give one such as runs/grid"),
    ("tensorboard --port 70000", "Invalid value for '--port'"),
    ("gird", "No such command 'gird'"),
]


@pytest.mark.parametrize(("command", "message"), BAD_INPUT)
def test_bad_input_ends_in_one_line_and_exit_code_2_before_anything_trains(
    command: str,
    message: str,
    quarterhour: Quarterhour,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    write_corpus(tmp_path / "small.jsonl", documents=5)
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (tmp_path / "empty.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n{"text": " "}\n')
    monkeypatch.setattr("quarterhour.data.corpora.require_hub", unreachable)
    code, _, errors = quarterhour(*command.split())
    assert code == 2
    assert message in errors
    assert errors.startswith("quarterhour: ")
    assert len(errors.splitlines()) == 1
    assert not list(tmp_path.rglob("metrics.jsonl"))


@pytest.mark.parametrize(
    "empty",
    [["--corpus", ""], ["--corpus="], ["--name", ""], ["--runs", ""], ["--tokenizer="], [""]],
)
def test_an_empty_argument_is_refused(empty: list[str], quarterhour: Quarterhour):
    code, _, errors = quarterhour("run", "baseline", *empty)
    assert code == 2
    assert errors == "quarterhour: an argument is empty: leave it out, or give it a value\n"


@pytest.mark.parametrize("option", ["--runs", "--name"])
def test_a_path_that_is_no_text_is_refused(option: str, quarterhour: Quarterhour):
    code, _, errors = quarterhour("run", "baseline", option, os.fsdecode(b"caf\xe9"))
    assert code == 2
    assert r"/caf\udce9" in errors
    assert "is no text in this locale: pass another --runs and --name" in errors


def test_a_disk_without_room_for_the_output_ends_in_one_line(tmp_path: Path):
    write_grid(tmp_path / "grid")
    command = [sys.executable, "-m", "quarterhour", "verify", "grid"]
    for as_json in ([], ["--json"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                command + as_json, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path
            )
        assert done.returncode == 1
        *others, last = done.stderr.splitlines()
        assert last == "quarterhour: [Errno 28] No space left on device"
        assert bool(others) == bool(as_json)  # the tables, which are then for people alone


def unreachable() -> None:
    raise ConnectionError("the Hugging Face hub cannot be reached: no route")


def test_a_full_disk_is_told_before_anything_trains(
    quarterhour: Quarterhour, monkeypatch: pytest.MonkeyPatch
):
    usage = shutil.disk_usage("/")._replace(free=2_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    code, _, errors = quarterhour("run", "baseline")
    assert code == 2
    assert "needs up to 27 MB for checkpoints and its disk has 2 MB free" in errors


def test_a_configuration_trains_without_ray_and_is_adopted_the_second_time(
    quarterhour: Quarterhour, tmp_path: Path
):
    write_corpus(tmp_path / "tiny.jsonl")
    command = "run small_model --set optim.learning_rate=1e-3 --max-steps 3 --corpus tiny.jsonl"
    code, output, errors = quarterhour(*command.split())
    assert (code, errors) == (0, "")
    run = tmp_path / "runs/run-small_model-optim.learning_rate=0.001-budget.max_steps=3"
    trial = run / "small_model/seed0"
    assert (
        json.loads((trial / "config.json").read_text())["config"]["optim"]["learning_rate"] == 1e-3
    )
    rows = read_rows(trial)
    assert rows[-1]["step"] == 3
    assert f"heldout_loss {rows[-1]['heldout_loss']:.3f}" in " ".join(output.split())
    written = (trial / "metrics.jsonl").stat().st_mtime_ns
    code, output, errors = quarterhour(*command.split(), "--name", "again")
    assert "1 of them finished before" in " ".join(output.split())
    adopted = json.loads((tmp_path / "runs/again/small_model/seed0/result.json").read_text())
    assert adopted["adopted_from"] == str(trial.relative_to(tmp_path))
    assert (trial / "metrics.jsonl").stat().st_mtime_ns == written


def test_a_run_folder_of_other_data_or_settings_is_refused(
    quarterhour: Quarterhour, tmp_path: Path
):
    write_corpus(tmp_path / "tiny.jsonl")
    write_corpus(tmp_path / "other.jsonl", documents=111)
    command = "run small_model --max-steps 1 --name mine --corpus"
    assert quarterhour(*command.split(), "tiny.jsonl")[0] == 0
    code, _, errors = quarterhour(*command.split(), "other.jsonl")
    assert code == 2
    assert "runs/mine was made with data.fingerprint" in errors
    code, _, errors = quarterhour(*command.replace("1", "2").split(), "tiny.jsonl")
    assert code == 2
    assert "resolved.small_model.budget.max_steps 1, and this is 2" in errors


def test_a_diverged_trial_is_told_with_its_reason_and_exit_code_1(
    quarterhour: Quarterhour, tmp_path: Path
):
    write_corpus(tmp_path / "tiny.jsonl")
    command = "run baseline --set optim.learning_rate=1e30 --max-steps 9 --corpus tiny.jsonl"
    code, output, _ = quarterhour(*command.split())
    assert code == 1
    assert "FAILED baseline seed 0: train_loss is nan after" in " ".join(output.split())


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_stop_that_python_drops_comes_again(
    stop: type[BaseException], quarterhour: Quarterhour, monkeypatch: pytest.MonkeyPatch
):
    class Unlucky:
        def __del__(self) -> None:
            raise stop

    def load(_: Any) -> None:
        Unlucky()
        time.sleep(60)

    monkeypatch.setattr("quarterhour.analysis.runs.load_run", load)
    before = sys.unraisablehook
    code, _, errors = quarterhour("verify", "runs/grid")
    assert (code, errors.startswith("quarterhour: stopped")) == (130, True)
    assert sys.unraisablehook is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_within_a_window_saves_its_state(
    number: int, quarterhour: Quarterhour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_corpus(tmp_path / "tiny.jsonl")
    command = ["run", "small_model", "--max-steps", "12", "--corpus", "tiny.jsonl"]
    assert quarterhour(*command, "--name", "one", "--runs", "other")[0] == 0
    train_step = Trainer.train_step

    def stopped_step(trainer: Trainer, *args: Any, **kwargs: Any) -> Any:
        if trainer.step == 5:
            signal.raise_signal(number)
        return train_step(trainer, *args, **kwargs)

    monkeypatch.setattr(Trainer, "train_step", stopped_step)
    code, _, errors = quarterhour(*command, "--name", "stopped")
    assert (code, errors) == (
        130, "quarterhour: stopped; the same command goes on from there\n",
    )  # fmt: skip
    folder = tmp_path / "runs/stopped/small_model/seed0"
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert 5 < state["trainer"]["step"] == read_rows(folder)[-1]["step"] < 12
    monkeypatch.setattr(Trainer, "train_step", train_step)
    assert quarterhour(*command, "--name", "stopped")[0] == 0
    assert exact_rows(folder) == exact_rows(tmp_path / "other/one/small_model/seed0")


def test_a_disk_that_fills_ends_a_run_with_one_line_and_loses_nothing(
    quarterhour: Quarterhour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_corpus(tmp_path / "tiny.jsonl")
    command = ["run", "small_model", "--max-steps", "12", "--corpus", "tiny.jsonl"]
    assert quarterhour(*command, "--name", "one", "--runs", "other")[0] == 0
    write = Recorder.write

    def write_until_full(recorder: Recorder, row: Row) -> None:
        if row["step"] > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(recorder, row)

    monkeypatch.setattr(Recorder, "write", write_until_full)
    code, _, errors = quarterhour(*command, "--name", "full")
    assert (code, errors) == (
        1, "quarterhour: runs/full: No space left on device; the same command goes on\n",
    )  # fmt: skip
    monkeypatch.setattr(Recorder, "write", write)
    assert quarterhour(*command, "--name", "full")[0] == 0
    folder = "small_model/seed0"
    assert exact_rows(tmp_path / "runs/full" / folder) == exact_rows(
        tmp_path / "other/one" / folder
    )


def test_verify_says_when_nothing_is_comparable(quarterhour: Quarterhour, tmp_path: Path):
    run = write_experiment(tmp_path / "other", ["baseline"])
    write_trial(run, "baseline", [{"step": 1}], values={"model.dropout": 0.3}, result=COMPLETE)
    write_grid(tmp_path / "alike")
    said = "nothing measured in this run is comparable with the study: "
    code, output, errors = quarterhour("verify", "other")
    assert (code, errors) == (0, "")
    assert said + "dropout 0.3 instead of 0" in " ".join(output.split())
    assert said not in " ".join(quarterhour("verify", "alike")[1].split())


def test_the_command_line_starts_without_what_only_some_commands_need():
    script = "import sys, quarterhour.tune.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert "quarterhour.tune.commands.search" in loaded
    assert not {
        "torch", "ray", "pandas", "matplotlib", "optuna", "tensorboard", "scipy", "transformers",
    } & loaded  # fmt: skip


def test_no_module_of_the_working_directory_is_imported(tmp_path: Path):
    before_ours = {
        "collections", "contextlib", "functools", "importlib", "keyword", "operator", "reprlib",
        "types", "warnings",
    }  # fmt: skip
    others = {"model", "requests", "torch", "typer", "rich", "sitecustomize", "usercustomize"}
    for name in (sys.stdlib_module_names | others) - before_ours:
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not yours')\n")
    command = [sys.executable, "-m", "quarterhour", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_trial_runs_and_doctor_starts_where_only_what_they_need_is_installed(tmp_path: Path):
    write_corpus(tmp_path / "tiny.jsonl")
    script = """
import importlib.metadata, sys
MISSING = ("ray", "optuna", "datasets", "transformers", "pandas", "matplotlib", "scipy", "sklearn")
version = importlib.metadata.version
def installed(name):
    if name in MISSING:
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = installed
sys.modules.update(dict.fromkeys(MISSING))
import quarterhour.tune.self_test
from quarterhour.tune.cli import main
sys.argv = "quarterhour run baseline --corpus tiny.jsonl --max-steps 2 --name lean".split()
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 of 1 trials complete" in done.stdout
    versions = json.loads((tmp_path / "runs/lean/experiment.json").read_text())["versions"]
    assert versions.keys() == {"python", "quarterhour", "torch", "tokenizers", "numpy"}


def test_help_names_every_command(quarterhour: Quarterhour):
    code, output, _ = quarterhour("--help")
    assert code == 0
    for command in ("grid", "run", "tensorboard"):
        assert command in output


def test_what_cannot_be_written_is_told_with_the_setting_that_moves_it(
    quarterhour: Quarterhour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file/cache"))
    code, _, errors = quarterhour("run", "baseline")
    assert code == 2
    assert errors == (
        f"quarterhour: {tmp_path}/file/cache/quarterhour: Not a directory; choose a folder that can"
        " be written and has room, with XDG_CACHE_HOME in the environment\n"
    )


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "result.json"])
def test_a_damaged_trial_of_a_run_is_named_and_neither_trained_nor_lost(
    name: str, quarterhour: Quarterhour, tmp_path: Path
):
    write_corpus(tmp_path / "tiny.jsonl")
    command = "run small_model --max-steps 3 --corpus tiny.jsonl --name mine"
    assert quarterhour(*command.split())[0] == 0
    trial = tmp_path / "runs/mine/small_model/seed0"
    (trial / name).write_text("{\n")
    before = {path: path.read_bytes() for path in trial.iterdir()}
    code, output, errors = quarterhour(*command.split())
    if name == "result.json":
        assert code == 1
        assert f"quarterhour: {trial.relative_to(tmp_path) / name} cannot be read" in errors
        assert "FAILED small_model seed 0: result.json cannot be read" in " ".join(output.split())
    assert {path: path.read_bytes() for path in trial.iterdir()} == before
    (trial / name).unlink()
    code, output, errors = quarterhour(*command.split())
    assert (code, errors) == (0, "")
    assert json.loads((trial / "result.json").read_text())["status"] == "COMPLETE"
    if name == "result.json":  # from its checkpoint
        assert (trial / "metrics.jsonl").read_bytes() == before[trial / "metrics.jsonl"]
