"""Trial folders as the only truth about trials: what each is, how far it is, how it ended.

A trial's key is the hash of everything that decides its numbers. A finished key is never trained
again: whoever meets it adopts the folder.
"""

import json
import os
import shutil
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from filelock import FileLock

from quarterhour.data.files import write_folder, write_text
from quarterhour.search_spaces.point import TrialConfig

Row = dict[str, Any]

EXPERIMENT = "experiment.json"
CONFIG = "config.json"
CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.jsonl"
RESULT = "result.json"
ERROR = "error.txt"
CLAIMS = ".trials"  # beside the runs: which folder has a key


class Status(StrEnum):
    """How a trial ended: whole, by an error, stopped as unpromising, or too large to train."""

    COMPLETE = "COMPLETE"
    FAILED = "FAILED"
    PRUNED = "PRUNED"
    INFEASIBLE = "INFEASIBLE"


@dataclass(frozen=True, kw_only=True)
class Result:
    """End of a trial: COMPLETE with its last row, or another with a reason."""

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
        if self.status is not Status.COMPLETE and not self.reason:
            raise ValueError(f"a {self.status} result needs a reason")

    @property
    def crashed(self) -> bool:
        """Whether it failed in a way that another attempt may not."""
        return self.status is Status.FAILED and not self.diverged

    @property
    def final(self) -> bool:
        """Whether training again could not change it: complete, or diverged as it always will."""
        return self.status is Status.COMPLETE or self.diverged


@dataclass(frozen=True, kw_only=True)
class TrialSpec:
    """One trial to run: its name, resolved configuration, data and folder.

    `origin` tells where a search has it from.
    """

    name: str
    config: TrialConfig
    data_fingerprint: str
    folder: Path
    origin: str | None = None

    @property
    def key(self) -> str:
        """Identity of the trial."""
        return self.config.key(self.data_fingerprint)

    @property
    def is_timed(self) -> bool:
        """Whether its steps are those that a machine does in a time: no other result is its own."""
        return bool(self.config.budget.seconds)

    @property
    def label(self) -> str:
        """Name and seed, as shown to people; the trials of a search proper have one seed."""
        return self.name if self.folder.name == self.name else f"{self.name}/{self.folder.name}"

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
            "origin": self.origin,
            "config": asdict(self.config),
        }
        write_text(self.folder / CONFIG, json.dumps(content, indent=2))

    def result(self) -> Result | None:
        """How the trial ended, or None if it has not."""
        return read_result(self.folder)

    def clear_result(self) -> None:
        """Forget how the trial ended, to try again from its checkpoint."""
        (self.folder / RESULT).unlink(missing_ok=True)

    def clear_error(self) -> None:
        """Forget an earlier attempt's error."""
        (self.folder / ERROR).unlink(missing_ok=True)

    def write_failure(self) -> None:
        """End a trial whose process raised an error, which is in its folder, or died."""
        path = self.folder / ERROR
        error = path.read_text().strip().splitlines()[-1] if path.exists() else None
        rows = read_rows(self.folder)
        reason = error or "its process died, perhaps for want of memory"
        self.write_result(Status.FAILED, rows[-1] if rows else {}, reason=reason)

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


def read_spec(folder: Path) -> TrialSpec:
    """The trial of a folder that `write_config` has made."""
    content = json.loads((folder / CONFIG).read_text())
    return TrialSpec(
        name=content["name"],
        config=TrialConfig.from_dict(content["config"]),
        data_fingerprint=content["data_fingerprint"],
        folder=folder,
        origin=content.get("origin"),
    )


def read_result(folder: Path) -> Result | None:
    """The result in a trial's folder, or None if there is none."""
    _look_anew(folder)
    path = folder / RESULT
    if not path.exists():
        return None
    fields = json.loads(path.read_text())
    return Result(status=Status(fields.pop("status")), **fields)


def read_rows(folder: Path, having: str = "") -> list[Row]:
    """Rows of a trial's `metrics.jsonl`, of all or of those that have a measure.

    A last line that was cut off while written is dropped.
    """
    _look_anew(folder)
    path = folder / METRICS
    if not path.exists():
        return []
    *whole, _ = path.read_text().split("\n")
    return [json.loads(line) for line in whole if f'"{having}' in line]


def _look_anew(folder: Path) -> None:
    """See what another machine has written there: opened, a folder of a network is asked for it."""
    with suppress(FileNotFoundError):
        os.close(os.open(folder, os.O_RDONLY))


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
    """Put a finished trial of the same key into `spec`'s folder, telling where it is from.

    Its files are linked where the disk can: nothing is written to them any more.
    """

    def copy(target: Path) -> None:
        shutil.copytree(source, target, copy_function=_link_or_copy, dirs_exist_ok=True)
        fields = json.loads((source / RESULT).read_text())
        fields["adopted_from"] = fields["adopted_from"] or str(source)
        write_text(target / RESULT, json.dumps(fields, indent=2))
        replace(spec, folder=target).write_config()

    write_folder(spec.folder, copy)


def open_trials(specs: Iterable[TrialSpec], runs: Path) -> list[TrialSpec]:
    """Those that have to run: their keys are finished nowhere below the folder of all runs."""
    finished = finished_folders(runs)
    todo: list[TrialSpec] = []
    for spec in specs:
        source = finished.get(spec.key)
        result = spec.result()
        if result and result.final:
            continue
        if source and not spec.is_timed:
            adopt(spec, source)
        else:
            spec.clear_result()
            todo.append(spec)
    return todo


@contextmanager
def claimed(spec: TrialSpec) -> Generator[None]:
    """Hold the trial's key, so that no two processes train it.

    One that is trained by another run beside this one is waited for, and adopted if it finishes.
    """
    folder = _runs(spec.folder) / CLAIMS
    folder.mkdir(parents=True, exist_ok=True)
    claim = folder / spec.key
    with FileLock(claim.with_suffix(".lock")):
        holder = Path(claim.read_text()) if claim.exists() else spec.folder
        result = None if spec.is_timed else read_result(holder)
        if not spec.result() and result and result.final and result.key == spec.key:
            adopt(spec, holder)
        else:
            write_text(claim, str(spec.folder.absolute()))
        yield


def _runs(folder: Path) -> Path:
    """The folder of all runs, for a trial's folder in one of them; of a lone trial, its own."""
    run = next((path for path in folder.parents if (path / EXPERIMENT).exists()), folder)
    return run.parent


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
