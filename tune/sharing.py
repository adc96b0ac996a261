"""How many trials train on a device at this moment: one file each, in a folder they share."""

import os
from pathlib import Path


class SharedDevice:
    """The device of this process, as Ray gave it out, among the processes of one cluster."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / (os.environ.get("CUDA_VISIBLE_DEVICES") or "cpu")
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = self._folder / str(os.getpid())

    def enter(self) -> None:
        """Count this process from now on."""
        self._file.touch()

    def leave(self) -> None:
        """Count this process no more."""
        self._file.unlink(missing_ok=True)

    def trials(self) -> int:
        """Processes that are counted; those that were killed are not."""
        return sum(_lives(int(file.name)) for file in self._folder.iterdir())


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
