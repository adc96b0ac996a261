"""Kills a search with SIGKILL at random moments until it is done, and counts what that cost.

python tests/kill.py --kills 20
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import optuna
import torch
from rich.console import Console
from rich.table import Table
from tiny import exact_rows, train, write_corpus

from quarterhour.data.tokens import DataConfig, TokenData, prepare_tokens
from quarterhour.tune.ledger import TrialSpec, read_result, read_spec
from quarterhour.tune.search.journal import open_storage
from quarterhour.tune.search.study import STATES, STUDY_NAME

TARGETS = ("driver", "worker", "raylet")
# Trials of seconds are to have checkpoints too; found by the workers through PYTHONPATH.
OFTEN = """
import sys
if any(part.endswith("default_worker.py") for part in sys.orig_argv):
    import quarterhour.tune.training.checkpoint
    quarterhour.tune.training.checkpoint.CHECKPOINT_SECONDS = 0.2
"""
SEARCH = ("search", "--corpus", "tiny.jsonl", "--budget", "steps:12", "--name", "killed")


@dataclass
class Toll:
    """What the kills cost."""

    kills: Counter[str]
    with_checkpoint: int = 0
    trials: int = 0
    lost: int = 0
    trained_twice: int = 0
    other_rows: int = 0
    other_states: int = 0


def kill_until_done(folder: Path, kills: int, trials: int, seed: int = 0) -> Toll:
    """Run a search of so many trials in `folder`, with so many kills on its way."""
    write_corpus(folder / "tiny.jsonl")
    (folder / "sitecustomize.py").write_text(OFTEN)
    environment = os.environ | {"PYTHONPATH": str(folder)}
    rng = random.Random(seed)
    toll = Toll(kills=Counter())
    finished: dict[Path, int] = {}
    command = [str(Path(sys.executable).with_name("quarterhour")), *SEARCH]
    while True:
        search = subprocess.Popen(
            [*command, "--trials", str(trials)],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            env=environment,
        )
        while toll.kills.total() < kills and search.poll() is None:
            if kill(search, TARGETS[toll.kills.total() % 3], folder, rng):
                toll.kills[TARGETS[toll.kills.total() % 3]] += 1
                toll.lost += sum(stamp(path) != then for path, then in finished.items())
                toll.with_checkpoint += any(
                    not path.with_name("result.json").exists()
                    for path in folder.glob("runs/**/checkpoint.pt")
                )
                finished |= {path: stamp(path) for path in ended(folder)}
        if search.wait() == 0:
            break
    toll.lost += sum(stamp(path) != then for path, then in finished.items())
    count_trials(folder, toll)
    return toll


def ended(folder: Path) -> list[Path]:
    """Results that stand: those of trials that died with the raylet are tried again."""
    paths = folder.rglob("result.json")
    return [path for path in paths if (result := read_result(path.parent)) and not result.crashed]


def stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def kill(search: subprocess.Popen[bytes], target: str, folder: Path, rng: random.Random) -> bool:
    """Kill the driver, a worker or the raylet at a random moment after training has begun."""
    while not (workers := trainers(folder)) and search.poll() is None:
        time.sleep(0.1)
    time.sleep(rng.uniform(0, 3))
    pids = {"driver": [search.pid], "worker": workers, "raylet": children(search.pid, "raylet")}
    try:
        os.kill(rng.choice(pids[target]), signal.SIGKILL)
    except (ProcessLookupError, IndexError):
        return False
    if target != "worker":
        try:
            search.wait(timeout=30)
        except subprocess.TimeoutExpired:  # without its raylet a driver may wait for ever
            search.kill()
            search.wait()
    return True


def trainers(folder: Path) -> list[int]:
    """Processes that have a trial's metrics open."""
    found: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            files = [os.readlink(link) for link in (process / "fd").iterdir()]
        except OSError:
            continue
        if any(file.startswith(str(folder)) and file.endswith("metrics.jsonl") for file in files):
            found.append(int(process.name))
    return found


def children(pid: int, name: str) -> list[int]:
    done = subprocess.run(["pgrep", "-P", str(pid), name], capture_output=True, text=True)
    return [int(child) for child in done.stdout.split()]


def count_trials(folder: Path, toll: Toll) -> None:
    """Compare what is there with undisturbed trials of the same configurations."""
    run = folder / "runs/killed"
    tokens = prepare_tokens(DataConfig(corpus=str(folder / "tiny.jsonl"), tokenizer="builtin"))
    specs = [read_spec(path.parent) for path in sorted(run.rglob("config.json"))]
    toll.trials = len(specs)
    trained = Counter(spec.key for spec in specs if not read_result(spec.folder).adopted_from)  # pyright: ignore
    toll.trained_twice = sum(count > 1 for count in trained.values())
    toll.other_rows = sum(differs(spec, tokens, folder) for spec in specs)
    study = optuna.load_study(study_name=STUDY_NAME, storage=open_storage(run))
    searched = [spec for spec in specs if spec.folder.parent == run]
    ledger = [STATES[read_result(spec.folder).status] for spec in searched]  # pyright: ignore
    toll.other_states = sum(t.state != s for t, s in zip(study.trials, ledger, strict=True))


def differs(spec: TrialSpec, tokens: TokenData, folder: Path) -> bool:
    again = replace(spec, folder=folder / "undisturbed" / spec.folder.name / spec.key)
    rows = exact_rows(spec.folder)
    train(again, tokens, rows=len(rows))
    return rows != exact_rows(again.folder)[: len(rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--trials", type=int, default=16)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        toll = kill_until_done(Path(folder), asked.kills, asked.trials)
    killed = ", ".join(f"{name} {count}" for name, count in toll.kills.items())
    table = Table("SIGKILL of " + killed, str(toll.kills.total()), box=None)
    table.add_row("of them with a checkpoint to go on from", str(toll.with_checkpoint))
    table.add_row("trials", str(toll.trials))
    table.add_row("finished trials lost", str(toll.lost))
    table.add_row("keys trained to the end twice", str(toll.trained_twice))
    table.add_row("trials with other rows than undisturbed", str(toll.other_rows))
    table.add_row("trials in another state of Optuna", str(toll.other_states))
    Console().print(table)


if __name__ == "__main__":
    main()
