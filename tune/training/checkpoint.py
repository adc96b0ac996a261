"""A trial's checkpoints: written whole, checked when loaded, the one before kept."""

import time
import zipfile
from pathlib import Path
from typing import Any

import torch

from quarterhour.data.files import write_file
from quarterhour.tune.foreign import is_plain_file, tell
from quarterhour.tune.ledger import TrialSpec
from quarterhour.tune.run_folder import (
    CHECKPOINT,
    CHECKPOINT_BEFORE_DECAY,
    PREVIOUS_CHECKPOINT,
)
from quarterhour.tune.run_reader import read_rows
from quarterhour.tune.training.recorder import Recorder
from quarterhour.tune.training.trainer import Trainer

CHECKPOINT_SECONDS = 30.0


class Checkpoints:
    """The newest checkpoint in a trial's folder, and the one before it, should that be damaged.

    A trial whose learning rate decays at its end also has one from before, to be extended from.
    A checkpoint that cannot be written or used stops no trial: `warnings` tells of it, oldest
    first.
    """

    def __init__(self, folder: Path) -> None:
        self.warnings: list[str] = []
        self._folder = folder
        self._newest, self._previous = folder / CHECKPOINT, folder / PREVIOUS_CHECKPOINT
        self._saved_at = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is CHECKPOINT_SECONDS old."""
        return time.monotonic() - self._saved_at > CHECKPOINT_SECONDS

    def save(self, trainer: Trainer, seconds: float, recorder: Recorder) -> None:
        """Write a checkpoint after `seconds` of training; on a full disk, only a warning."""
        if self._write(self._newest, trainer, seconds, recorder):
            self._saved_at = time.monotonic()

    def save_before_decay(self, trainer: Trainer, seconds: float, recorder: Recorder) -> None:
        """Write a checkpoint that stays; on a full disk, only a warning."""
        self._write(self._folder / CHECKPOINT_BEFORE_DECAY, trainer, seconds, recorder)

    def _write(self, path: Path, trainer: Trainer, seconds: float, recorder: Recorder) -> bool:
        """Write a checkpoint; whether it could be."""
        state = {"trainer": trainer.state_dict(), "seconds": seconds}

        def write(temporary: Path) -> None:
            torch.save(state, temporary)
            if path == self._newest and path.exists():
                path.replace(self._previous)

        try:
            recorder.sync()  # a checkpoint cannot be used without its rows
            write_file(path, write)
            return True
        except (OSError, RuntimeError) as error:  # torch reports a full disk by the latter
            reason = str(error).splitlines()[0]
            self.warnings.append(f"no checkpoint at step {trainer.step} could be written: {reason}")
            return False

    def load(self, trainer: Trainer) -> tuple[Trainer, float]:
        """Put the newest usable checkpoint into `trainer`; the trainer and its seconds so far.

        Usable is a whole one whose rows are there. A trainer that an unusable one was put into is
        replaced by a fresh one. Raises ValueError where the rows are damaged.
        """
        steps = {row["step"] for row in read_rows(self._folder)}
        for path in filter(is_plain_file, (self._newest, self._previous)):
            try:
                state = _read(path, trainer.device)
                if state["trainer"]["step"] not in steps:
                    raise ValueError("its rows are missing")
                trainer.load_state_dict(state["trainer"])
                return trainer, state["seconds"]
            except Exception as error:  # what a damaged file raises is not foreseeable
                damage = " ".join(str(error).split())[:80]
                self.warnings.append(
                    f"{path} cannot be used ({damage}): training goes on from an earlier state"
                )
                trainer = Trainer(trainer.config, trainer.device)
        return trainer, 0.0

    def drop_previous(self) -> None:
        """Remove the checkpoint before the newest."""
        self._previous.unlink(missing_ok=True)


def trained(spec: TrialSpec) -> Trainer:
    """A trial's trainer, on the CPU, as its newest usable checkpoint has it.

    Raises ValueError where there is none, and DamagedError where the trial's rows are damaged.
    """
    checkpoints = Checkpoints(spec.folder)
    trainer, _ = checkpoints.load(Trainer(spec.config, torch.device("cpu")))
    for warning in checkpoints.warnings:
        tell(warning)
    if not trainer.step:
        raise ValueError(
            f"{spec.folder} has no checkpoint that can be used (a search keeps its best trial's"
            f" alone): `quarterhour run {spec.folder} --runs again` trains it again"
        )
    return trainer


def newest_until(spec: TrialSpec, step: int) -> tuple[Path, int] | None:
    """Of a trial's usable checkpoints the newest of at most `step` updates, and its updates.

    The user is told of damaged ones. Raises DamagedError where the rows are damaged.
    """
    steps, found = {row["step"] for row in read_rows(spec.folder)}, dict[int, Path]()
    names = (CHECKPOINT, PREVIOUS_CHECKPOINT, CHECKPOINT_BEFORE_DECAY)
    for path in filter(is_plain_file, (spec.folder / name for name in names)):
        trainer = Trainer(spec.config, torch.device("cpu"))
        try:
            trainer.load_state_dict(_read(path, trainer.device)["trainer"])
        except Exception as error:  # as above
            tell(f"{path} cannot be used ({' '.join(str(error).split())[:80]})")
            continue
        if trainer.step in steps and trainer.step <= step:
            found[trainer.step] = path
    return (found[max(found)], max(found)) if found else None


def _read(path: Path, device: torch.device) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        if archive.testzip():  # torch does not look at the checksums
            raise ValueError("its checksum is wrong")
    return torch.load(path, map_location=device, weights_only=True)
