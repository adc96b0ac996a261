"""What the machine offers: device, precision, memory, and how many trials share it."""

import ctypes
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from search_spaces.point import Precision, TrialConfig

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one trial gets, and how many run at once. Threads are whole, CPUs may be a fraction."""

    device: str
    cpus: float
    gpus: float
    cpus_per_trial: float
    gpus_per_trial: float

    @property
    def threads(self) -> int:
        """CPU threads of one trial."""
        return max(1, int(self.cpus_per_trial))

    @property
    def concurrency(self) -> int:
        """Trials that fit on the machine at once."""
        places = int(self.cpus / self.cpus_per_trial + 1e-9)
        if self.gpus_per_trial > 1:
            return min(places, int(self.gpus / self.gpus_per_trial))
        if self.gpus_per_trial > 0:  # Ray puts a trial on one GPU, never on parts of two
            return min(places, int(self.gpus) * int(1 / self.gpus_per_trial + 1e-9))
        return places


def plan_resources(cpus_per_trial: float | None, gpus_per_trial: float | None) -> Resources:
    """Resources of a trial on this machine: what is asked for, else a GPU each, else one core each.

    Raises ValueError where the machine has not what is asked for.
    """
    cpus, gpus = float(os.cpu_count() or 1), float(torch.cuda.device_count())
    if gpus_per_trial is None:
        gpus_per_trial = min(1.0, gpus)
    if gpus_per_trial < 0 or gpus_per_trial > gpus:
        raise ValueError(
            f"--gpus-per-trial is {gpus_per_trial:g}: this machine has {gpus:g} GPUs that torch can"
            " use; ask for at most that, or 0 to train on the CPU"
        )
    if cpus_per_trial is None:
        cpus_per_trial = min(1.0, cpus * gpus_per_trial / gpus) if gpus_per_trial else 1.0
    if not 0 < cpus_per_trial <= cpus:
        raise ValueError(
            f"--cpus-per-trial is {cpus_per_trial:g}: it must be above 0 and at most this"
            f" machine's {cpus:g} cores"
        )
    return Resources(
        device="cuda" if gpus_per_trial else "cpu",
        cpus=cpus,
        gpus=gpus,
        cpus_per_trial=cpus_per_trial,
        gpus_per_trial=gpus_per_trial,
    )


def memory_per_trial_bytes(resources: Resources) -> float:
    """What one of the trials that run at once may take: of its GPU, or of the machine."""
    if resources.device == "cuda":
        total = torch.cuda.get_device_properties().total_memory
        return total / max(1, int(1 / resources.gpus_per_trial + 1e-9))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / resources.concurrency


def least_memory_bytes(config: TrialConfig) -> int:
    """A lower bound of a trial's peak memory: what is more than there is cannot be trained.

    Weights, gradients and AdamW's two moments in fp32; and what each layer keeps of each token for
    its backward: two norms, queries, keys, values, attention (6 d_model) and the feed-forward
    before and after its activation (2 d_ff).
    """
    model, data = config.model, config.data
    per_token = model.n_layers * (6 * model.d_model + 2 * model.d_ff)
    bytes_each = 4 if config.precision == "fp32" else 2
    return 16 * model.parameters + data.batch_size * data.seq_len * per_token * bytes_each


def best_precision(device: str) -> Precision:
    """AMP dtype of a device: bf16 where the hardware multiplies it, fp16 on older GPUs, or fp32."""
    if device == "cuda":
        return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    features = torch.cpu.get_capabilities()
    return "bf16" if features.get("avx512_bf16") or features.get("amx_bf16") else "fp32"


def describe_hardware(device: str) -> dict[str, Any]:
    """The machine as a result has to name it. Memory in bytes."""
    cpu = torch.cpu.get_capabilities().get("cpu_name") or platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    described = {"device": device, "name": cpu, "cores": os.cpu_count(), "memory_bytes": memory}
    if device == "cuda":
        described["name"] = torch.cuda.get_device_name()
        described["gpu_memory_bytes"] = torch.cuda.get_device_properties().total_memory
    return described


def keep_freed_memory() -> None:
    """Let this process reuse freed memory instead of returning it to the kernel (glibc only).

    Fresh pages for the large temporaries of a step cost a tenth of its time on a CPU.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement of `peak_memory_bytes`, where the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes(device: torch.device) -> int | None:
    """Largest memory since the reset: allocated on a GPU, resident on Linux; elsewhere None."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
