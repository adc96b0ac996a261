"""How far the predicted peak memory of a trial is from what it takes, over the open-ended space.

    .venv/bin/python tests/benchmarks/memory.py [QUICK PAPER]

Draws so many points of each profile's space; of the paper's, those whose step is at most 1.3 TFLOP,
so that two cores train it in seconds. Each trains two steps and is evaluated in a process of its
own, on one thread, in the best precision of this CPU, every fourth in fp32. Prints predicted and
measured resident memory, with the process and of the trial alone.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice

import optuna
import torch

from search_spaces.open_ended import open_ended
from search_spaces.point import TrialConfig
from search_spaces.profiles import PAPER, QUICK, Profile
from tune.memory import ACCURACY, PROCESS_BYTES, peak_bytes
from tune.resources import best_precision, keep_freed_memory, peak_memory_bytes, reset_peak_memory
from tune.trainer import Trainer

CPU = torch.device("cpu")
MOST_FLOPS = {"quick": float("inf"), "paper": 1.3e12}


def drawn(profile: Profile) -> Iterator[TrialConfig]:
    """Points of a profile's space that can be trained here in seconds."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
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


def measure(config: TrialConfig) -> tuple[int, int]:
    """Resident bytes before and at the peak, in a process that has trained a small model."""
    torch.set_num_threads(1)
    keep_freed_memory()
    small = {"model.d_model": 16, "model.n_heads": 2, "model.d_ff": 32, "model.n_layers": 1}
    train(QUICK.baseline.with_values({**small, "data.seq_len": 16, "precision": config.precision}))
    reset_peak_memory(CPU)
    before = peak_memory_bytes(CPU) or 0
    train(config)
    return before, peak_memory_bytes(CPU) or 0


def report(config: TrialConfig, name: str) -> tuple[float, float]:
    """Measure a point in a process of its own and print it; errors with the process and without."""
    command = [sys.executable, __file__, json.dumps(asdict(config))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    before, peak = json.loads(done.stdout)
    predicted = peak_bytes(config, "cpu")
    whole, own = predicted / peak - 1, (predicted - PROCESS_BYTES) / (peak - before) - 1
    model, data = config.model, config.data
    print(
        f"{name:<7}{config.precision:<6}{model.d_model:>5} x {model.n_layers:<3}"
        f"{data.batch_size:>3} x {data.seq_len:<5}{model.positions:<6}{model.dropout:>5.2f}"
        f"{predicted / 1e6:>9.0f}{peak / 1e6:>9.0f} {whole:>+7.1%}"
        f"{(predicted - PROCESS_BYTES) / 1e6:>9.0f}{(peak - before) / 1e6:>9.0f} {own:>+7.1%}",
        flush=True,
    )
    return whole, own


def main(counts: dict[str, int]) -> None:
    """Measure and print."""
    print(" " * 47 + "trial with its process, MB     trial alone, MB")
    print(
        "profile      width x layers  batch x time   dropout predicted measured   error"
        "  predicted measured error"
    )
    errors = [
        report(config, profile.name)
        for profile in (QUICK, PAPER)
        for config in islice(drawn(profile), counts[profile.name])
    ]
    for what, found in zip(("with its process", "alone"), zip(*errors, strict=True), strict=True):
        within = sum(abs(error) <= ACCURACY - 1 for error in found)
        print(
            f"trial {what}: {within} of {len(found)} within {ACCURACY - 1:.0%},"
            f" largest error {max(found, key=abs):+.1%}"
        )


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        print(json.dumps(measure(TrialConfig.from_dict(json.loads(sys.argv[1])))))
    else:
        quick, paper = [int(count) for count in sys.argv[1:]] or (12, 10)
        main({"quick": quick, "paper": paper})
