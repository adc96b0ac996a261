"""Trial folders as the only truth about trials: what each is, how far it is, how it ended.

A trial's key is the hash of everything that decides its numbers. A finished key is never trained
again: whoever meets it adopts the folder.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from data.files import write_folder, write_text
from search_spaces.point import TrialConfig

Row = dict[str, Any]

CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.jsonl"
RESULT = "result.json"


class Status(StrEnum):
    """How a trial ended."""

    COMPLETE = "COMPLETE"
    FAILED = "FAILED"


@dataclass(frozen=True, kw_only=True)
class Result:
    """End of a trial: COMPLETE with its last row, or FAILED with a reason."""

    status: Status
    key: str
    parameters: int
    metrics: Row
    reason: str | None = None
    diverged: bool = False
    adopted_from: str | None = None

    def __post_init__(self) -> None:
        if self.status is Status.COMPLETE and not self.metrics:
            raise ValueError("a COMPLETE result needs metrics")
        if self.status is Status.FAILED and not self.reason:
            raise ValueError("a FAILED result needs a reason")

    @property
    def final(self) -> bool:
        """Whether training again could not change it: complete, or diverged as it always will."""
        return self.status is Status.COMPLETE or self.diverged


@dataclass(frozen=True, kw_only=True)
class TrialSpec:
    """One trial to run: its name, resolved configuration, data and folder."""

    name: str
    config: TrialConfig
    data_fingerprint: str
    folder: Path

    @property
    def key(self) -> str:
        """Identity of the trial."""
        return self.config.key(self.data_fingerprint)

    @property
    def label(self) -> str:
        """Name and seed, as shown to people."""
        return f"{self.name}/seed{self.config.seed}"

    @property
    def flops(self) -> int:
        """Training FLOPs of the whole trial."""
        data = self.config.data
        tokens = self.config.budget.last_step * data.batch_size * data.seq_len
        return tokens * self.config.model.flops_per_token(data.seq_len)

    def write_config(self) -> None:
        """Make the trial's folder and its `config.json`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {
            "key": self.key,
            "name": self.name,
            "seed": self.config.seed,
            "data_fingerprint": self.data_fingerprint,
            "config": asdict(self.config),
        }
        write_text(self.folder / "config.json", json.dumps(content, indent=2))

    def result(self) -> Result | None:
        """How the trial ended, or None if it has not."""
        return read_result(self.folder)

    def clear_result(self) -> None:
        """Forget how the trial ended, to try again from its checkpoint."""
        (self.folder / RESULT).unlink(missing_ok=True)

    def write_result(self, status: Status, metrics: Row, **ending: Any) -> None:
        """Write `result.json`; `ending` has a failed trial's reason, and whether it diverged."""
        result = Result(
            status=status,
            key=self.key,
            parameters=self.config.model.parameters,
            metrics=metrics,
            **ending,
        )
        write_text(self.folder / RESULT, json.dumps(asdict(result), indent=2))


def read_result(folder: Path) -> Result | None:
    """The result in a trial's folder, or None if there is none."""
    path = folder / RESULT
    if not path.exists():
        return None
    fields = json.loads(path.read_text())
    return Result(status=Status(fields.pop("status")), **fields)


def read_rows(folder: Path) -> list[Row]:
    """Rows of a trial's `metrics.jsonl`; a last line that was cut off while written is dropped."""
    path = folder / METRICS
    if not path.exists():
        return []
    *whole, _ = path.read_text().split("\n")
    return [json.loads(line) for line in whole]


def finished_folders(runs: Path) -> dict[str, Path]:
    """Folders of all finished trials below the folder of all runs, by key."""
    return {result.key: folder for folder, result in _results(runs) if result.final}


def _results(runs: Path) -> Iterator[tuple[Path, Result]]:
    for parent, folders, files in os.walk(runs):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if RESULT in files:
            result = read_result(Path(parent))
            if result:
                yield Path(parent), result


def adopt(spec: TrialSpec, source: Path) -> None:
    """Copy a finished trial of the same key into `spec`'s folder, telling where it is from."""

    def copy(target: Path) -> None:
        shutil.copytree(source, target, dirs_exist_ok=True)
        fields = json.loads((source / RESULT).read_text())
        fields["adopted_from"] = fields["adopted_from"] or str(source)
        write_text(target / RESULT, json.dumps(fields, indent=2))

    if spec.folder.exists():
        shutil.rmtree(spec.folder)
    write_folder(spec.folder, copy)
    spec.write_config()
