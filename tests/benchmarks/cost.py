"""How a step's time and memory grow with width, depth, sequence length, batch and vocabulary.

    .venv/bin/python tests/benchmarks/cost.py

Each is doubled twice from a small decoder, everything else held fixed, in the best precision of
this CPU and a process of its own each. Prints medians, and the exponent of a least-squares line
through the logarithms beside that of the formulas: training FLOPs (`DecoderConfig`) for the time,
predicted peak (`tune.memory`) for the memory.
"""

import math
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import torch
from memory import train_small
from rich.console import Console
from rich.table import Table
from scipy import stats

from quarterhour.search_spaces.point import TrialConfig
from quarterhour.search_spaces.profiles import PAPER
from quarterhour.tune.machine import best_precision, peak_memory_bytes, reset_peak_memory
from quarterhour.tune.training.memory import PROCESS_BYTES, peak_bytes
from quarterhour.tune.training.trainer import Trainer

CPU = torch.device("cpu")
FACTORS = (1, 2, 4)
WARM_UP, TIMED = 2, 7
BASE = replace(PAPER.baseline, precision=best_precision("cpu")).with_values(
    {
        "model.d_model": 192, "model.n_heads": 3, "model.d_ff": 768, "model.n_layers": 4,
        "model.vocab_size": 16_384, "data.batch_size": 4, "data.seq_len": 256,
    }
)  # fmt: skip
GROWN = {
    "width": ("model.d_model", "model.n_heads", "model.d_ff"),
    "depth": ("model.n_layers",),
    "sequence length": ("data.seq_len",),
    "batch": ("data.batch_size",),
    "vocabulary": ("model.vocab_size",),
}


def grown(what: str, factor: int) -> TrialConfig:
    """The small decoder's trial with one of its sizes multiplied."""
    return BASE.with_values({path: BASE.values()[path] * factor for path in GROWN[what]})


def measure(config: TrialConfig) -> tuple[float, int]:
    """Median seconds of a step, and bytes that it takes beyond what a smaller one has taken."""
    train_small(config.precision)
    reset_peak_memory(CPU)
    before = peak_memory_bytes(CPU) or 0
    trainer = Trainer(config, CPU)
    shape = (config.data.batch_size, config.data.seq_len + 1)
    batch = torch.randint(config.model.vocab_size, shape)
    times: list[float] = []
    for _ in range(WARM_UP + TIMED):
        begin = time.perf_counter()
        trainer.train_step(batch)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[WARM_UP:]), (peak_memory_bytes(CPU) or 0) - before


def measure_alone(config: TrialConfig) -> tuple[float, int]:
    """`measure` in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, config).result()


def exponent(values: list[float]) -> float:
    """Of the power of the factors that goes through the values best."""
    logs = [math.log(value) for value in values]
    return float(stats.linregress([math.log(factor) for factor in FACTORS], logs).slope)


def flops(config: TrialConfig) -> float:
    """Training FLOPs of a step."""
    tokens = config.data.batch_size * config.data.seq_len
    return tokens * config.model.flops_per_token(config.data.seq_len)


def row(what: str) -> list[str]:
    """Measure one size, doubled twice, and set the exponents beside the formulas'."""
    configs = [grown(what, factor) for factor in FACTORS]
    times, memory = zip(*map(measure_alone, configs), strict=True)
    predicted = [float(peak_bytes(config, "cpu") - PROCESS_BYTES) for config in configs]
    first = BASE.values()[GROWN[what][0]]
    return [
        f"{what} {' '.join(f'{first * factor:,}' for factor in FACTORS)}",
        " ".join(f"{t:.3f}" for t in times),
        f"{exponent(list(times)):.2f}",
        f"{exponent([flops(config) for config in configs]):.2f}",
        " ".join(f"{size / 1e6:.0f}" for size in memory),
        f"{exponent([float(size) for size in memory]):.2f}",
        f"{exponent(predicted):.2f}",
    ]


def main() -> None:
    """Measure and print."""
    model, data = BASE.model, BASE.data
    title = (
        f"From width {model.d_model}, {model.n_layers} layers, {data.batch_size} x {data.seq_len}"
        f" tokens, {model.vocab_size:,} entries; {BASE.precision},"
        f" {torch.get_num_threads()} threads"
    )
    table = Table(title=title, title_justify="left", box=None)
    for column in ("", "step s", "exponent", "FLOPs", "memory MB", "exponent", "predicted"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for what in GROWN:
        table.add_row(*row(what))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
