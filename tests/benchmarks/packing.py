"""How many trials at once give the most tokens a second on this machine, for the quick baseline.

    .venv/bin/python tests/benchmarks/packing.py [SECONDS]

Trains one trial on all cores, and one, two and four with a thread each, every trial in a process of
its own, all for the same time after they have warmed up; three times, in turn. Prints the tokens a
second of all together, their median, and whether the default of the commands is what gave the most.
"""

import multiprocessing
import os
import statistics
import sys
import time
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from typing import Any

import torch

from quarterhour.search_spaces.profiles import QUICK
from quarterhour.tune.machine import best_precision, keep_freed_memory
from quarterhour.tune.places import plan_resources
from quarterhour.tune.training.trainer import Trainer

ROUNDS = 3
WARM_UP_STEPS = 5


def train(threads: int, seconds: float, begin: Barrier, rates: Any) -> None:
    """Train for so long after all have begun; puts tokens a second."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    config = replace(QUICK.baseline, precision=best_precision("cpu"))
    trainer = Trainer(config, torch.device("cpu"))
    data = config.data
    batch = torch.randint(config.model.vocab_size, (data.batch_size, data.seq_len + 1))
    for _ in range(WARM_UP_STEPS):
        trainer.train_step(batch)
    begin.wait()
    began, steps = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < seconds:
        trainer.train_step(batch)
        steps += 1
    rates.put(steps * data.batch_size * data.seq_len / elapsed)


def tokens_per_second(trials: int, threads: int, seconds: float) -> float:
    """Of so many trials at once, together."""
    context = multiprocessing.get_context("spawn")
    begin, rates = context.Barrier(trials), context.Queue()
    arguments = (threads, seconds, begin, rates)
    processes = [context.Process(target=train, args=arguments) for _ in range(trials)]
    for process in processes:
        process.start()
    total = sum(rates.get() for _ in processes)
    for process in processes:
        process.join()
    return total


def main(seconds: float) -> None:
    """Measure and print."""
    cores = os.cpu_count() or 1
    layouts = [(1, cores), (1, 1), (2, 1), (4, 1)]
    rounds = [[tokens_per_second(*layout, seconds) for layout in layouts] for _ in range(ROUNDS)]
    medians = [statistics.median(measured) for measured in zip(*rounds, strict=True)]
    for (trials, threads), median, *measured in zip(layouts, medians, *rounds, strict=True):
        each = "  ".join(f"{rate:,.0f}" for rate in measured)
        print(f"{trials} at once, {threads} thread(s) each: {median:>7,.0f} tokens/s  ({each})")
    best = layouts[max(range(len(layouts)), key=medians.__getitem__)]
    default = plan_resources(None, 0)
    print(
        f"most: {best[0]} at once, {best[1]} thread(s) each; default: {default.concurrency} at"
        f" once, {default.threads} thread(s) each"
    )


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 10.0)
