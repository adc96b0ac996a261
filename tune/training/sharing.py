"""How many trials train on a device at this moment: each holds the lock of a file of its own."""

import fcntl
import os
import platform
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch

from quarterhour.data.files import cache_folder


class SharedDevice:
    """A device of this machine, among all processes of this user that train on it."""

    def __init__(self, device: torch.device) -> None:
        name = device.type
        if name == "cuda":  # torch takes the first of those that the process sees
            first = (os.environ.get("CUDA_VISIBLE_DEVICES") or "0").split(",")[0]
            name += first.replace("/", "-")  # older names of a MIG instance are paths
        self._folder = cache_folder() / "devices" / platform.node() / name
        self._folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def taken(self) -> Generator[None]:
        """Count this process until the block ends; if it is killed, its lock goes with it."""
        path = self._folder / str(os.getpid())
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                path.unlink()

    def trials(self) -> int:
        """How many processes are counted now."""
        return sum(_is_held(path) for path in self._folder.iterdir())


def _is_held(path: Path) -> bool:
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False
