"""What a GPU makes of quarterhour, as one page to keep or to send.

    python tests/benchmarks/gpu.py [--only step,golden] [--folder gpu] [--tiny]

Needs torch, what `quarterhour run` needs, and no network; where transformers is installed, a Llama
of equal parameters is measured beside ours. Takes about five minutes. Each part runs in a process
of its own, so that one that fails or hangs leaves the others alone. Writes gpu.json and gpu.md into
the folder. With --tiny, all parts run on small models, on a CPU too, and say what they could not
measure: to try this script.
"""

import argparse
import copy
import gc
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from choices import CHOICES
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import quarterhour.tune.self_test
from quarterhour.data.tokens import prepare_tokens
from quarterhour.search_spaces.point import TrialConfig
from quarterhour.search_spaces.profiles import PAPER, QUICK
from quarterhour.search_spaces.reference import reference_configurations
from quarterhour.tune.ledger import TrialSpec
from quarterhour.tune.machine import (
    best_precision,
    cap_gpu_memory,
    compute_capability,
    device_memory_bytes,
    gpu_count,
    graphics_cards,
    reached_gpu_cap,
)
from quarterhour.tune.self_test import run_checks
from quarterhour.tune.training.evaluation import (
    continue_prompts,
    heldout_metrics,
    leaky_metrics,
    measure_train_batch,
)
from quarterhour.tune.training.golden import deviations, golden_cases, measure
from quarterhour.tune.training.memory import peak_bytes, reserved_bytes
from quarterhour.tune.training.trainer import AUTOCAST_DTYPES, Trainer
from quarterhour.tune.training.trial import Trial

Facts = dict[str, Any]
ON_GPU = gpu_count() > 0
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
TINY = "--tiny" in sys.argv
PART_SECONDS = 150
STEPS, REPEATS, SHARING_SECONDS = (2, 2, 0.5) if TINY else (30, 8, 3.0)
EVALUATIONS, HELDOUT_EVALUATIONS = 6, 3  # of 2,000 steps, and those at the ends of the quarters
ROPE = {"model.positions": "rope", "model.dropout": 0.1}
POINTS: dict[str, tuple[str, str, Facts]] = {
    "baseline": ("baseline", "fp16", {}),
    "large_batch": ("large_batch", "fp16", {}),
    "short_seq": ("short_seq", "fp16", {}),
    "small_model": ("small_model", "fp16", {}),
    "baseline in fp32": ("baseline", "fp32", {}),
    "RoPE and dropout": ("baseline", "fp16", ROPE),
    "largest": (
        "baseline",
        "fp16",
        {
            "model.d_model": 768, "model.n_heads": 12, "model.d_ff": 3072, "model.n_layers": 24,
            "data.batch_size": 32, "data.seq_len": 1024, **ROPE,
        },
    ),
    "smallest": (
        "baseline",
        "fp16",
        {
            "model.d_model": 128, "model.n_heads": 2, "model.d_ff": 512, "model.n_layers": 4,
            "data.batch_size": 2, "data.seq_len": 128,
        },
    ),
}  # fmt: skip


def configuration(
    name: str = "baseline", precision: str | None = None, **values: Any
) -> TrialConfig:
    """One of the six at the paper's size; with --tiny, a small model instead."""
    config = reference_configurations(QUICK if TINY else PAPER, "as-run")[name]
    chosen = {"precision": precision or best_precision(DEVICE.type)}
    if TINY:
        small = {"model.n_layers": 1, "data.batch_size": 2, "data.seq_len": 64}
        return config.with_values({**small, "budget.eval_batches": 1, **chosen})
    return config.with_values({**values, **chosen})


def batches(config: TrialConfig, count: int = 8) -> list[Tensor]:
    """Batches [B, T + 1] of random tokens."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, config.data.batch_size, config.data.seq_len + 1)
    return [*torch.randint(config.model.vocab_size, shape, generator=generator).to(DEVICE)]


def synchronize() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def milliseconds(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median wall clock of a call, after one that warms up."""
    times: list[float] = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        work()
        synchronize()
        times.append((time.perf_counter() - begin) * 1e3)
    return round(statistics.median(times[1:]), 3)


def step_milliseconds(step: Callable[[Tensor], object], config: TrialConfig) -> float:
    """Wall clock of a step among others, as a window of a trial has it."""
    given = batches(config)
    for batch in given[:4]:
        step(batch)
    synchronize()
    begin = time.perf_counter()
    for number in range(STEPS):
        step(given[number % len(given)])
    synchronize()
    return round((time.perf_counter() - begin) / STEPS * 1e3, 3)


def kernels(work: Callable[[], object]) -> list[tuple[str, float]]:
    """Name and milliseconds of each kernel, copy and fill of a call."""
    work()
    synchronize()
    both = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if ON_GPU else [])]
    with profile(activities=both) as profiled:
        work()
        synchronize()
    device = torch.autograd.DeviceType.CUDA if ON_GPU else torch.autograd.DeviceType.CPU
    return [
        (event.name, event.time_range.elapsed_us() / 1e3)
        for event in profiled.events() or []
        if event.device_type == device and "#" not in event.name  # as in Optimizer.step#AdamW.step
    ]


def unreplayed(trainer: Trainer) -> Trainer:
    """A trainer whose steps are launched kernel by kernel."""
    trainer.warnings.append("told not to record a step")
    return trainer


def megabytes(count: float) -> float:
    return round(count / 1e6, 1)


def held_megabytes() -> Facts:
    """What the allocator holds now, and what it held at most since the last reset."""
    return {
        "allocated": megabytes(torch.cuda.memory_allocated()),
        "most allocated": megabytes(torch.cuda.max_memory_allocated()),
        "reserved": megabytes(torch.cuda.memory_reserved()),
        "most reserved": megabytes(torch.cuda.max_memory_reserved()),
    }


def beside_the_allocator() -> float:
    """Megabytes that CUDA takes itself, if no other process is on the card."""
    free, total = torch.cuda.mem_get_info()
    return megabytes(total - free - torch.cuda.memory_reserved())


def card() -> Iterator[Facts]:
    """Names and versions, and what CUDA takes before and after training."""
    yield {"torch": torch.__version__, "CUDA": torch.version.cuda, "python": sys.version.split()[0]}
    if not ON_GPU:
        return
    yield {"by the driver": graphics_cards("name", "driver_version", "memory.total", "memory.used")}
    yield {"memory, MB": megabytes(device_memory_bytes("cuda"))}
    yield {"compute capability": compute_capability("cuda")}
    used = graphics_cards("memory.used")
    yield {"used after torch has told the card's properties": used}
    torch.zeros(1, device=DEVICE)
    yield {"beside the allocator, MB, at first": beside_the_allocator()}
    segments = torch.cuda.memory_snapshot()
    yield {"segments grow": all(segment["is_expandable"] for segment in segments)}
    for precision in ("fp32", best_precision(DEVICE.type)):
        trainer = Trainer(configuration(precision=precision), DEVICE)
        for batch in batches(trainer.config, 3):
            trainer.train_step(batch)
        trainer.metrics(batches(trainer.config, 1)[0])
        yield {f"beside the allocator, MB, after steps in {precision}": beside_the_allocator()}


def golden() -> Iterator[Facts]:
    """How far the golden numbers are off."""
    for number, case in enumerate(golden_cases()):
        measured = measure(case["config"], DEVICE)
        worst = max(max(deviations(case[key], measured[key])) for key in case.keys() - {"config"})
        yield {f"case {number}": worst}


def precisions() -> Iterator[Facts]:
    """Losses of 20 steps in half precision against fp32."""
    losses: dict[str, list[float]] = {}
    for precision in ("fp32", "fp16", "bf16"):
        trainer = Trainer(configuration(precision=precision), DEVICE)
        given = batches(trainer.config, 20)
        losses[precision] = [float(loss) for loss, _ in map(trainer.train_step, given)]
        off = [abs(a / b - 1) for a, b in zip(losses[precision], losses["fp32"], strict=True)]
        yield {precision: {"last loss": losses[precision][-1], "off at most": max(off)}}


def waits() -> Iterator[Facts]:
    """Whether the host waits in a step; CUDA raises where it would."""
    if not ON_GPU:
        yield {"not measured": "no GPU"}
        return
    for precision in ("fp16", "bf16", "fp32"):
        trainer = Trainer(configuration(precision=precision, **ROPE), DEVICE)
        given = batches(trainer.config, 3)
        trainer.train_step(given[0])
        torch.cuda.set_sync_debug_mode("error")
        trainer.train_step(given[1])
        unreplayed(trainer)
        trainer._captured = None  # pyright: ignore
        trainer.train_step(given[2])
        torch.cuda.set_sync_debug_mode("default")
        yield {precision: "none"}


def refused() -> Iterator[Facts]:
    """A step with dropout that waits, so that it cannot be recorded: told, and trained the same."""
    losses: list[list[float]] = []
    for waits in (False, True):
        trainer = Trainer(configuration(precision="fp32", **ROPE), DEVICE)
        update = trainer._update  # pyright: ignore
        if waits:
            trainer._update = lambda *given, update=update: waited(update(*given))  # pyright: ignore
        steps = [trainer.train_step(batch) for batch in batches(trainer.config, 6)]
        losses.append([float(loss) for loss, _ in steps])
        yield {f"waits: {waits}": {"replayed": trainer.captured, "warnings": trainer.warnings}}
    yield {"off at most": max(abs(a / b - 1) for a, b in zip(*losses, strict=True))}


def resumed() -> Iterator[Facts]:
    """How far four losses after a resume are off from those of an undisturbed trainer."""
    for precision in ("fp32", best_precision(DEVICE.type)):
        config = configuration(precision=precision, **ROPE)
        undisturbed, fresh = Trainer(config, DEVICE), Trainer(config, DEVICE)
        first, later = batches(config, 8)[:4], batches(config, 8)[4:]
        for batch in first:
            undisturbed.train_step(batch)
        fresh.load_state_dict(copy.deepcopy(undisturbed.state_dict()))
        losses = [
            [float(loss) for loss, _ in map(trainer.train_step, later)]
            for trainer in (undisturbed, fresh)
        ]
        yield {precision: max(abs(a / b - 1) for a, b in zip(*losses, strict=True))}


def waited(measured: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same, after the host has read one of them."""
    measured[0].item()
    return measured


def memory(point: str) -> Iterator[Facts]:
    """Predicted and measured memory of a trial: evaluation, steps, evaluation."""
    name, precision, values = POINTS[point]
    config = configuration(name, precision, **values)
    capability = compute_capability(DEVICE.type)
    yield {
        "predicted": megabytes(peak_bytes(config, "cuda", capability)),
        "predicted to be reserved": megabytes(reserved_bytes(config, capability)),
    }
    if not ON_GPU:
        return
    trainer, given = Trainer(config, DEVICE), batches(config, 4)
    stages: dict[str, Callable[[], object]] = {
        "model": lambda: None,
        "metrics before": lambda: trainer.metrics(given[0]),
        "first step, which is recorded": lambda: trainer.train_step(given[1]),
        "later steps": lambda: [trainer.train_step(batch) for batch in given],
        "metrics after": lambda: trainer.metrics(given[0]),
        "loss": lambda: trainer.loss(given[0]),
    }
    for stage, work in stages.items():
        torch.cuda.reset_peak_memory_stats()
        work()
        synchronize()
        yield {stage: held_megabytes()}
    reserved: dict[str, float] = {}
    for segment in torch.cuda.memory_snapshot():
        pool = f"pool {segment['segment_pool_id']}, stream {segment['stream']}"
        reserved[pool] = reserved.get(pool, 0) + segment["total_size"] / 1e6
    yield {"replayed": trainer.captured, "warnings": trainer.warnings}
    yield {"reserved by pool and stream": {pool: round(mb, 1) for pool, mb in reserved.items()}}
    yield {"beside the allocator": beside_the_allocator()}


def step() -> Iterator[Facts]:
    """Milliseconds of a step and its peers', its kernels, and its share of the matrix rate."""
    size = 256 if TINY else 8192
    for precision in [best_precision(DEVICE.type)] if TINY else ["fp16", "bf16"]:
        config = configuration(precision=precision)
        dtype = AUTOCAST_DTYPES.get(precision, torch.float32)
        a, b = (torch.randn(size, size, device=DEVICE, dtype=dtype) for _ in range(2))
        rate = 2 * size**3 / milliseconds(partial(torch.mm, a, b)) / 1e9
        flops = config.model.flops_per_token(config.data.seq_len)
        flops *= config.data.batch_size * config.data.seq_len
        facts: Facts = {"matrix TFLOP/s": round(rate, 1)}
        for name, contender in contenders(config, dtype).items():
            taken = step_milliseconds(contender, config)
            share = round(flops / taken / 1e9 / rate, 3)
            facts[name] = {"ms": taken, "share of the matrix rate": share}
        launched = kernels(
            partial(unreplayed(Trainer(config, DEVICE)).train_step, batches(config)[0])
        )
        facts |= {
            "kernels": len(launched),
            "ms in kernels": round(sum(ms for _, ms in launched), 3),
        }
        facts["longest"] = sorted(launched, key=lambda kernel: -kernel[1])[:5]
        yield {precision: facts}


def contenders(config: TrialConfig, dtype: torch.dtype) -> dict[str, Callable[[Tensor], object]]:
    """Ours, replayed and not; the plain way and a Llama in the same autocast, if they can be."""
    ours = {
        "replayed": Trainer(config, DEVICE).train_step,
        "not replayed": unreplayed(Trainer(config, DEVICE)).train_step,
    }
    try:
        from peers import PlainDecoder, PlainTrainer, llama, llama_loss, plain_loss
    except ImportError:
        return ours
    plain, other = PlainDecoder(config.model).to(DEVICE), llama(config.model).to(DEVICE)
    half = dtype if dtype != torch.float32 else None
    return ours | {
        "plain": PlainTrainer(plain, plain_loss, config.optim, half).train_step,
        "transformers Llama": PlainTrainer(other, llama_loss, config.optim, half).train_step,
    }


def evaluation() -> Iterator[Facts]:
    """Parts of an evaluation, and the share that all take of a trial of 2,000 steps."""
    tokens = prepare_tokens(QUICK.data)
    config = configuration()
    with tempfile.TemporaryDirectory() as folder:
        spec = TrialSpec(
            name="gpu",
            config=config,
            data_fingerprint=tokens.manifest.fingerprint,
            folder=Path(folder) / "gpu",
        )
        trial = Trial(spec, tokens, DEVICE)
    trainer, batch = trial.trainer, batches(config, 1)[0]
    a_step = step_milliseconds(trainer.train_step, config)
    parts = {
        "training batch": milliseconds(lambda: measure_train_batch(trainer, batch)),
        "leaky validation": milliseconds(lambda: leaky_metrics(trainer, trial.batches), 2),
        "held-out documents": milliseconds(lambda: heldout_metrics(trainer, trial.batches), 2),
        "samples": milliseconds(lambda: continue_prompts(trainer, tokens), 2),
    }
    whole = EVALUATIONS * sum(parts.values()) + HELDOUT_EVALUATIONS * parts["held-out documents"]
    yield {"step, ms": a_step, **{f"{name}, ms": ms for name, ms in parts.items()}}
    yield {"metrics of a batch, ms": milliseconds(lambda: trainer.metrics(batch))}
    yield {"kernels of a batch's metrics": len(kernels(lambda: trainer.metrics(batch)))}
    yield {"extrapolated share of a trial": round(whole / (whole + 2_000 * a_step), 3)}


def choices() -> Iterator[Facts]:
    """Each other part of a decoder and an optimizer: its numbers, its step, its memory."""
    for name, values in CHOICES.items():
        yield {name: {"off from the CPU at most": off_from_cpu(values), **step_of_choice(values)}}


def off_from_cpu(values: Facts) -> float:
    """How far eight losses in fp32 of a small model are off from those on the CPU, relatively."""
    config = reference_configurations(QUICK, "as-run")["baseline"]
    small = {name: value for name, value in values.items() if name != "model.d_ff"}
    config = config.with_values({**small, "data.batch_size": 2, "precision": "fp32"})
    losses: list[list[float]] = []
    for device in (DEVICE, torch.device("cpu")):
        trainer = Trainer(config, device)
        steps = [trainer.train_step(batch.to(device)) for batch in batches(config)]
        losses.append([float(loss) for loss, _ in steps])
    return max(abs(a / b - 1) for a, b in zip(*losses, strict=True))


def step_of_choice(values: Facts) -> Facts:
    """Milliseconds of a step, whether it is replayed, and its memory, predicted and measured."""
    gc.collect()
    config, held = configuration(**values), torch.cuda.memory_allocated() if ON_GPU else 0
    trainer, batch = Trainer(config, DEVICE), batches(config, 1)[0]
    found: Facts = {"ms": step_milliseconds(trainer.train_step, config)}
    trainer.metrics(batch)
    if ON_GPU:
        predicted = peak_bytes(config, "cuda", compute_capability("cuda"))
        measured = torch.cuda.max_memory_allocated() - held
        torch.cuda.reset_peak_memory_stats()
        found |= {"predicted, MB": megabytes(predicted), "measured, MB": megabytes(measured)}
    return found | {"replayed": trainer.captured, "warnings": trainer.warnings}


def attention() -> Iterator[Facts]:
    """The longest kernel and the time of causal attention, by width of the heads."""
    from quarterhour.model.attention import causal_attention

    for width in (64, 32, 20):
        heads = (2 if TINY else 384) // width or 1
        shape = (3, 2 if TINY else 8, heads, 32 if TINY else 512, width)
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            qkv = torch.randn(shape, device=DEVICE, dtype=dtype, requires_grad=True)

            def work(qkv: Tensor = qkv) -> None:
                causal_attention(*qkv.unbind()).sum().backward()

            longest = max(kernels(work), key=lambda kernel: kernel[1], default=("none", 0.0))
            yield {f"heads of {width}, {dtype}": {"ms": milliseconds(work), "longest": longest[0]}}


def sharing() -> Iterator[Facts]:
    """Tokens a second of four processes with a quarter of the GPU each, and of one."""
    alone, together = (sum(_tokens_per_second(count)) for count in (1, 4))
    yield {"one": round(alone), "four together": round(together), "ratio": together / alone}


def _tokens_per_second(processes: int) -> list[float]:
    context = get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    started = [context.Process(target=_train, args=(barrier, results)) for _ in range(processes)]
    for process in started:
        process.start()
    measured = [results.get(timeout=PART_SECONDS) for _ in started]
    for process in started:
        process.join()
    return measured


def _train(barrier: Any, results: Any) -> None:
    if ON_GPU:
        cap_gpu_memory(0.25)
    config = configuration()
    trainer, given, steps = Trainer(config, DEVICE), batches(config), 0
    trainer.train_step(given[0])
    barrier.wait()
    begin = time.perf_counter()
    while time.perf_counter() - begin < SHARING_SECONDS:
        for batch in given:
            trainer.train_step(batch)
        synchronize()
        steps += len(given)
    tokens = steps * config.data.batch_size * config.data.seq_len
    results.put(tokens / (time.perf_counter() - begin))


def out_of_memory() -> Iterator[Facts]:
    """A trial too large for its share, and the next one in the same process."""
    if not ON_GPU:
        yield {"not measured": "no GPU"}
        return
    config = configuration()
    large = configuration(**{"data.batch_size": 32, "data.seq_len": 1024})
    needed = reserved_bytes(config, compute_capability("cuda")) * 1.1
    torch.cuda.set_per_process_memory_fraction(needed / device_memory_bytes("cuda"))
    try:
        for batch in batches(large, 3):
            Trainer(large, DEVICE).train_step(batch)
        yield {"too large a trial": "no error"}
    except torch.OutOfMemoryError as error:
        yield {"too large a trial": str(error)[:200], "its own fault": reached_gpu_cap(error)}
    trainer = Trainer(config, DEVICE)
    losses = [float(loss) for loss, _ in map(trainer.train_step, batches(config, 4))]
    trainer.metrics(batches(config, 1)[0])
    yield {"the next one": losses, "replayed": trainer.captured, **held_megabytes()}


def doctor() -> Iterator[Facts]:
    """What `quarterhour doctor` says."""
    quarterhour.tune.self_test.STEP_SECONDS = 0.1 if TINY else 2.0
    if TINY:
        quarterhour.tune.self_test.PAPER = replace(PAPER, baseline=configuration())
    with tempfile.TemporaryDirectory() as folder:
        for check in run_checks(Path(folder)):
            yield {check.name: f"{check.found} | {check.limit} | {check.passed}"}


def six() -> Iterator[Facts]:
    """Seconds of the six, extrapolated from some steps to 2,000."""
    for name in reference_configurations(PAPER, "as-run"):
        config = configuration(name)
        taken = step_milliseconds(Trainer(config, DEVICE).train_step, config)
        tokens = config.data.batch_size * config.data.seq_len
        extrapolated = round(taken * 2, 1)
        yield {
            name: {
                "ms": taken,
                "tokens/s": round(tokens / taken * 1e3),
                "2,000 steps, s": extrapolated,
            }
        }


PARTS: dict[str, Callable[[], Iterator[Facts]]] = {
    "card": card,
    "golden": golden,
    "precisions": precisions,
    "waits": waits,
    "refused": refused,
    "resumed": resumed,
    **{f"memory: {point}": partial(memory, point) for point in POINTS},
    "step": step,
    "choices": choices,
    "evaluation": evaluation,
    "out of memory": out_of_memory,
    "doctor": doctor,
    "six": six,
    "attention": attention,
    "sharing": sharing,
}


def run_part(name: str) -> None:
    """In a process of its own: print each fact as a line of JSON as soon as it is known."""
    torch.set_num_threads(2)
    for facts in PARTS[name]():
        print(json.dumps(facts, default=str), flush=True)


def collect(name: str) -> Facts:
    """The facts of a part; with its error, where it did not come to its end."""
    command = [sys.executable, __file__, "--part", name, *(["--tiny"] if TINY else [])]
    begin, errors = time.perf_counter(), ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PART_SECONDS)
        output, errors = done.stdout, done.stderr if done.returncode else ""
    except subprocess.TimeoutExpired as late:
        output = (late.stdout or b"").decode()
        errors = f"stopped after {PART_SECONDS} s"
    facts: Facts = {}
    for line in output.splitlines():
        if line.startswith("{"):
            facts |= json.loads(line)
    facts["seconds"] = round(time.perf_counter() - begin, 1)
    return facts | ({"error": errors[-2000:]} if errors else {})


def write(folder: Path, found: dict[str, Facts]) -> None:
    """The json and the page, after each part."""
    (folder / "gpu.json").write_text(json.dumps(found, indent=1))
    name = torch.cuda.get_device_name() if ON_GPU else "no GPU"
    lines = [f"# quarterhour on {name}, torch {torch.__version__}"]
    for part, facts in found.items():
        lines += ["", f"## {part}", ""]
        lines += [f"- {key}: {_told(value)}" for key, value in facts.items()]
    (folder / "gpu.md").write_text("\n".join(lines) + "\n")


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_told(each)}" for key, each in value.items())
    return f"{value:.4g}" if isinstance(value, float) and not math.isnan(value) else str(value)


def main() -> None:
    """Run the parts that are asked for, and write what they found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--part")
    parser.add_argument("--only", help="parts, with commas; `memory` stands for all its points")
    parser.add_argument("--folder", type=Path, default=Path("gpu"))
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args()
    if asked.part:
        run_part(asked.part)
        return
    asked.folder.mkdir(parents=True, exist_ok=True)
    wanted = asked.only.split(",") if asked.only else [part.split(":")[0] for part in PARTS]
    found: dict[str, Facts] = {}
    for part in PARTS:
        if part in wanted or part.split(":")[0] in wanted:
            found[part] = collect(part)
            print(part, json.dumps(found[part])[:300], flush=True)
            write(asked.folder, found)
    print((asked.folder / "gpu.md").absolute())


if __name__ == "__main__":
    main()
