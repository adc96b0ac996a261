"""Strikes a search at random moments until it is done, and counts what that cost.

    python tests/kill.py --kills 100 [--folder struck]

Its driver, one of its workers and Ray's raylet are killed with SIGKILL. For root, other work also
takes its memory, until the kernel kills one of its processes, and fills its disk for a while: its
processes are in a control group of their own, and its run folders on a disk of their own. With
--folder, a test that was stopped goes on, and the disk stays mounted there. A trial's fault counts
for each kind of blow that fell while the trial was open.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
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

KILLED = ("driver", "worker", "raylet")
STARVED = ("memory", "disk")
DISK_BYTES = 2_000_000_000
# What is left to a search while its memory is taken, and what is then asked for beside it.
LEFT_BYTES, TAKEN_BYTES = 50_000_000, 300_000_000
LONGEST_SHORTAGE = 50.0  # seconds: longer than a trial waits for its last attempt
MORE_TRIALS = 4  # where a search is done before all blows have fallen
# The kernel is to kill a process of the search and not this one.
TAKE_MEMORY = """
import sys, time
open("/proc/self/oom_score_adj", "w").write("-1000")
taken = b"x" * int(sys.argv[1])
time.sleep(float(sys.argv[2]))
"""
# Trials of seconds are to have checkpoints too; found by the workers through PYTHONPATH.
OFTEN = """
import sys
if any(part.endswith("default_worker.py") for part in sys.orig_argv):
    import quarterhour.tune.training.checkpoint
    quarterhour.tune.training.checkpoint.CHECKPOINT_SECONDS = 0.2
"""
SEARCH = ("search", "--corpus", "tiny.jsonl", "--budget", "steps:12", "--name", "killed")


@dataclass
class Blow:
    """A blow, the trials that were open when it fell, and how many finished ones it lost."""

    kind: str
    open: list[str]
    with_checkpoint: bool
    lost: int = 0


@dataclass
class Toll:
    """The blows, and what they cost: folders of the trials with each fault."""

    blows: list[Blow] = field(default_factory=list)
    finished: dict[str, int] = field(default_factory=dict)
    trials: int = 0
    trained_twice: list[str] = field(default_factory=list)
    other_rows: list[str] = field(default_factory=list)
    other_states: list[str] = field(default_factory=list)

    @property
    def lost(self) -> int:
        return sum(blow.lost for blow in self.blows)

    def count_lost(self, folder: Path) -> None:
        """What is not as it was at the last blow was lost by it."""
        if self.blows:
            changed = [stamp(Path(path)) != then for path, then in self.finished.items()]
            self.blows[-1].lost += sum(changed)
        self.finished = {str(path): stamp(path) for path in ended(folder)}

    def save(self, folder: Path) -> None:
        (folder / "toll.json").write_text(json.dumps(asdict(self)))


def read_toll(folder: Path) -> Toll:
    if not (folder / "toll.json").exists():
        return Toll()
    fields = json.loads((folder / "toll.json").read_text())
    return Toll(**fields | {"blows": [Blow(**blow) for blow in fields["blows"]]})


def kill_until_done(
    folder: Path, kills: int, trials: int, group: Path | None = None, seed: int = 0
) -> Toll:
    """Run a search of so many trials in `folder`, with so many blows on its way.

    With a control `group`, its memory and the disk of its run folders are taken, too.
    """
    write_corpus(folder / "tiny.jsonl")
    (folder / "sitecustomize.py").write_text(OFTEN)
    kinds = KILLED + STARVED if group else KILLED
    toll = read_toll(folder)
    while True:
        search = start(folder, trials, group)
        while len(toll.blows) < kills and search.poll() is None:
            number = len(toll.blows)
            rng = random.Random(f"{seed} {number}")
            if wait_for_training(search, folder, rng):
                toll.count_lost(folder)
                blow = Blow(kinds[number % len(kinds)], *open_trials(folder))
                if strike(search, blow.kind, folder, group, rng):
                    toll.blows.append(blow)
                    toll.save(folder)
        if search.wait() == 0:
            if len(toll.blows) >= kills:
                break
            trials += MORE_TRIALS
    toll.count_lost(folder)
    count_trials(folder, toll)
    return toll


def start(folder: Path, trials: int, group: Path | None) -> subprocess.Popen[bytes]:
    command = [str(Path(sys.executable).with_name("quarterhour")), *SEARCH, "--trials", str(trials)]
    return subprocess.Popen(
        [*inside(group), *command],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
    )


def inside(group: Path | None) -> list[str]:
    """What comes before a command that is to run in a control group."""
    return ["sh", "-c", 'echo $$ > "$0/cgroup.procs"; exec "$@"', str(group)] if group else []


def ended(folder: Path) -> list[Path]:
    """Results that stand: those of trials that died with the raylet are tried again."""
    paths = folder.glob("runs/**/result.json")
    return [path for path in paths if (result := read_result(path.parent)) and not result.crashed]


def open_trials(folder: Path) -> tuple[list[str], bool]:
    """The trials without a result, and whether one of them has a checkpoint to go on from."""
    configs = folder.glob("runs/**/config.json")
    trials = [path.parent for path in configs if not path.with_name("result.json").exists()]
    with_checkpoint = any((trial / "checkpoint.pt").exists() for trial in trials)
    return [str(trial) for trial in trials], with_checkpoint


def stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def wait_for_training(search: subprocess.Popen[bytes], folder: Path, rng: random.Random) -> bool:
    """Wait for a random moment after training has begun; whether the search still runs then."""
    while not trainers(folder) and search.poll() is None:
        time.sleep(0.1)
    time.sleep(rng.uniform(0, 3))
    return search.poll() is None


def strike(
    search: subprocess.Popen[bytes],
    kind: str,
    folder: Path,
    group: Path | None,
    rng: random.Random,
) -> bool:
    """Let a blow fall; whether there was something to hit."""
    if kind == "disk":
        fill_disk(search, folder / "runs", rng.uniform(1, LONGEST_SHORTAGE))
    elif kind == "memory":
        assert group
        take_memory(group, rng.uniform(1, 10))
    else:
        return kill(search, kind, folder, rng)
    return True


def kill(search: subprocess.Popen[bytes], target: str, folder: Path, rng: random.Random) -> bool:
    """Kill the driver, a worker or the raylet."""
    raylets = children(search.pid, "raylet")
    pids = {"driver": [search.pid], "worker": trainers(folder), "raylet": raylets}
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


def fill_disk(search: subprocess.Popen[bytes], disk: Path, seconds: float) -> None:
    """Leave no room on a disk for so long, or until the search has ended."""
    until = time.monotonic() + seconds
    with (disk / "hog").open("wb", buffering=0) as hog:
        while time.monotonic() < until and search.poll() is None:
            with suppress(OSError):
                while True:
                    hog.write(bytes(2**16))
            time.sleep(0.1)
    (disk / "hog").unlink()


def take_memory(group: Path, seconds: float) -> None:
    """Leave a control group too little memory for so long."""
    old = (group / "memory.limit_in_bytes").exists()
    usage, limit = ("usage_in_bytes", "limit_in_bytes") if old else ("current", "max")
    used = int((group / f"memory.{usage}").read_text())
    (group / f"memory.{limit}").write_text(str(used + LEFT_BYTES))
    command = [sys.executable, "-c", TAKE_MEMORY, str(TAKEN_BYTES), str(seconds)]
    try:
        subprocess.run([*inside(group), *command])
    finally:
        (group / f"memory.{limit}").write_text("-1" if old else "max")


@contextmanager
def own_disk_and_group(folder: Path, keep: bool) -> Generator[Path]:
    """A disk for the run folders, which may be kept, and a control group for processes."""
    runs, old = folder / "runs", Path("/sys/fs/cgroup/memory")
    runs.mkdir(exist_ok=True)
    if not runs.is_mount():
        size = f"size={DISK_BYTES}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(runs)], check=True)
    group = (old if old.exists() else old.parent) / f"quarterhour-{os.getpid()}"
    group.mkdir()
    try:
        yield group
    finally:
        with suppress(OSError):  # where something still ends
            group.rmdir()
        if not keep:
            subprocess.run(["umount", "--lazy", str(runs)], check=True)


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
    trained = [spec for spec in specs if not read_result(spec.folder).adopted_from]  # pyright: ignore
    times = Counter(spec.key for spec in trained)
    toll.trained_twice = [str(spec.folder) for spec in trained if times[spec.key] > 1]
    toll.other_rows = [str(spec.folder) for spec in specs if differs(spec, tokens, folder)]
    study = optuna.load_study(study_name=STUDY_NAME, storage=open_storage(run))
    searched = [spec for spec in specs if spec.folder.parent == run]
    toll.other_states = [
        str(spec.folder)
        for spec, trial in zip(searched, study.trials, strict=True)
        if trial.state != STATES[read_result(spec.folder).status]  # pyright: ignore
    ]


def differs(spec: TrialSpec, tokens: TokenData, folder: Path) -> bool:
    again = replace(spec, folder=folder / "undisturbed" / spec.folder.name / spec.key)
    rows = exact_rows(spec.folder)
    train(again, tokens, rows=len(rows))
    return rows != exact_rows(again.folder)[: len(rows)]


def tabulated(toll: Toll) -> Table:
    """What each kind of blow has cost, and all of them."""
    table = Table(
        "blow", "number", "with a checkpoint to go on from", "finished trials lost",
        "trials trained to the end twice", "with other rows", "in another state of Optuna",
        box=None,
    )  # fmt: skip
    for kind in (*KILLED, *STARVED, f"all, {toll.trials} trials"):
        blows = [blow for blow in toll.blows if blow.kind == kind or kind.startswith("all")]
        hit = {trial for blow in blows for trial in blow.open}
        faults = (toll.trained_twice, toll.other_rows, toll.other_states)
        figures = [len(blows), sum(blow.with_checkpoint for blow in blows)]
        figures.append(sum(blow.lost for blow in blows))
        every = kind.startswith("all")
        figures += [sum(every or trial in hit for trial in faulty) for faulty in faults]
        table.add_row(kind, *map(str, figures))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.folder:
        asked.folder.mkdir(exist_ok=True)
    with nullcontext(asked.folder) if asked.folder else tempfile.TemporaryDirectory() as name:
        folder = Path(name).absolute()
        own = own_disk_and_group(folder, keep=bool(asked.folder))
        with own if os.geteuid() == 0 else nullcontext() as group:
            toll = kill_until_done(folder, asked.kills, asked.trials, group)
    Console(width=120).print(tabulated(toll))


if __name__ == "__main__":
    main()
