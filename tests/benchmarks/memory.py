"""How far the predicted peak memory of a trial is from what it takes, over the open-ended space.

    .venv/bin/python tests/benchmarks/memory.py [QUICK PAPER]

Draws so many points of each profile's space; of the paper's, those whose step is at most 1.3 TFLOP,
so that two cores train it in seconds. Each trains two steps and is evaluated in a process of its
own, on one thread, in the best precision of this CPU, every fourth in fp32. Prints predicted and
measured resident memory of the trial, beside what its process has before: the median of three
processes, which differ by up to a sixth where a trial is small. The prediction's two measured
constants were found on points of another seed.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice

import optuna
import torch

from quarterhour.search_spaces.open_ended import open_ended
from quarterhour.search_spaces.point import Precision, TrialConfig
from quarterhour.search_spaces.profiles import PAPER, QUICK, Profile
from quarterhour.tune.machine import (
    best_precision,
    keep_freed_memory,
    peak_memory_bytes,
    reset_peak_memory,
)
from quarterhour.tune.training.memory import ACCURACY, PROCESS_BYTES, peak_bytes
from quarterhour.tune.training.trainer import Trainer

CPU = torch.device("cpu")
SEED = 3
PROCESSES = 3
MOST_FLOPS = {"quick": float("inf"), "paper": 1.3e12}


def drawn(profile: Profile) -> Iterator[TrialConfig]:
    """Points of a profile's space that can be trained here in seconds."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=SEED))
    space, number = open_ended(profile), 0
    while True:
        number += 1
        precision = best_precision("cpu") if number % 4 else "fp32"
        config = profile.baseline.with_values({**space(study.ask()), "precision": precision})
        tokens = config.data.batch_size * config.data.seq_len
        if tokens * config.model.flops_per_token(config.data.seq_len) <= MOST_FLOPS[profile.name]:
            yield config


def train(config: TrialConfig) -> None:
    """Two updates, for the second has the optimizer's moments from its begin; an evaluation."""
    trainer = Trainer(config, CPU)
    shape = (config.data.batch_size, config.data.seq_len + 1)
    batch = torch.randint(config.model.vocab_size, shape)
    for _ in range(2):
        trainer.train_step(batch)
    trainer.loss(batch)


def train_small(precision: Precision) -> None:
    """Let this process take what the libraries take once."""
    keep_freed_memory()
    small = {"model.d_model": 16, "model.n_heads": 2, "model.d_ff": 32, "model.n_layers": 1}
    train(QUICK.baseline.with_values({**small, "data.seq_len": 16, "precision": precision}))


def measure(config: TrialConfig) -> int:
    """Resident bytes that a trial adds to a process, which has trained a small model before."""
    torch.set_num_threads(1)
    train_small(config.precision)
    reset_peak_memory(CPU)
    before = peak_memory_bytes(CPU) or 0
    train(config)
    return (peak_memory_bytes(CPU) or 0) - before


def report(config: TrialConfig, name: str) -> float:
    """Measure a point in processes of its own and print it; the prediction's relative error."""
    command = [sys.executable, __file__, json.dumps(asdict(config))]
    measured = statistics.median(
        int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(PROCESSES)
    )
    predicted = peak_bytes(config, "cpu") - PROCESS_BYTES
    error = predicted / measured - 1
    model, data = config.model, config.data
    print(
        f"{name:<8}{config.precision:<6}{model.d_model:>7} x {model.n_layers:<9}"
        f"{data.batch_size:>5} x {data.seq_len:<8}{model.positions:<6}{model.dropout:>7.2f}"
        f"{predicted / 1e6:>13.0f}{measured / 1e6:>13.0f}{error:>+9.1%}",
        flush=True,
    )
    return error


def main(counts: dict[str, int]) -> None:
    """Measure and print."""
    print(
        f"{'profile':<14}{'width':>7} x {'layers':<9}{'batch':>5} x {'time':<14}{'dropout':>7}"
        f"{'predicted MB':>13}{'measured MB':>13}{'error':>9}"
    )
    errors = [
        report(config, profile.name)
        for profile in (QUICK, PAPER)
        for config in islice(drawn(profile), counts[profile.name])
    ]
    within = sum(abs(error) <= ACCURACY - 1 for error in errors)
    print(
        f"{within} of {len(errors)} within {ACCURACY - 1:.0%}, largest error"
        f" {max(errors, key=abs):+.1%}; beside the process, which is taken to be"
        f" {PROCESS_BYTES / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        print(measure(TrialConfig.from_dict(json.loads(sys.argv[1]))))
    else:
        quick, paper = [int(count) for count in sys.argv[1:]] or (12, 10)
        main({"quick": quick, "paper": paper})
