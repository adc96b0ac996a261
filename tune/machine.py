"""Facts about this machine: device, precision, memory, the hardware's name."""

import ctypes
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from quarterhour.search_spaces.point import Precision

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
# What CUDA takes in each process beside its allocator: the context, kernels, libraries. On an H200
# (torch 2.11.0+cu130, driver 580.159.04) it was 552 MB at first, 808 after steps of all precisions
# and at most 896 with a recorded step. A process cannot measure its own: a card tells that of all.
CUDA_CONTEXT_BYTES = 900_000_000

CGROUPS, MEMBERSHIPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cpu_count() -> int:
    """Cores that this process may use: those of its affinity, no more than its container's."""
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    limits = [*_limits("cpu.max"), *_limits("cpu.cfs_quota_us", "cpu.cfs_period_us")]
    return max(1, int(min([cores, *(quota / period for quota, period in limits)])))


def _limits(*files: str) -> Iterator[list[int]]:
    """The numbers in these files of this process's control groups, which say `max` or -1 for none.

    The groups that they are in count too. Version 1 has its own names of files, and more groups.
    """
    for group in _control_groups():
        with suppress(OSError, ValueError):
            words = [word for name in files for word in (group / name).read_text().split()]
            if int(words[0]) > 0:
                yield [int(word) for word in words]


def _control_groups() -> Iterator[Path]:
    """The folders of this process's control groups on Linux; a container may not have them all."""
    memberships = MEMBERSHIPS.read_text().splitlines() if MEMBERSHIPS.exists() else []
    for _, controllers, path in (line.split(":", 2) for line in memberships):
        root = CGROUPS / controllers
        group = root / path.lstrip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root))


def gpu_count() -> int:
    """GPUs that torch can use; torch.cuda.device_count() counts those of an old driver too."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def why_no_gpu() -> str | None:
    """Why torch can use no graphics card, in one line; None if it can, or there is none, or hidden.

    An empty CUDA_VISIBLE_DEVICES, or -1, hides all cards.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpu_count() or visible in ("", "-1"):
        return None
    cards = graphics_cards("name", "driver_version")
    if not cards:
        return None
    name, driver = cards[0].rsplit(", ", 1)
    if not torch.backends.cuda.is_built():
        reason = f"torch {torch.__version__} is built without CUDA; install a torch that has it"
    elif visible is not None and not torch.cuda.device_count():
        reason = f"CUDA_VISIBLE_DEVICES is {visible}, which is none of this machine's; unset it"
    else:
        reason = (
            f"driver {driver} is too old for CUDA {torch.version.cuda} of torch"
            f" {torch.__version__}; update the driver, or install a torch for an older CUDA"
        )
    return f"torch cannot use the {name}: {reason}"


def graphics_cards(*fields: str) -> list[str]:
    """These fields of each card, by the driver: torch sees only those that it can use."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.splitlines() if done.returncode == 0 else []


def device_memory_bytes(device: str) -> int:
    """Memory of a GPU, or of the machine: no more than its container's."""
    if device == "cuda":
        return torch.cuda.get_device_properties().total_memory
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [*_limits("memory.max"), *_limits("memory.limit_in_bytes")]
    return min([installed, *(limit for (limit,) in limits)])


def compute_capability(device: str) -> tuple[int, int]:
    """A GPU's compute capability; (0, 0) for a CPU."""
    return torch.cuda.get_device_capability() if device == "cuda" else (0, 0)


def cap_gpu_memory(share: float) -> None:
    """Keep this process's allocator within its share of the GPU, less what CUDA itself takes."""
    context = CUDA_CONTEXT_BYTES / device_memory_bytes("cuda")
    torch.cuda.set_per_process_memory_fraction(min(1.0, share) - context)


def reached_gpu_cap(error: torch.OutOfMemoryError) -> bool:
    """Whether this process asked for more than its cap; else others have taken the GPU's memory.

    An error that does not say how much was asked for counts as the former.
    """
    asked = re.search(r"Tried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)", str(error))
    if not asked:
        return True
    unit = 1024 ** ("bytes", "KiB", "MiB", "GiB").index(asked[2])
    at_most = (float(asked[1]) + 0.005) * unit  # the text has two digits after the point
    cap = torch.cuda.get_per_process_memory_fraction() * device_memory_bytes("cuda")
    return torch.cuda.memory_reserved() + at_most >= cap


def best_precision(device: str) -> Precision:
    """AMP dtype of a device: bf16 where the hardware multiplies it, fp16 on older GPUs, or fp32."""
    if device == "cuda":
        return "bf16" if compute_capability(device) >= (8, 0) else "fp16"
    features = torch.cpu.get_capabilities()
    return "bf16" if features.get("avx512_bf16") or features.get("amx_bf16") else "fp32"


def describe_hardware(device: str) -> dict[str, Any]:
    """The machine, as a result names it. Memory in bytes."""
    cpu = torch.cpu.get_capabilities().get("cpu_name") or platform.machine()
    memory = device_memory_bytes("cpu")
    described = {"device": device, "name": cpu, "cores": cpu_count(), "memory_bytes": memory}
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

    Memory that an earlier trial of this process has freed is given back first: it would be counted.
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
