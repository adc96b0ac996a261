"""What the machine offers: device, precision, memory, and how many trials share it."""

import ctypes
import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from search_spaces.point import Precision, TrialConfig
from tune.memory import ACCURACY, CUDA_CONTEXT_BYTES, peak_bytes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
# Of a GPU under "auto": shares are its multiples, so that trials can follow in one process.
SMALLEST_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A running Ray cluster: machines that are alike, and what each of them gives to trials.

    All see `shared_folder`, under which the trials' folders are. `machines` has Ray's identifiers.
    """

    address: str
    shared_folder: str
    machines: tuple[str, ...]
    cpus: float
    gpus: float
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one trial gets, and how many run at once. Threads are whole, CPUs may be a fraction.

    `cpus` and `gpus` are those of one machine: this one, or each of a cluster's. With `by_memory`
    each trial gets as much of a GPU as it needs, at least `gpus_per_trial`.
    """

    device: str
    cpus: float
    gpus: float
    cpus_per_trial: float
    gpus_per_trial: float
    by_memory: bool = False
    cluster: Cluster | None = None

    @property
    def threads(self) -> int:
        """CPU threads of one trial."""
        return max(1, int(self.cpus_per_trial))

    @property
    def concurrency(self) -> int:
        """The most trials that can run at once, on all machines."""
        return self.places * (len(self.cluster.machines) if self.cluster else 1)

    @property
    def where(self) -> str:
        """Of several machines, how many they are, as a headline says it."""
        return f" on {len(self.cluster.machines)} machines" if self.cluster else ""

    @property
    def places(self) -> int:
        """The most trials that can be on one machine at once."""
        places = int(self.cpus / self.cpus_per_trial + 1e-9)
        if self.gpus_per_trial > 1:
            return min(places, int(self.gpus / self.gpus_per_trial))
        if self.gpus_per_trial > 0:  # Ray puts a trial on one GPU, never on parts of two
            return min(places, int(self.gpus) * int(1 / self.gpus_per_trial + 1e-9))
        return places

    def for_trial(self, config: TrialConfig) -> dict[str, float]:
        """What a trial asks of Ray: CPUs, a share of a GPU, bytes of its machine's memory.

        A trial without a GPU takes its place's part of the memory, and that of more places where it
        needs more. Raises TooLargeError where its predicted memory is more than it can get.
        """
        there, needed = self._memory_bytes(), peak_bytes(config, self.device)
        if self.device == "cuda":
            needed += CUDA_CONTEXT_BYTES
        asked = {"cpu": self.cpus_per_trial, "gpu": self.gpus_per_trial}
        if not self.gpus_per_trial:
            place = int(there / self.places)
            places = math.ceil(_within(needed, there) / place)
            return asked | {"memory": min(places, self.places) * place}
        if not self.by_memory:
            _within(needed, there * min(1.0, self.gpus_per_trial))
            return asked
        share = min(1.0, _within(needed, there) * ACCURACY / there)
        smallest = math.ceil(share / self.gpus_per_trial - 1e-9)
        return asked | {"gpu": round(smallest * self.gpus_per_trial, 4)}

    def _memory_bytes(self) -> int:
        """Memory of the device for all its trials; a cluster keeps some of its machines' back."""
        if self.cluster and self.device == "cpu":
            return self.cluster.memory_bytes
        return device_memory_bytes(self.device)


class TooLargeError(ValueError):
    """A trial needs more memory than it can get."""


def _within(needed: float, there: float) -> float:
    if needed > there:
        raise TooLargeError(f"needs {needed / 1e9:.1f} GB, and a trial has {there / 1e9:.1f} GB")
    return needed


def plan_resources(
    cpus_per_trial: float | None,
    gpus_per_trial: float | str | None,
    cluster: Cluster | None = None,
) -> Resources:
    """Resources of a trial: what is asked for, else a GPU each, else one core each.

    On this machine, or on those of a cluster, which are as this one is. GPUs may be "auto". Raises
    ValueError where the machine has not what is asked for.
    """
    cpus, gpus = float(os.cpu_count() or 1), float(torch.cuda.device_count())
    if cluster:
        cpus, gpus = cluster.cpus, cluster.gpus if gpus else 0.0  # of those that torch can use
    by_memory = gpus_per_trial == "auto"
    share = _asked_gpus(gpus_per_trial, gpus)
    if cpus_per_trial is None:
        cpus_per_trial = min(1.0, cpus * share / gpus) if share else 1.0
    if not 0 < cpus_per_trial <= cpus:
        raise ValueError(
            f"--cpus-per-trial is {cpus_per_trial:g}: it must be above 0 and at most this"
            f" machine's {cpus:g} cores"
        )
    return Resources(
        device="cuda" if share else "cpu",
        cpus=cpus,
        gpus=gpus,
        cpus_per_trial=cpus_per_trial,
        gpus_per_trial=share,
        by_memory=by_memory,
        cluster=cluster,
    )


def _asked_gpus(asked: float | str | None, gpus: float) -> float:
    """GPUs of a trial, of the smallest one for "auto"."""
    if asked is None:
        return min(1.0, gpus)
    try:
        share = SMALLEST_SHARE if asked == "auto" else float(asked)
    except ValueError:
        share = math.nan
    if not 0 <= share <= gpus:
        raise ValueError(
            f"--gpus-per-trial is {asked if isinstance(asked, str) else format(asked, 'g')}: this"
            f" machine has {gpus:g} GPUs that torch can use; ask for a number up to that, for auto"
            " on a GPU, or for 0 to train on the CPU"
        )
    return share


def device_memory_bytes(device: str) -> int:
    """Memory of a GPU, or of the machine."""
    if device == "cuda":
        return torch.cuda.get_device_properties().total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cap_gpu_memory(share: float) -> None:
    """Keep this process's allocator within its share of the GPU, less what CUDA itself takes."""
    context = CUDA_CONTEXT_BYTES / device_memory_bytes("cuda")
    torch.cuda.set_per_process_memory_fraction(min(1.0, share) - context)


def best_precision(device: str) -> Precision:
    """AMP dtype of a device: bf16 where the hardware multiplies it, fp16 on older GPUs, or fp32."""
    if device == "cuda":
        return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    features = torch.cpu.get_capabilities()
    return "bf16" if features.get("avx512_bf16") or features.get("amx_bf16") else "fp32"


def describe_hardware(device: str) -> dict[str, Any]:
    """The machine as a result has to name it. Memory in bytes."""
    cpu = torch.cpu.get_capabilities().get("cpu_name") or platform.machine()
    memory = device_memory_bytes("cpu")
    described = {"device": device, "name": cpu, "cores": os.cpu_count(), "memory_bytes": memory}
    if device == "cuda":
        described["name"] = torch.cuda.get_device_name()
        described["gpu_memory_bytes"] = device_memory_bytes("cuda")
    return described


def keep_freed_memory() -> None:
    """Let this process reuse freed memory instead of returning it to the kernel (glibc only).

    Fresh pages for the large temporaries of a step cost a tenth of its time on a CPU.
    """
    if _has_glibc():
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def _has_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement of `peak_memory_bytes`, where the system allows it.

    What an earlier trial of this process has freed goes back first, or it would be counted.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif os.access("/proc/self/clear_refs", os.W_OK):
        if _has_glibc():
            ctypes.CDLL(None).malloc_trim(0)
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
