"""Trial folders as the only truth about trials: what each is, how far it is, how it ended.

A trial's key is the hash of everything that decides its numbers. A finished key is never trained
again: whoever meets it adopts the folder.

What writes a folder raises OSError where the disk does not allow it; what reads one raises
DamagedError. Where one of many trials is damaged, the user is told and the others go on: it is
neither trained, nor counted, nor taken from, until its file is mended or deleted.
"""

import errno
import json
import os
import shutil
import stat
import statistics
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from quarterhour.data.files import write_folder, write_text
from quarterhour.search_spaces.point import TrialConfig
from quarterhour.tune.foreign import MEND, DamagedError, damage_told, is_plain_file, read_file
from quarterhour.tune.run_folder import (
    CHECKPOINT,
    CLAIMS,
    CONFIG,
    ERROR,
    EVENTS,
    METRICS,
    RESULT,
    SAMPLES,
    SPEEDS,
    TRIALS_ON_DEVICE,
    Row,
    Status,
    trial_label,
)
from quarterhour.tune.run_reader import (
    ended_folders,
    provenance,
    read_config,
    read_ending,
    read_rows,
    run_of,
)

ADOPTED = (METRICS, SAMPLES, CHECKPOINT, EVENTS)
"""What is taken of a finished trial, beside its result."""


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

    `origin` says where a search took it from, `provenance` where it is trained now: versions,
    commit, hardware. Where a search's objective depends on the machine, `sharing` is the number of
    trials on a device, and a result is adopted only from equal hardware shared by as many.
    """

    name: str
    config: TrialConfig
    data_fingerprint: str
    folder: Path
    origin: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)
    sharing: int | None = None

    @property
    def key(self) -> str:
        """Identity of the trial."""
        return self.config.key(self.data_fingerprint)

    def may_adopt(self, source: Path) -> bool:
        """Whether a finished trial of the same key stands for this one.

        With a budget in seconds none does, since its steps depend on the machine.
        """
        if self.config.budget.seconds:
            return False
        if self.sharing is None:
            return True
        there = [place.get("hardware") for place in provenance(source)]
        shared = max((row.get(TRIALS_ON_DEVICE) or 0 for row in read_rows(source)), default=0)
        return there == [self.provenance.get("hardware")] and shared == self.sharing

    @property
    def label(self) -> str:
        """What the trial is called in its run, for people."""
        return trial_label(self.name, self.folder, self.origin)

    @property
    def flops(self) -> int:
        """Training FLOPs of the whole trial; 0 until the steps of a budget in seconds are known."""
        data = self.config.data
        tokens = self.config.budget.trained_steps * data.batch_size * data.seq_len
        return tokens * self.config.model.flops_per_token(data.seq_len)

    def write_config(self, earlier: Iterable[Mapping[str, Any]] = ()) -> None:
        """Make the trial's folder and its `config.json`.

        It goes on from what was trained with the `earlier` provenances.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        trained = [*earlier, self.provenance] if self.provenance else [*earlier]
        content = {
            "key": self.key,
            "name": self.name,
            "seed": self.config.seed,
            "data_fingerprint": self.data_fingerprint,
            "origin": self.origin,
            "provenance": [place for n, place in enumerate(trained) if place not in trained[:n]],
            "config": asdict(self.config),
        }
        write_text(self.folder / CONFIG, json.dumps(content, indent=2))

    def result(self) -> Result | None:
        """How the trial ended, or None if it has not; raises DamagedError."""
        return read_result(self.folder)

    def ending(self) -> Result | None:
        """How the trial ended, as `result` has it; with a damaged result, FAILED for that."""
        try:
            return self.result()
        except DamagedError as error:
            reason = error.reason
        return Result(status=Status.FAILED, key=self.key, parameters=0, metrics={}, reason=reason)

    def clear_result(self) -> None:
        """Forget how the trial ended, to try again from its checkpoint."""
        (self.folder / RESULT).unlink(missing_ok=True)

    def clear_error(self) -> None:
        """Forget an earlier attempt's error."""
        (self.folder / ERROR).unlink(missing_ok=True)

    def write_failure(self, reason: str | None = None) -> None:
        """End a trial for a `reason`, or for the error that its folder holds, or it just died."""
        error, rows = "its process died, perhaps for want of memory", list[Row]()
        with suppress(FileNotFoundError, DamagedError):
            text = read_file(self.folder / ERROR).decode(errors="replace").strip()
            error = text.splitlines()[-1] if text else error
        with suppress(DamagedError):
            rows = read_rows(self.folder)
        self.write_result(Status.FAILED, rows[-1] if rows else {}, reason=reason or error)

    def write_result(self, status: Status, metrics: Row, **ending: Any) -> None:
        """Write `result.json`; `ending` has the reason, and whether the trial diverged.

        `metrics` is the trial's last row. Raises ValueError where `Result` does.
        """
        result = Result(
            status=status,
            key=self.key,
            parameters=self.config.model.parameters,
            metrics=metrics | self._median_speeds(),
            **ending,
        )
        write_text(self.folder / RESULT, json.dumps(asdict(result), indent=2))

    def _median_speeds(self) -> Row:
        with suppress(DamagedError):
            rows = read_rows(self.folder)
            known = {name: [row[name] for row in rows if row.get(name)] for name in SPEEDS}
            return {name: statistics.median(values) for name, values in known.items() if values}
        return {}


def read_spec(folder: Path) -> TrialSpec:
    """The trial of a folder that `write_config` has made.

    Raises DamagedError where its configuration cannot be read, FileNotFoundError without one.
    """
    content = read_config(folder)
    return TrialSpec(
        name=content["name"],
        config=config_in(folder / CONFIG, content["config"]),
        data_fingerprint=content["data_fingerprint"],
        folder=folder,
        origin=content.get("origin"),
    )


def config_in(path: Path, values: Mapping[str, Any]) -> TrialConfig:
    """The configuration whose values are in a file; raises DamagedError where they are none."""
    try:
        return TrialConfig.from_dict(values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedError(path, f" holds no configuration ({error})", MEND) from error


def read_result(folder: Path) -> Result | None:
    """The result in a trial's folder, or None if there is none; raises DamagedError."""
    fields = read_ending(folder)
    if not fields:
        return None
    try:
        return Result(status=Status(fields.pop("status")), **fields)
    except ValueError as error:
        raise DamagedError(folder / RESULT, f" cannot be read ({error})", MEND) from error


def finished_folders(runs: Path) -> dict[str, Path]:
    """Folders of all finished trials below the folder of all runs, by key."""
    finished: dict[str, Path] = {}
    for folder in ended_folders(runs):
        with damage_told():
            if (result := read_result(folder)) and result.final:
                finished[result.key] = folder
    return finished


def adopt(spec: TrialSpec, source: Path) -> None:
    """Put a finished trial of the same key into `spec`'s folder; its result says where it is from.

    Its files are linked where the disk can, since nobody writes to them any more. Links in its
    folder are left out, and what no trial has. Raises DamagedError.
    """
    read_rows(source)

    def copy(target: Path) -> None:
        for path in (path for name in ADOPTED for path in source.glob(name)):
            if is_plain_file(path):
                _link_or_copy(path, target / path.name)
        fields = read_ending(source) or {}
        fields["adopted_from"] = fields["adopted_from"] or str(source)
        write_text(target / RESULT, json.dumps(fields, indent=2))
        replace(spec, folder=target, provenance={}).write_config(provenance(source))

    write_folder(spec.folder, copy)


def try_adopt(spec: TrialSpec, source: Path) -> bool:
    """Adopt a finished trial if it stands for `spec` and is not damaged; whether it was."""
    with damage_told():
        if spec.may_adopt(source):
            adopt(spec, source)
            return True
    return False


def prepare_trials(specs: Iterable[TrialSpec], runs: Path) -> list[TrialSpec]:
    """Take up what is finished below the folder of all runs; the trials that are left to run.

    A trial that ended otherwise loses its result, to be tried again.
    """
    finished = finished_folders(runs)
    todo: list[TrialSpec] = []
    for spec in specs:
        with damage_told():
            if _prepare(spec, finished.get(spec.key)):
                todo.append(spec)
    return todo


def _prepare(spec: TrialSpec, source: Path | None) -> bool:
    """Whether a trial is left to run; it is not where it has ended or can be adopted."""
    result = spec.result()
    if result and result.final:
        if not (spec.folder / CONFIG).exists():
            replace(spec, provenance={}).write_config()
        return False
    if source and try_adopt(spec, source):
        return False
    read_rows(spec.folder)
    spec.clear_result()
    return True


@contextmanager
def claimed(spec: TrialSpec) -> Generator[None]:
    """Hold the trial's key, so that no two processes train it.

    Waits for another run that trains it, and adopts its result if it finishes.
    """
    folder = claims_folder(_runs(spec.folder))
    claim = folder / spec.key
    with FileLock(claim.with_suffix(".lock"), mode=folder.stat().st_mode & 0o666):
        if not _try_adopt_from_holder(spec, claim):
            write_text(claim, str(spec.folder.absolute()))
        yield


def _try_adopt_from_holder(spec: TrialSpec, claim: Path) -> bool:
    """Adopt the result of the claim's last holder if it can be; whether it was."""
    if spec.result():
        return False
    with suppress(FileNotFoundError), damage_told():
        holder = Path(os.fsdecode(read_file(claim)))
        result = read_result(holder)
        if result and result.final and result.key == spec.key:
            return try_adopt(spec, holder)
    return False


def claims_folder(runs: Path) -> Path:
    """Where trials' keys are claimed: whoever may write to the folder of all runs may claim.

    It is made if it is missing. Raises OSError where it cannot be made or written.
    """
    runs.mkdir(parents=True, exist_ok=True)
    folder, rights = runs / CLAIMS, runs.stat()
    if not folder.exists():
        folder.mkdir(exist_ok=True)
        with suppress(PermissionError):  # only a member can give a folder to a group
            os.chown(folder, -1, rights.st_gid)
            folder.chmod(stat.S_IMODE(rights.st_mode) & ~stat.S_ISVTX)
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    return folder


def _runs(folder: Path) -> Path:
    """The folder that holds the run of a trial's folder; for a lone trial, the one above it."""
    return (run_of(folder) or folder).parent


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
