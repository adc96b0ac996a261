"""How many bytes of events a trial of the paper's length writes, and how soon many can be seen.

    .venv/bin/python tests/benchmarks/many_trials.py [TRIALS]

Writes made-up trials with the trial's own recorder, opens `quarterhour tensorboard` on them, and
prints the seconds until it serves the hyperparameters of all and a loss of the last.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

from quarterhour.model.sampling import PROMPTS
from quarterhour.search_spaces.profiles import PAPER
from quarterhour.tune.ledger import TrialSpec
from quarterhour.tune.run_folder import Status
from quarterhour.tune.training.events import COMPARED, TAGS
from quarterhour.tune.training.recorder import Recorder


def write_trial(folder: Path, seed: int) -> int:
    """One trial of the paper's baseline, without training; the bytes of its events."""
    config = replace(PAPER.baseline, seed=seed)
    spec = TrialSpec(name=folder.name, config=config, data_fingerprint="", folder=folder)
    spec.write_config()
    recorder = Recorder(spec, 0)
    tokens = config.data.batch_size * config.data.seq_len
    measured = ("train_loss", "learning_rate", "grad_norm", "tokens_per_second", "step_seconds")
    every_row = [*measured, "peak_memory_bytes"]
    layers = [f"grad_norm_layer{layer:02d}" for layer in range(config.model.n_layers)]
    for step in config.budget.window_ends():
        names = [*TAGS, *layers] if config.budget.evaluates_at(step) else every_row
        recorder.write({"step": step, "tokens": step * tokens} | dict.fromkeys(names, step / seed))
        if config.budget.evaluates_at(step):
            recorder.write_samples([{"prompt": p, "continuation": "word " * 40} for p in PROMPTS])
    recorder.write_ending(Status.COMPLETE)
    recorder.close()
    return sum(path.stat().st_size for path in folder.glob("events*"))


def post(url: str, content: dict[str, Any]) -> Any:
    """What TensorBoard answers to a question in JSON."""
    data = json.dumps(content).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request))


def rows_of_table(url: str) -> list[Any]:
    """Trials of the hyperparameters' table with all their measures."""
    query = {"startIndex": 0, "sliceSize": 10_000, "allowedStatuses": ["STATUS_SUCCESS"]}
    answer = post(f"{url}data/plugin/hparams/session_groups", query)
    groups = answer.get("sessionGroups", [])
    return [group for group in groups if len(group.get("metricValues", [])) > len(COMPARED)]


def seconds_until_shown(runs: Path, trials: int, *arguments: str) -> float:
    """From the command's start until it serves every trial."""
    command = [str(Path(sys.executable).with_name("quarterhour")), "tensorboard", *arguments]
    begin = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--no-browser", "--port", "6100"], cwd=runs.parent, stdout=subprocess.PIPE
    )
    assert process.stdout
    try:
        url = next(re.search(rb"http://[^\s?]+", line) for line in process.stdout)[0].decode()
        while len(rows_of_table(url)) < trials:
            time.sleep(0.05)
        query = urllib.parse.urlencode({"tag": "loss/heldout", "run": f"search/{trials:04d}"})
        assert json.load(urllib.request.urlopen(f"{url}data/plugin/scalars/scalars?{query}"))
        return time.perf_counter() - begin
    finally:
        process.terminate()
        process.wait()


def main(trials: int) -> None:
    """Measure and print."""
    os.fsync = lambda _: None  # made-up trials may be lost
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        sizes = [write_trial(runs / f"search/{n:04d}", n) for n in range(1, trials + 1)]
        print(
            f"{trials} trials of 2,000 steps: {statistics.mean(sizes) / 1e3:.1f} kB of events each"
        )
        for arguments in ([], ["runs/search"]):
            seconds = seconds_until_shown(runs, trials, *arguments)
            print(f"{' '.join(['quarterhour tensorboard', *arguments])}: all in {seconds:.1f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
