import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from tiny import exact_rows, tiny_spec, tiny_tokens, train, write_corpus

import quarterhour.tune.places
from quarterhour.analysis.runs import load_run
from quarterhour.data.tokens import TokenData
from quarterhour.search_spaces.reference import SIX
from quarterhour.tune.cluster.grid import run_trials
from quarterhour.tune.ledger import TrialSpec
from quarterhour.tune.places import Resources
from quarterhour.tune.progress import TrialsProgress
from quarterhour.tune.run_folder import Status
from quarterhour.tune.run_reader import read_rows
from quarterhour.tune.training.memory import ACCURACY, peak_bytes

TWO_AT_ONCE = Resources(device="cpu", cpus=2, gpus=0, cpus_per_trial=1, gpus_per_trial=0)
QUARTERS_OF_A_GPU = Resources(device="cpu", cpus=2, gpus=1, cpus_per_trial=0.5, gpus_per_trial=0.25)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenData:
    return tiny_tokens(tmp_path_factory.mktemp("corpus"))


def run(todo: list[TrialSpec], tokens: TokenData, resources: Resources) -> None:
    with TrialsProgress(Console(quiet=True), todo, 0) as progress:
        run_trials(todo, tokens, resources, progress)


def quarterhour(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [str(Path(sys.executable).with_name("quarterhour")), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True)


def worker_of(folder: Path) -> int | None:
    """The process that has the trial's metrics open."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            files = [os.readlink(link) for link in (process / "fd").iterdir()]
        except OSError:
            continue
        if str(folder / "metrics.jsonl") in files:
            return int(process.name)
    return None


def kill_worker_after(folder: Path, rows: int) -> None:
    while len(read_rows(folder)) < rows:
        time.sleep(0.01)
    worker = worker_of(folder)
    assert worker not in (None, os.getpid())
    os.kill(worker or 0, signal.SIGKILL)


@pytest.mark.slow
def test_a_grid_prints_the_tables_and_the_second_start_trains_nothing(tmp_path: Path):
    write_corpus(tmp_path / "tiny.jsonl")
    command = ["grid", "--max-steps", "3", "--corpus", "tiny.jsonl"]
    output, errors = (first := quarterhour(tmp_path, *command)).communicate()
    assert (first.returncode, errors) == (0, "")
    folder = tmp_path / "runs/grid-budget.max_steps=3"
    assert "6 of 6 trials complete" in output
    for number in range(1, 9):
        assert f"Table {number} · " in output
    assert len(list((folder / "tables").glob("table*.csv"))) == 8
    loaded = load_run(folder)
    assert list(loaded.trials["configuration"]) == list(SIX)
    assert set(loaded.trials["status"]) == {"COMPLETE"}
    written = {path: path.stat().st_mtime_ns for path in folder.glob("*/seed*/metrics.jsonl")}
    output, errors = (second := quarterhour(tmp_path, *command, "--seeds", "1")).communicate()
    assert (second.returncode, errors) == (0, "")
    assert "6 trials, 6 of them finished before" in " ".join(output.split())
    assert written == {path: path.stat().st_mtime_ns for path in written}


@pytest.mark.slow
def test_a_stopped_grid_goes_on_and_leaves_no_process_behind(tmp_path: Path):
    write_corpus(tmp_path / "tiny.jsonl")
    command = ["grid", "--max-steps", "40", "--corpus", "tiny.jsonl"]
    first = quarterhour(tmp_path, *command)
    trial = tmp_path / "runs/grid-budget.max_steps=40/baseline/seed0"
    while not read_rows(trial):
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    output, _ = first.communicate(timeout=30)
    assert first.returncode == 130
    assert "the same command goes on from there" in " ".join(output.split())
    assert not list(Path(tmp_path).rglob("result.json"))
    output, errors = (second := quarterhour(tmp_path, *command, "--seeds", "2")).communicate()
    assert (second.returncode, errors) == (0, "")
    assert "12 of 12 trials complete" in output
    assert "mean of 2 seeds" in output
    seeds = json.loads((trial.parents[1] / "experiment.json").read_text())["seeds"]
    assert seeds == [0, 1]
    assert not list(Path.home().glob(".ray/auth_token"))
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True)
    assert left.stdout == ""


@pytest.mark.slow
def test_a_killed_worker_goes_on_from_its_checkpoint(tokens: TokenData, tmp_path: Path):
    undisturbed = tiny_spec(tmp_path, tokens, "undisturbed", budget__steps=200)
    train(undisturbed, tokens)
    spec = tiny_spec(tmp_path, tokens, "killed", budget__steps=200)
    killer = threading.Thread(target=kill_worker_after, args=(spec.folder, 10))
    killer.start()
    run([spec], tokens, TWO_AT_ONCE)
    killer.join()
    result = spec.result()
    assert result
    assert result.status is Status.COMPLETE
    assert exact_rows(spec.folder) == exact_rows(undisturbed.folder)


@pytest.mark.slow
def test_failed_trials_have_a_reason_and_stop_no_other(tokens: TokenData, tmp_path: Path):
    good = [tiny_spec(tmp_path, tokens, seed=seed) for seed in (0, 1)]
    diverging = tiny_spec(tmp_path, tokens, "diverging", optim__learning_rate=1e30)
    raising = tiny_spec(tmp_path, tokens, "raising")
    (raising.folder / "samples.json").mkdir(parents=True)
    run([diverging, raising, *good], tokens, TWO_AT_ONCE)
    assert [spec.result().status for spec in good] == [Status.COMPLETE] * 2  # pyright: ignore
    reasons = [spec.result().reason for spec in (diverging, raising)]  # pyright: ignore
    assert reasons[0] == "train_loss is nan after 3 updates"
    assert "Is a directory" in str(reasons[1])
    assert "Traceback" in (raising.folder / "error.txt").read_text()
    assert not raising.result().final  # pyright: ignore


@pytest.mark.slow
def test_trials_whose_processes_cannot_start_have_the_reason(
    tokens: TokenData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if any(part.endswith('default_worker.py') for part in sys.orig_argv):\n"
        "    sys.modules['quarterhour.tune.training.trial'] = None\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    specs = [tiny_spec(tmp_path, tokens, seed=seed) for seed in range(3)]
    run(specs, tokens, TWO_AT_ONCE)
    for spec in specs:
        assert spec.result().status is Status.FAILED  # pyright: ignore
        assert "import of quarterhour.tune.training.trial halted" in spec.result().reason  # pyright: ignore


@pytest.mark.slow
def test_four_trials_share_a_logical_gpu_by_quarters(tokens: TokenData, tmp_path: Path):
    specs = [tiny_spec(tmp_path, tokens, seed=seed, budget__steps=200) for seed in range(5)]
    assert QUARTERS_OF_A_GPU.concurrency == 4
    run(specs, tokens, QUARTERS_OF_A_GPU)
    sharing = [row["trials_on_device"] for spec in specs for row in read_rows(spec.folder)]
    assert {read_rows(spec.folder)[-1]["step"] for spec in specs} == {200}
    assert 1 < max(sharing) <= 4
    measured = read_rows(specs[0].folder)[-1]["peak_memory_bytes"]
    assert peak_bytes(specs[0].config, "cpu") == pytest.approx(measured, rel=ACCURACY - 1)


@pytest.mark.slow
def test_trials_are_packed_by_their_own_needs(
    tokens: TokenData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    needed = {0: 1.7e9, 1: 0.3e9, 2: 0.3e9, 3: 2.1e9}  # of 2 GB
    monkeypatch.setattr("quarterhour.tune.places.device_memory_bytes", lambda _: 2_000_000_000)
    monkeypatch.setattr(
        "quarterhour.tune.places.peak_bytes", lambda config, *_: needed[config.seed]
    )
    specs = [tiny_spec(tmp_path, tokens, seed=seed) for seed in needed]
    packed = replace(QUARTERS_OF_A_GPU, gpus_per_trial=0.05, cpus_per_trial=0.1, by_memory=True)
    run(specs, tokens, packed)
    large, *small, too_large = specs
    assert {row["trials_on_device"] for row in read_rows(large.folder)} == {1}
    assert [spec.result().status for spec in (large, *small)] == [Status.COMPLETE] * 3  # pyright: ignore
    assert too_large.result().status is Status.INFEASIBLE  # pyright: ignore
    assert too_large.result().reason == "needs 2.1 GB, and a trial has 2.0 GB"  # pyright: ignore
    assert not read_rows(too_large.folder)


@pytest.mark.parametrize(
    ("cpus", "gpus", "per_trial", "places"),
    [
        (2, 0, (1, 0), 2),
        (2, 0, (2, 0), 1),
        (8, 1, (1, 0.25), 4),
        (8, 2, (1, 0.4), 4),
        (8, 2, (1, 1), 2),
        (8, 4, (1, 2), 2),
        (3, 4, (1, 0.5), 3),
        (4, 1, (0.1, 0.1), 10),
    ],
)
def test_concurrency_follows_from_the_share_of_a_trial(
    cpus: float, gpus: float, per_trial: tuple[float, float], places: int
):
    asked = {"cpus_per_trial": per_trial[0], "gpus_per_trial": per_trial[1]}
    assert replace(TWO_AT_ONCE, cpus=cpus, gpus=gpus, **asked).concurrency == places
