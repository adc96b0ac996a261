"""How long a training step of the paper's baseline takes, beside the plain way to write it.

    .venv/bin/python tests/benchmarks/step.py [ROUNDS]

Steps of both kinds alternate in one process: ours (the trial's own step, in the best precision of
this CPU) and the plain one (fp32, eager, logits of batch x time x vocabulary, same model and
optimizer). Prints medians, their ratio, the share of this machine's own bf16 matrix-multiply rate,
and the memory that our steps need beyond Python with torch.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F

from search_spaces.profiles import PAPER
from tune.resources import best_precision, keep_freed_memory, peak_memory_bytes, reset_peak_memory
from tune.trainer import Trainer

CPU = torch.device("cpu")


def plain_step(trainer: Trainer, batch: torch.Tensor) -> None:
    """The same update, written the obvious way."""
    logits = trainer.model.logits(trainer.model(batch[:, :-1]))
    F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
    torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()


def seconds(work: Callable[[], object]) -> float:
    """Wall clock of one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def matmul_rate() -> float:
    """FLOP/s of 2048-square bf16 matrix products on this machine, the median of twenty."""
    a, b = (torch.randn(2048, 2048, dtype=torch.bfloat16) for _ in range(2))
    times = [seconds(lambda: a @ b) for _ in range(22)][2:]
    return 2 * 2048**3 / statistics.median(times)


def main(rounds: int) -> None:
    """Measure and print."""
    keep_freed_memory()
    reset_peak_memory(CPU)
    before = peak_memory_bytes(CPU) or 0
    precision = best_precision("cpu")
    config = replace(PAPER.baseline, precision=precision)
    data = config.data
    ours, plain = Trainer(config, CPU), Trainer(replace(config, precision="fp32"), CPU)
    shape = (data.batch_size, data.seq_len + 1)
    batch = torch.randint(config.model.vocab_size, shape)
    for _ in range(2):
        ours.train_step(batch)
    memory = (peak_memory_bytes(CPU) or 0) - before
    plain_step(plain, batch)
    pairs: list[tuple[float, float]] = []
    for _ in range(rounds):
        pair = seconds(lambda: ours.train_step(batch)), seconds(lambda: plain_step(plain, batch))
        pairs.append(pair)
        print(f"ours ({precision}) {pair[0]:.2f} s   plain fp32 {pair[1]:.2f} s", flush=True)
    median = statistics.median(pair[0] for pair in pairs)
    ratio = statistics.median(a / b for a, b in pairs)
    flops = data.batch_size * data.seq_len * config.model.flops_per_token(data.seq_len)
    rate = matmul_rate()
    print(f"median step {median:.2f} s, {ratio:.0%} of the plain step's time")
    print(
        f"{flops / 1e12:.2f} TFLOP a step: {flops / median / 1e9:.0f} GFLOP/s,"
        f" {flops / median / rate:.0%} of the {rate / 1e9:.0f} GFLOP/s of 2048-square bf16 products"
    )
    print(f"peak memory of our steps {memory / 1e9:.2f} GB, with a second model beside them")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
