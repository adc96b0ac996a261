"""Waits for a point that was added to a search which runs in another process."""

import time
from contextlib import suppress
from pathlib import Path

from quarterhour.tune.foreign import damage_told
from quarterhour.tune.run_folder import QUEUE
from quarterhour.tune.run_reader import owner, read_config, read_ending, trial_folders

SECONDS = 1.0


class NoEndError(Exception):
    """The search stopped, or refused the point, before that had an end: one line."""


def wait_for_end(folder: Path, key: str) -> Path:
    """The folder of the trial that a search has made of a point, once that trial has its result.

    Raises NoEndError where there will be none, and DamagedError for a result that is damaged.
    """
    others, refused = set[Path](), _refused(folder)
    while True:
        process = owner(folder)  # asked first: what it did before it ended is seen
        trial = _trial_of(folder, key, others)
        if trial and read_ending(trial):
            return trial
        if new := _refused(folder) - refused:
            raise NoEndError(f"a point was refused; its search says why: {min(new)}")
        if not process:
            state = f"its trial {trial} is stopped" if trial else "the point waits"
            raise NoEndError(f"no search runs in {folder}, and {state} until it is started again")
        time.sleep(SECONDS)


def _trial_of(folder: Path, key: str, others: set[Path]) -> Path | None:
    """The trial of this key; `others` are known to have another, and take the new ones in."""
    for trial in trial_folders(folder):
        if trial.parent == folder and trial not in others:
            with suppress(FileNotFoundError), damage_told():
                if read_config(trial)["key"] == key:
                    return trial
                others.add(trial)
    return None


def _refused(folder: Path) -> set[Path]:
    return set((folder / QUEUE).glob("*.refused"))
