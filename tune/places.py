"""What one trial gets of a machine or a cluster, and how many trials run at once."""

import math
from dataclasses import dataclass

from quarterhour.search_spaces.point import TrialConfig
from quarterhour.tune.machine import (
    CUDA_CONTEXT_BYTES,
    compute_capability,
    cpu_count,
    device_memory_bytes,
    gpu_count,
    why_no_gpu,
)
from quarterhour.tune.training.memory import ACCURACY, TOKEN_BYTES, peak_bytes, reserved_bytes

# Under "auto", shares of a GPU are multiples of this, so that one process can train many trials.
SMALLEST_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A running Ray cluster of equal machines, and what each of them gives to trials.

    All of them see `shared_folder`, which holds the trials' folders. `machines` has Ray's names.
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
    each trial gets as much of a GPU as it needs, at least `gpus_per_trial`. Each trial holds all
    `train_tokens`.
    """

    device: str
    cpus: float
    gpus: float
    cpus_per_trial: float
    gpus_per_trial: float
    by_memory: bool = False
    train_tokens: int = 0
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
        """The number of machines in a cluster, as a headline says it."""
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

    @property
    def trials_on_device(self) -> int:
        """The most trials that share a GPU, or a machine's CPU."""
        return max(1, self.places // (int(self.gpus) if self.device == "cuda" else 1))

    def for_trial(self, config: TrialConfig) -> dict[str, float]:
        """What a trial asks of Ray: CPUs, a share of a GPU, bytes of its machine's memory.

        A trial without a GPU asks for the memory of one place, or of as many as it needs. Raises
        TooLargeError where its predicted memory is more than it can get.
        """
        there, needed = self._memory_bytes(), self._needed_bytes(config)
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

    def places_of(self, config: TrialConfig) -> int:
        """How many places a trial takes of those that run at once.

        Raises TooLargeError where its predicted memory is more than it can get.
        """
        asked = self.for_trial(config)
        if self.gpus_per_trial:
            return round(asked["gpu"] / self.gpus_per_trial)
        return round(asked["memory"] * self.places / self._memory_bytes())

    def why_too_large(self, config: TrialConfig) -> str | None:
        """Why a trial cannot fit in memory; None if it can."""
        try:
            self.for_trial(config)
        except TooLargeError as error:
            return str(error)
        return None

    def _needed_bytes(self, config: TrialConfig) -> float:
        """What a trial takes of the device: on a GPU also what its allocator and CUDA keep."""
        tokens = TOKEN_BYTES * self.train_tokens
        if self.device == "cpu":
            return peak_bytes(config, self.device) + tokens
        reserved = reserved_bytes(config, compute_capability(self.device))
        return reserved + tokens + CUDA_CONTEXT_BYTES

    def _memory_bytes(self) -> int:
        """The device's memory for all its trials. A cluster keeps some of it back."""
        if self.cluster and self.device == "cpu":
            return self.cluster.memory_bytes
        return device_memory_bytes(self.device)


class ClusterError(RuntimeError):
    """Ray cannot start, or a process of it has died, without which trials would wait for ever."""


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
    """Resources of a trial: what the user asked for, else one GPU, else one core.

    They are those of this machine, or of each machine in a cluster. GPUs may be "auto". Raises
    ValueError where the user asked for more than the machine has.
    """
    cpus, gpus = float(cpu_count()), float(gpu_count())
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
    """GPUs of a trial; for "auto", the smallest share."""
    try:
        smallest = min(1.0, gpus) if asked is None else SMALLEST_SHARE
        share = smallest if asked in (None, "auto") else float(asked)
    except ValueError:
        share = math.nan
    reason = why_no_gpu() if asked is None or share else None
    if reason:
        raise ValueError(f"{reason}; or pass --gpus-per-trial 0 to train on the CPU")
    if not 0 <= share <= gpus:
        raise ValueError(
            f"--gpus-per-trial is {asked if isinstance(asked, str) else format(asked, 'g')}: this"
            f" machine has {gpus:g} GPUs that torch can use; ask for a number up to that, for auto"
            " on a GPU, or for 0 to train on the CPU"
        )
    return share
