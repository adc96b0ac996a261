"""How long a training step of the paper's configurations takes, beside two peers.

    .venv/bin/python tests/benchmarks/step.py [baseline small_model …] [--rounds N]

Three contenders take their steps in turn, in one process: ours (the trial's own step, in the best
precision of this CPU), a transformers Llama of as many parameters in the same autocast, and the
plain way to write ours (fp32, eager, all logits at once). The plain step is timed twice: in a
process that keeps freed memory, as ours does, and with glibc's own settings, as it would run
elsewhere. Prints medians and their ratios, the share of this machine's own bf16 matrix-multiply
rate, peak memory of each contender in a process of its own beyond Python with torch, and where the
time of our step goes, with the least that each part could take on this machine. With --choices it
times the other parts that a decoder and an optimizer can have instead, beside the baseline.
"""

import argparse
import ctypes
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import torch
from choices import CHOICES
from peers import PlainDecoder, PlainTrainer, llama, llama_loss, plain_loss
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from quarterhour.model.decoder import DecoderConfig
from quarterhour.model.loss import BLOCK_ENTRIES, BLOCK_ROWS
from quarterhour.search_spaces.point import TrialConfig
from quarterhour.search_spaces.profiles import PAPER
from quarterhour.search_spaces.reference import reference_configurations
from quarterhour.tune.machine import (
    best_precision,
    keep_freed_memory,
    peak_memory_bytes,
    reset_peak_memory,
)
from quarterhour.tune.training.trainer import AUTOCAST_DTYPES, Trainer

CPU = torch.device("cpu")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
DIFFERENT_SIZES = ("baseline", "small_model", "large_batch", "short_seq")
MEMORY_STEPS = 3
WARMUP_STEPS, TIMED_STEPS = 5, 3  # it takes some until a process has all the memory it needs


def contender(name: str, config: TrialConfig) -> Callable[[Tensor], object]:
    """The training step of "ours", "llama" or "plain"."""
    if name == "ours":
        return Trainer(config, CPU).train_step
    if name == "llama":
        dtype = AUTOCAST_DTYPES.get(config.precision)
        return PlainTrainer(llama(config.model), llama_loss, config.optim, dtype).train_step
    return PlainTrainer(PlainDecoder(config.model), plain_loss, config.optim, None).train_step


def draw_batch(config: TrialConfig) -> Tensor:
    """Random token ids [B, T + 1]."""
    shape = (config.data.batch_size, config.data.seq_len + 1)
    return torch.randint(config.model.vocab_size, shape)


def peak_memory_of_steps(name: str, config: TrialConfig) -> int:
    """Bytes that a few steps of a contender take beyond what this process had before."""
    keep_freed_memory()
    reset_peak_memory(CPU)
    before = peak_memory_bytes(CPU) or 0
    step, batch = contender(name, config), draw_batch(config)
    for _ in range(MEMORY_STEPS):
        step(batch)
    return (peak_memory_bytes(CPU) or 0) - before


def in_new_process(function: Callable[..., int], *arguments: object) -> int:
    """The function's result in a process that has done nothing else."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def return_freed_memory() -> None:
    """Undo `keep_freed_memory`: glibc's settings as they are after it has freed large blocks."""
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 65_536)
    libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
    libc.mallopt(M_TRIM_THRESHOLD, 64 * 2**20)


def seconds(work: Callable[..., object], *arguments: object) -> float:
    """Wall clock of one call."""
    begin = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - begin


def alternating(config: TrialConfig, rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender's steps, one after the other, round by round."""
    names = ("ours", "llama", "plain")
    steps = {name: contender(name, config) for name in names}
    batch = draw_batch(config)
    times: dict[str, list[float]] = {name: [] for name in (*names, "plain, glibc's settings")}
    keep_freed_memory()
    for _ in range(rounds + 1):
        for name in names:
            times[name].append(seconds(steps[name], batch))
        return_freed_memory()
        times["plain, glibc's settings"].append(seconds(steps["plain"], batch))
        keep_freed_memory()
        steps["ours"](batch)  # whose memory has been returned
    return {name: each[1:] for name, each in times.items()}


def matmul_rate() -> float:
    """FLOP/s of 2048-square bf16 matrix products on this machine, the median of twenty."""
    a, b = (torch.randn(2048, 2048, dtype=torch.bfloat16) for _ in range(2))
    times = [seconds(torch.mm, a, b) for _ in range(22)][2:]
    return 2 * 2048**3 / statistics.median(times)


def copy_rate() -> float:
    """Bytes a second, read and written, of copying more than a cache holds."""
    source, target = torch.ones(2, 2**26)
    times = [seconds(target.copy_, source) for _ in range(7)][2:]
    return 2 * source.nbytes / statistics.median(times)


def part_of(name: str, shapes: Sequence[Sequence[int]], model: DecoderConfig) -> str:
    """The part of a step that an operator belongs to, by its name and its inputs' shapes."""
    is_product = name in ("aten::mm", "aten::addmm")
    block = [BLOCK_ENTRIES, BLOCK_ROWS if is_product else model.d_model]
    of_head = block in shapes or any(model.vocab_size in shape for shape in shapes)
    if is_product:
        return "products of the head" if of_head else "products of the layers"
    if name in ("aten::bmm", "aten::baddbmm_"):
        return "products of attention"
    if name.startswith(("aten::_fused_adamw", "aten::_foreach", "aten::linalg_vector_norm")):
        return "optimizer and clipping"
    if of_head:
        return "elementwise, head"
    return "elementwise, layers and attention"


class PartTimes(TorchDispatchMode):
    """Seconds of the operators that run under it, by part.

    torch's profiler keeps a record of each call among a step's tensors, which then do not fit into
    freed memory: what it measures is for a third the time that fresh memory takes.
    """

    def __init__(self, model: DecoderConfig) -> None:
        super().__init__()
        self._model = model
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator and count its time."""
        begin = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        elapsed = time.perf_counter() - begin
        shapes = [list(each.shape) for each in args if isinstance(each, Tensor)]
        self.seconds[part_of(func.overloadpacket._qualified_op_name, shapes, self._model)] += (
            elapsed
        )
        return result


def time_by_part(config: TrialConfig) -> dict[str, float]:
    """Seconds of one step of ours by part, the mean of a few."""
    step, batch = contender("ours", config), draw_batch(config)
    for _ in range(WARMUP_STEPS):
        step(batch)
    with PartTimes(config.model) as times:
        total = sum(seconds(step, batch) for _ in range(TIMED_STEPS)) / TIMED_STEPS
    parts = {part: each / TIMED_STEPS for part, each in times.seconds.items()}
    parts["other"] = max(0.0, total - sum(parts.values()))
    return parts


def limits(config: TrialConfig) -> dict[str, float]:
    """The least seconds of each part: its FLOPs or its bytes at this machine's measured rates.

    Products: 6 FLOPs a weight and token; causal attention half of 12 T D. Optimizer: weights,
    gradients and two moments read, three of them written, in fp32. Head: its logits written by
    the product, then read and written once. Layers: inputs and results of norms, SiLU and
    residual sums read or written once, and twice in the backward pass.
    """
    model, data = config.model, config.data
    tokens = data.batch_size * data.seq_len
    head = model.vocab_size * model.d_model
    flops = {
        "products of the head": 6 * tokens * head,
        "products of the layers": 6 * tokens * (model.parameters - head),
        "products of attention": 6 * tokens * model.n_layers * model.d_model * data.seq_len,
    }
    moved = {
        "optimizer and clipping": 7 * 4 * model.parameters,
        "elementwise, head": 2 * 2 * tokens * model.vocab_size,
        "elementwise, layers and attention": 3
        * tokens
        * model.n_layers
        * (2 * (6 + 10) * model.d_model + 4 * model.d_ff),
    }
    rate, bandwidth = matmul_rate(), copy_rate()
    least = {name: count / rate for name, count in flops.items()}
    return least | {name: count / bandwidth for name, count in moved.items()}


def table(title: str, columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> Table:
    """A table whose figures line up."""
    result = Table(title=title, title_justify="left", title_style="bold", box=None)
    for number, column in enumerate(columns):
        result.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        result.add_row(*row)
    return result


def report(console: Console, name: str, config: TrialConfig, rounds: int) -> None:
    """Measure one configuration and print its two tables."""
    memory = {
        who: in_new_process(peak_memory_of_steps, who, config) for who in ("ours", "llama", "plain")
    }
    before = matmul_rate()
    times = alternating(config, rounds)
    after = matmul_rate()
    rate = statistics.mean((before, after))
    tokens = config.data.batch_size * config.data.seq_len
    flops = tokens * config.model.flops_per_token(config.data.seq_len)
    rows: list[tuple[str, ...]] = []
    for who, each in times.items():
        ratio = statistics.median(a / b for a, b in zip(each, times["ours"], strict=True))
        gigabytes = f"{memory[who] / 1e9:.2f}" if who in memory else ""
        median = statistics.median(each)
        share = f"{flops / median / rate:.0%}" if who != "llama" else ""
        rows.append((who, f"{median:.2f}", f"{min(each):.2f}", f"{ratio:.2f}", share, gigabytes))
    console.print(
        table(
            f"{name}: {config.precision}, {flops / 1e12:.2f} TFLOP a step, {rounds} rounds,"
            f" {torch.get_num_threads()} threads",
            ("step", "median s", "least s", "x ours", "of bf16 rate", "memory GB"),
            rows,
        )
    )
    console.print(
        f"bf16 rate of 2048-square products: {before / 1e9:.0f} GFLOP/s before,"
        f" {after / 1e9:.0f} after\n"
    )


def report_parts(console: Console, name: str, config: TrialConfig) -> None:
    """Print where a step's time goes."""
    parts, least = time_by_part(config), limits(config)
    total = sum(parts.values())
    rows = [
        (part, f"{t * 1e3:.0f}", f"{t / total:.0%}", f"{least[part] * 1e3:.0f}" if part in least
         else "")
        for part, t in sorted(parts.items(), key=lambda item: -item[1])
    ]  # fmt: skip
    rows.append(("whole", f"{total * 1e3:.0f}", "100%", f"{sum(least.values()) * 1e3:.0f}"))
    columns = ("part", "ms", "share", "least ms")
    console.print(table(f"{name}: one of our steps", columns, rows), "")


def report_choices(console: Console, baseline: TrialConfig, rounds: int) -> None:
    """Print each choice's step, and its step per FLOP beside the baseline's, taken in turn."""
    configs = {name: baseline.with_values(values) for name, values in CHOICES.items()}
    steps = {name: contender("ours", config) for name, config in configs.items()}
    batch = draw_batch(baseline)
    keep_freed_memory()
    times = [{n: seconds(step, batch) for n, step in steps.items()} for _ in range(rounds + 1)][1:]
    flops = {name: c.model.flops_per_token(c.data.seq_len) for name, c in configs.items()}
    rows: list[tuple[str, ...]] = []
    for name in CHOICES:
        ratio = statistics.median(each[name] / each["baseline"] for each in times)
        per_flop = ratio * flops["baseline"] / flops[name]
        median = statistics.median(each[name] for each in times)
        rows.append((name, f"{median:.2f}", f"{ratio:.2f}", f"{per_flop:.2f}"))
    columns = ("choice", "median s", "x baseline", "x baseline per FLOP")
    console.print(table(f"choices, {baseline.precision}, {rounds} rounds", columns, rows))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configurations", nargs="*", default=DIFFERENT_SIZES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--choices", action="store_true")
    arguments = parser.parse_args()
    console = Console(width=100)
    six = reference_configurations(PAPER, "as-run")
    if arguments.choices:
        baseline = replace(six["baseline"], precision=best_precision("cpu"))
        report_choices(console, baseline, arguments.rounds)
        return
    for name in arguments.configurations:
        config = replace(six[name], precision=best_precision("cpu"))
        report(console, name, config, arguments.rounds)
        report_parts(console, name, config)


if __name__ == "__main__":
    main()
