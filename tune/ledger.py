"""Trial folders as the only truth about trials: what each is, how far it is, how it ended.

A trial's key is the hash of everything that decides its numbers. A finished key is never trained
again: whoever meets it adopts the folder.

What reads or writes a folder raises OSError where the disk does not allow it. A file is called
damaged where it holds no JSON object, or rows that `read_rows` refuses.
"""

import json
import os
import shutil
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from quarterhour.data.files import write_folder, write_text
from quarterhour.search_spaces.point import TrialConfig
from quarterhour.tune.run_folder import (
    CLAIMS,
    CONFIG,
    ERROR,
    RESULT,
    Row,
    Status,
    ended_folders,
    look_anew,
    read_json,
    read_rows,
    run_of,
)


@dataclass(frozen=True, kw_only=True)
class Result:
    """End of a trial: COMPLETE with its last row, or another status with a reason.

    Raises ValueError for any other combination.
    """

    status: Status
    key: str
    parameters: int
    metrics: Row
    reason: str | None = None
    diverged: bool = False
    adopted_from: str | None = None

    def __post_init__(self) -> None:
        if not self.status.ended:
            raise ValueError(f"a trial that is {self.status} has no result")
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

    `origin` says where a search took it from.
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
        """Whether its budget is a time: its steps depend on the machine, so it adopts no result."""
        return bool(self.config.budget.seconds)

    @property
    def label(self) -> str:
        """Name and seed, as people see them; a trial of the search itself has only its name."""
        return self.name if self.folder.name == self.name else f"{self.name}/{self.folder.name}"

    @property
    def flops(self) -> int:
        """Training FLOPs of the whole trial; 0 until the steps of a budget in seconds are known."""
        data = self.config.data
        tokens = self.config.budget.trained_steps * data.batch_size * data.seq_len
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
        """How the trial ended, or None if it has not; raises ValueError if that is damaged."""
        return read_result(self.folder)

    def clear_result(self) -> None:
        """Forget how the trial ended, to try again from its checkpoint."""
        (self.folder / RESULT).unlink(missing_ok=True)

    def clear_error(self) -> None:
        """Forget an earlier attempt's error."""
        (self.folder / ERROR).unlink(missing_ok=True)

    def write_failure(self, reason: str | None = None) -> None:
        """End a trial for a `reason`, or else for the error that its folder holds, or it just died.

        Raises ValueError where the trial's rows are damaged.
        """
        path = self.folder / ERROR
        error = path.read_text().strip().splitlines()[-1] if path.exists() else None
        rows = read_rows(self.folder)
        reason = reason or error or "its process died, perhaps for want of memory"
        self.write_result(Status.FAILED, rows[-1] if rows else {}, reason=reason)

    def write_result(self, status: Status, metrics: Row, **ending: Any) -> None:
        """Write `result.json`; `ending` has the reason, and whether the trial diverged.

        Raises ValueError where `Result` does.
        """
        result = Result(
            status=status,
            key=self.key,
            parameters=self.config.model.parameters,
            metrics=metrics,
            **ending,
        )
        write_text(self.folder / RESULT, json.dumps(asdict(result), indent=2))


def read_spec(folder: Path) -> TrialSpec:
    """The trial of a folder that `write_config` has made; raises ValueError if it is damaged."""
    content = read_json(folder / CONFIG)
    return TrialSpec(
        name=content["name"],
        config=TrialConfig.from_dict(content["config"]),
        data_fingerprint=content["data_fingerprint"],
        folder=folder,
        origin=content.get("origin"),
    )


def read_result(folder: Path) -> Result | None:
    """The result in a trial's folder, or None if there is none; ValueError if it is damaged."""
    look_anew(folder)
    path = folder / RESULT
    if not path.exists():
        return None
    fields = read_json(path)
    return Result(status=Status(fields.pop("status")), **fields)


def finished_folders(runs: Path) -> dict[str, Path]:
    """Folders of all finished trials below the folder of all runs, by key.

    Raises ValueError where a result is damaged.
    """
    results = ((folder, read_result(folder)) for folder in ended_folders(runs))
    return {result.key: folder for folder, result in results if result and result.final}


def adopt(spec: TrialSpec, source: Path) -> None:
    """Put a finished trial of the same key into `spec`'s folder; its result says where it is from.

    Its files are linked where the disk can, since nobody writes to them any more. Raises ValueError
    where its result is damaged.
    """

    def copy(target: Path) -> None:
        shutil.copytree(source, target, copy_function=_link_or_copy, dirs_exist_ok=True)
        fields = read_json(source / RESULT)
        fields["adopted_from"] = fields["adopted_from"] or str(source)
        write_text(target / RESULT, json.dumps(fields, indent=2))
        replace(spec, folder=target).write_config()

    write_folder(spec.folder, copy)


def open_trials(specs: Iterable[TrialSpec], runs: Path) -> list[TrialSpec]:
    """Take up what is finished below the folder of all runs; the trials that are left to run.

    A trial that ended otherwise loses its result, to be tried again. Raises ValueError where a
    result is damaged.
    """
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

    Waits for another run that trains it, and adopts its result if it finishes. Raises ValueError
    where a result is damaged.
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
    """The folder that holds the run of a trial's folder; for a lone trial, the one above it."""
    return (run_of(folder) or folder).parent


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
