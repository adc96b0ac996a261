"""A self-test of this machine: each check measures something and says its limit."""

import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from quarterhour.data.files import cache_folder, write_text
from quarterhour.search_spaces.point import TrialConfig
from quarterhour.search_spaces.profiles import PAPER
from quarterhour.tune.experiment import package_versions
from quarterhour.tune.machine import (
    CUDA_CONTEXT_BYTES,
    best_precision,
    compute_capability,
    cpu_count,
    describe_hardware,
    gpu_count,
    keep_freed_memory,
    peak_memory_bytes,
    reset_peak_memory,
    why_no_gpu,
)
from quarterhour.tune.training.golden import TOLERANCE, deviations, golden_cases, measure
from quarterhour.tune.training.memory import ACCURACY, PROCESS_BYTES, peak_bytes
from quarterhour.tune.training.trainer import AUTOCAST_DTYPES, Stopwatch, Trainer

WARM_UP_STEPS, LEAST_STEPS, STEP_SECONDS = 2, 3, 10.0
# Of the rate at which the device multiplies large matrices; a lower share points to a fault.
LEAST_SHARE = 0.25
FREE_BYTES = 4e9  # checkpoints of the six at the paper's size, and of those being written


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the self-test; a plain fact has no limit and cannot fail."""

    name: str
    found: str
    limit: str = ""
    passed: bool | None = None


def run_checks(runs: Path) -> Iterator[Check]:
    """All checks of this machine, each as soon as it is done: about a minute on two CPU cores."""
    device = torch.device("cuda" if gpu_count() else "cpu")
    config = replace(PAPER.baseline, precision=best_precision(device.type))
    yield from _versions()
    yield from _hardware(device, config)
    yield _golden(device)
    yield from _training(device, config)
    for name, folder in (("run folders", lambda: runs), ("data cache", cache_folder)):
        yield _writable(name, folder)


def _versions() -> Iterator[Check]:
    yield Check(name="python", found=f"{platform.python_version()} on {platform.platform()}")
    for package, version in package_versions().items():
        yield Check(name=package, found=version)


def _hardware(device: torch.device, config: TrialConfig) -> Iterator[Check]:
    hardware = describe_hardware(device.type)
    yield Check(name="device", found=f"{hardware['name']} ({device.type})")
    machine = f"{hardware['cores']} cores, {hardware['memory_bytes'] / 1e9:.1f} GB"
    yield Check(name="machine", found=machine)
    if device.type == "cuda":
        major, minor = compute_capability(device.type)
        memory = hardware["gpu_memory_bytes"] / 1e9
        yield Check(name="GPU", found=f"compute capability {major}.{minor}, {memory:.1f} GB")
    elif reason := why_no_gpu():
        yield Check(name="GPU", found=reason, limit="usable", passed=False)
    yield Check(name="precision", found=config.precision)


def _golden(device: torch.device) -> Check:
    """The first golden case in fp32 on this device."""
    case = golden_cases()[0]
    measured = measure(case["config"], device)
    worst = max(max(deviations(case[name], measured[name])) for name in case.keys() - {"config"})
    return Check(
        name="golden numbers",
        found=f"{worst:.1e} off",
        limit=f"at most {TOLERANCE:.0e}",
        passed=worst <= TOLERANCE,
    )


def _training(device: torch.device, config: TrialConfig) -> Iterator[Check]:
    """Steps of the paper's baseline: memory, rate, and share of the device's own peak."""
    torch.set_num_threads(cpu_count())  # torch itself counts the machine's, not a container's
    keep_freed_memory()
    reset_peak_memory(device)
    before = peak_memory_bytes(device)
    trainer = Trainer(config, device)
    batch_BT = _batch(config, device)
    for _ in range(WARM_UP_STEPS):
        trainer.train_step(batch_BT)
    yield memory_check(device, config, before, peak_memory_bytes(device))
    if device.type == "cuda":
        yield _context()
        yield _waits(trainer, batch_BT)
    seconds = statistics.median(_step_seconds(trainer, batch_BT))
    yield Check(
        name="step of the paper's baseline",
        found=f"{seconds:.3g} s, {batch_BT[:, 1:].numel() / seconds:,.0f} tokens/s",
    )
    yield _share(device, config, seconds)


def _batch(config: TrialConfig, device: torch.device) -> torch.Tensor:
    shape = (config.data.batch_size, config.data.seq_len + 1)
    return torch.randint(config.model.vocab_size, shape, device=device)


def memory_check(
    device: torch.device, config: TrialConfig, before: int | None, peak: int | None
) -> Check:
    """The peak of a trial without its process, which here has loaded other things."""
    predicted = peak_bytes(config, device.type, compute_capability(device.type))
    if device.type == "cpu":
        predicted -= PROCESS_BYTES
    if before is None or peak is None:
        return Check(name="memory", found=f"predicted {predicted / 1e9:.2f} GB, not measured here")
    error = predicted / (peak - before) - 1
    return Check(
        name="memory, predicted and measured",
        found=f"{predicted / 1e9:.2f} and {(peak - before) / 1e9:.2f} GB ({error:+.0%})",
        limit=f"within {ACCURACY - 1:.0%}",
        passed=abs(error) <= ACCURACY - 1,
    )


def _context() -> Check:
    """What CUDA takes beside the allocator, if no other process is on the GPU."""
    free, total = torch.cuda.mem_get_info()
    beside = total - free - torch.cuda.memory_reserved()
    return Check(
        name="memory of CUDA itself, and of others",
        found=f"{beside / 1e6:.0f} MB; {CUDA_CONTEXT_BYTES / 1e6:.0f} MB are kept for CUDA",
    )


def _waits(trainer: Trainer, batch_BT: torch.Tensor) -> Check:
    """Whether the host waits for the GPU within a step; CUDA raises where it would."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.train_step(batch_BT)
        reason = None
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return Check(
        name="waits of the host in a step", found=reason or "none", limit="none", passed=not reason
    )


def _step_seconds(trainer: Trainer, batch_BT: torch.Tensor) -> list[float]:
    """Times of steps, for about ten seconds."""
    began, seconds = time.perf_counter(), list[float]()
    while len(seconds) < LEAST_STEPS or time.perf_counter() - began < STEP_SECONDS:
        seconds.append(_timed(trainer.device, lambda: trainer.train_step(batch_BT)))
    return seconds


def _timed(device: torch.device, work: Callable[[], object]) -> float:
    stopwatch = Stopwatch(device)
    begin = stopwatch.mark()
    work()
    stopwatch.span(begin)
    return stopwatch.seconds()[0]


def _share(device: torch.device, config: TrialConfig, step_seconds: float) -> Check:
    """FLOP/s of the step beside those of one large matrix product in the same precision.

    A limit only for a CPU: a GPU's step waits for launches, the more the faster the card is.
    """
    size = 2048 if device.type == "cpu" else 4096
    dtype = AUTOCAST_DTYPES.get(config.precision, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = [_timed(device, lambda: torch.mm(a, b)) for _ in range(22)][2:]
    peak = 2 * size**3 / statistics.median(seconds)
    data = config.data
    flops = data.batch_size * data.seq_len * config.model.flops_per_token(data.seq_len)
    share = flops / step_seconds / peak
    check = Check(
        name=f"share of its peak, {peak / 1e9:,.0f} GFLOP/s in {config.precision}",
        found=f"{share:.0%}",
    )
    if device.type == "cuda":
        return check
    return replace(check, limit=f"at least {LEAST_SHARE:.0%}", passed=share >= LEAST_SHARE)


def _writable(name: str, folder: Callable[[], Path]) -> Check:
    """Whether a file can be written there, and room for the paper's checkpoints."""
    limit = f"writable, {FREE_BYTES / 1e9:.0f} GB free"
    try:
        path = folder().absolute()
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        with tempfile.TemporaryDirectory(dir=existing) as made:
            write_text(Path(made) / "file", "written")
        free = shutil.disk_usage(existing).free
    except OSError as error:
        return Check(name=name, found=str(error), limit=limit, passed=False)
    return Check(
        name=name, found=f"{path}, {free / 1e9:.1f} GB free", limit=limit, passed=free >= FREE_BYTES
    )
