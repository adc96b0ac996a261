import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny import exact_rows, tiny_spec, tiny_tokens, train, write_corpus

from quarterhour.search_spaces.profiles import QUICK
from quarterhour.tune.cluster.connection import join
from quarterhour.tune.cluster.grid import run_trials
from quarterhour.tune.cluster.machines import SHARED, check_alike, inspect_cluster
from quarterhour.tune.ledger import TrialSpec
from quarterhour.tune.places import Cluster, plan_resources
from quarterhour.tune.progress import TrialsProgress
from quarterhour.tune.run_folder import Status
from quarterhour.tune.run_reader import read_rows

BIN = Path(sys.executable).parent
FACTS = {"CPUs": 8.0, "GPUs": 1.0, "graphics cards": ["T4"], "torch": "2.13.0", SHARED: True}


def start_machine(*arguments: str) -> subprocess.Popen[str]:
    """A machine of one CPU, as far as Ray can tell."""
    command = [str(BIN / "ray"), "start", "--num-cpus", "1", "--disable-usage-stats", "--block"]
    pipe, devnull = subprocess.PIPE, subprocess.DEVNULL
    machine = subprocess.Popen(
        [*command, *arguments], stdout=pipe, stderr=devnull, text=True, start_new_session=True
    )
    assert machine.stdout
    assert any("Ray runtime started" in line for line in machine.stdout)
    return machine


@pytest.fixture
def machines() -> Generator[tuple[str, subprocess.Popen[str]]]:
    """A cluster of two machines: its address, and the one that is not its head."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="qh", ignore_cleanup_errors=True) as folder:
        head = ("--head", "--port", str(port), "--include-dashboard=false", "--temp-dir", folder)
        address = f"127.0.0.1:{port}"
        started = [start_machine(*head), start_machine("--address", address)]
        yield address, started[1]
        for machine in reversed(started):
            machine.terminate()
            machine.communicate()


@pytest.mark.slow
def test_a_grid_runs_on_a_cluster(machines: tuple[str, subprocess.Popen[str]], tmp_path: Path):
    write_corpus(tmp_path / "tiny.jsonl")
    command = ["grid", "--max-steps", "12", "--corpus", "tiny.jsonl", "--address", machines[0]]
    done = subprocess.run(
        [BIN / "quarterhour", *command], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "up to 2 at once on 2 machines" in " ".join(done.stdout.split())
    assert "6 of 6 trials complete" in done.stdout
    folder = tmp_path / "runs/grid-budget.max_steps=12"
    rows = [row for trial in folder.glob("*/seed0") for row in read_rows(trial)]
    assert max(row["trials_on_device"] for row in rows) == 2  # which no one of them has room for
    assert not [path for path in (tmp_path / "runs").iterdir() if path.name.startswith(".ray")]


@pytest.mark.slow
def test_what_a_dead_machine_trained_goes_on_at_another(
    machines: tuple[str, subprocess.Popen[str]], tmp_path: Path
):
    tokens = tiny_tokens(tmp_path)
    long: dict[str, Any] = {"budget__steps": 800, "budget__eval_every": 400}
    specs = [tiny_spec(tmp_path, tokens, seed=seed, **long) for seed in (0, 1)]
    cluster = inspect_cluster(machines[0], tmp_path)
    assert (len(cluster.machines), cluster.cpus, cluster.gpus) == (2, 1, 0)
    killer = threading.Thread(target=kill_when_all_train, args=(machines[1], specs))
    killer.start()
    with TrialsProgress(Console(quiet=True), specs, 0) as progress:
        run_trials(specs, tokens, plan_resources(1, 0, cluster), progress)
    killer.join()
    for spec in specs:
        assert spec.result().status is Status.COMPLETE  # pyright: ignore
        undisturbed = tiny_spec(tmp_path / "other", tokens, seed=spec.config.seed, **long)
        train(undisturbed, tokens)
        assert exact_rows(spec.folder) == exact_rows(undisturbed.folder)


def kill_when_all_train(machine: subprocess.Popen[str], specs: list[TrialSpec]) -> None:
    while not all(len(read_rows(spec.folder)) > 10 for spec in specs):
        time.sleep(0.01)
    assert not any(spec.result() for spec in specs)
    os.killpg(machine.pid, signal.SIGKILL)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "ray://127.0.0.1:1", "127.0.0.1:x"])
def test_an_address_where_no_cluster_answers_is_refused_at_once(address: str):
    with pytest.raises(ValueError, match=rf"--address {address}: no Ray cluster can be joined"):
        join(address)


@pytest.mark.parametrize(
    ("difference", "message"),
    [
        ({"CPUs": 4.0}, "machine 10.0.0.2 has CPUs 4.0, and this one 8.0"),
        ({"graphics cards": ["A10"]}, r"has graphics cards \['A10'\], and this one \['T4'\]"),
        ({"torch": "2.12.0"}, "has torch 2.12.0, and this one 2.13.0"),
        ({SHARED: False}, "--runs runs: machine 10.0.0.2 of the cluster does not have it"),
    ],
)
def test_machines_that_differ_are_named(difference: dict[str, Any], message: str):
    check_alike(FACTS, FACTS, "10.0.0.2", Path("runs"))
    with pytest.raises(ValueError, match=message):
        check_alike(FACTS, FACTS | difference, "10.0.0.2", Path("runs"))


def test_places_and_memory_are_those_of_each_machine():
    cluster = Cluster(
        address="10.0.0.1:6379", shared_folder="/runs", machines=("a", "b", "c"), cpus=4, gpus=0,
        memory_bytes=8_000_000_000,
    )  # fmt: skip
    planned = plan_resources(2, 0, cluster)
    assert (planned.places, planned.concurrency) == (2, 6)
    assert planned.for_trial(QUICK.baseline)["memory"] == 4_000_000_000
    with pytest.raises(ValueError, match="--cpus-per-trial is 5"):
        plan_resources(5, 0, cluster)
