"""What a run folder holds: its files, how a trial can end, and every column of a row.

Written down once, with the standard library alone, for all who write or read a run: the trial, the
search, TensorBoard and the analysis.
"""

import fcntl
import functools
import json
import os
import re
import stat
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Literal

# Raised when a reader of the version before would misread a folder.
FORMAT_VERSION = 1

# Of a run.
EXPERIMENT = "experiment.json"
LOCK, OWNER = ".lock", ".owner"
TABLES, REPORT = "tables", "report"
# Of a search.
STUDY, QUEUE, ELAPSED, FRESH_SEEDS = "study.journal", "queue", "elapsed.json", "fresh_seeds"
# Of a trial.
CONFIG, METRICS, SAMPLES, RESULT = "config.json", "metrics.jsonl", "samples.json", "result.json"
CHECKPOINT, PREVIOUS_CHECKPOINT = "checkpoint.pt", "checkpoint.previous.pt"
EVENTS = "events.out.tfevents.*"
ERROR = "error.txt"
# Beside the runs: which folder has a key.
CLAIMS = ".trials"

PROVENANCE = ("versions", "git_commit", "hardware")
"""What is told of where a trial was trained."""
BEFORE = "before"
"""Of a run that was begun before trials told that: what was told of the run."""

TRIAL = ["configuration", "seed"]
"""What a trial of a run is known by; in a search a trial's number stands as its configuration."""

Row = dict[str, Any]


class Status(StrEnum):
    """How a trial stands.

    Without a result it is WAITING or RUNNING, and RUNNING may have been interrupted. With one it is
    COMPLETE, FAILED by an error, PRUNED as unpromising, or INFEASIBLE: too large to train.
    """

    WAITING = "WAITING"
    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    FAILED = "FAILED"
    PRUNED = "PRUNED"
    INFEASIBLE = "INFEASIBLE"

    @property
    def ended(self) -> bool:
        """Whether a trial that stands so has a result."""
        return self not in (Status.WAITING, Status.RUNNING)


Better = Literal["minimize", "maximize"]


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a row: its label for people, its unit, and which way it is better, if any is.

    With `of_machine` it depends on the machine, its clock or its load: equal trials may differ.
    """

    label: str
    unit: str = ""
    better: Better | None = None
    of_machine: bool = False


# The columns that much of the code names.
TRAIN_LOSS, EVAL_LOSS, HELDOUT_LOSS = "train_loss", "eval_loss", "heldout_loss"
HELDOUT_BITS_PER_BYTE = "heldout_bits_per_byte"
TRIALS_ON_DEVICE, PEAK_MEMORY = "trials_on_device", "peak_memory_bytes"
CAPTURED = "captured"
TOKENS_PER_SECOND = "tokens_per_second"
EVAL_CALIBRATION = "eval_calibration"
LAYER_GRAD_NORM = "grad_norm_layer"
"""Followed by a layer's number: the norm of the gradient of that layer's parameters."""


def _measures(prefix: str, of: str) -> dict[str, Column]:
    """The study's measures of one set of windows."""
    return {
        f"{prefix}_loss": Column(label=f"loss, {of}", unit="nats", better="minimize"),
        f"{prefix}_perplexity": Column(label=f"perplexity, {of}", better="minimize"),
        f"{prefix}_accuracy": Column(label=f"accuracy, {of}", better="maximize"),
        f"{prefix}_top5_accuracy": Column(label=f"top-5 accuracy, {of}", better="maximize"),
        f"{prefix}_confidence": Column(label=f"confidence, {of}"),
        f"{prefix}_entropy": Column(label=f"entropy, {of}", unit="nats"),
    }


COLUMNS: dict[str, Column] = {
    HELDOUT_LOSS: Column(label="held-out loss", unit="nats", better="minimize"),
    HELDOUT_BITS_PER_BYTE: Column(label="held-out bits a byte", unit="bits", better="minimize"),
    "step": Column(label="optimizer step"),
    "tokens": Column(label="tokens", better="minimize"),
    "epochs": Column(label="passes over the corpus"),
    "flops": Column(label="training FLOPs", better="minimize"),
    "seconds": Column(label="seconds of training", unit="s", better="minimize", of_machine=True),
    "window_steps": Column(label="steps of the row's window"),
    TRAIN_LOSS: Column(label="training loss, window mean", unit="nats", better="minimize"),
    "train_loss_last": Column(label="training loss, last step", unit="nats", better="minimize"),
    "train_loss_min": Column(label="training loss, smallest", unit="nats", better="minimize"),
    "grad_norm": Column(label="gradient norm before clipping"),
    "learning_rate": Column(label="learning rate"),
    "step_seconds": Column(label="step time", unit="s", better="minimize", of_machine=True),
    "step_seconds_std": Column(label="step time, deviation", unit="s", of_machine=True),
    TOKENS_PER_SECOND: Column(
        label="tokens a second", unit="tokens/s", better="maximize", of_machine=True
    ),
    PEAK_MEMORY: Column(label="peak memory", unit="bytes", better="minimize", of_machine=True),
    TRIALS_ON_DEVICE: Column(label="trials on the device", of_machine=True),
    CAPTURED: Column(label="every step replayed from a CUDA graph", of_machine=True),
    "eval_seconds": Column(label="seconds of the evaluation", unit="s", of_machine=True),
    **_measures("train_batch", "training batch"),
    **_measures("eval", "leaky validation"),
    EVAL_CALIBRATION: Column(label="calibration bins, leaky validation"),
}
"""Every column of a row but those of single layers, `grad_norm_layer00` and so on."""

OBJECTIVES: dict[str, Better] = {
    name: column.better for name, column in COLUMNS.items() if column.better
}
"""What a search can look for, and which way it is better."""


# Control characters, those that turn a line of text around, and bytes of a path that are no text.
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    """A text of unknown origin; characters that steer a terminal are shown, as in "\\x1b"."""
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


MEND = "restore it, or delete it and start the run again"
"""What to do with one of our json files that is damaged."""


class DamagedError(ValueError):
    """A file of a run cannot be read: one line with its path, what is wrong, and what to do.

    `reason` is what is wrong, without the folder.
    """

    def __init__(self, path: Path, fault: str, mend: str) -> None:
        super().__init__(f"{path}{fault}: {mend}")
        self.reason = f"{path.name}{fault}"


@functools.cache
def tell(line: str) -> None:
    """Tell the user, once, what a command goes on without."""
    print(f"quarterhour: {line}", file=sys.stderr, flush=True)


@contextmanager
def damage_told() -> Generator[None]:
    """Go on after the block where a file in it is damaged, once the user is told."""
    try:
        yield
    except DamagedError as error:
        tell(str(error))


def read_file(path: Path, most_bytes: int = 2**26) -> bytes:
    """A file of a run folder, which may come from anywhere: links are not followed.

    Raises FileNotFoundError where there is none, and DamagedError for what is no regular file of at
    most so many bytes, or may not be read.
    """
    try:
        with open(path, "rb", opener=_open_itself) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OSError(0, "it is no regular file")
            if status.st_size > most_bytes:
                raise OSError(
                    0, f"it has {status.st_size:,} bytes, and at most {most_bytes:,} may be"
                )
            return file.read()
    except FileNotFoundError:
        raise
    except PermissionError as error:
        fault = f" cannot be read ({error.strerror})"
        raise DamagedError(path, fault, "its owner has to let you read it") from error
    except OSError as error:
        fault = f" cannot be read ({error.strerror})"
        raise DamagedError(path, fault, "restore it, or move its folder elsewhere") from error


def is_plain_file(path: Path) -> bool:
    """Whether there is a file, and not a link to one or a pipe."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _open_itself(path: str, flags: int) -> int:
    """Open a file, but not what a link leads to, and without waiting for a pipe's other end."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


# What a file must hold: a mapping has these names at least, a list has any number of one kind, and
# a tuple stands for one of several kinds. ANY is every name. What may be None may be missing.
ANY = "*"
_POINT_KIND = {
    "budget": {"steps": int, "report_every": int, "eval_every": int, "max_steps": (int, NoneType)}
}
_CONFIG_KIND = {
    "key": str,
    "name": str,
    "seed": int,
    "data_fingerprint": str,
    "origin": (str, NoneType),
    "provenance": ([dict], NoneType),
    "config": _POINT_KIND,
}
_RESULT_KIND = {
    "status": str,
    "key": str,
    "parameters": int,
    "metrics": dict,
    "reason": (str, NoneType),
    "diverged": bool,
    "adopted_from": (str, NoneType),
}
_EXPERIMENT_KIND = {
    "format": (int, NoneType),
    BEFORE: (dict, NoneType),
    "created": (str, NoneType),
    "protocol": (str, NoneType),
    "profile": (str, NoneType),
    "configurations": ([str], NoneType),
    "seeds": ([int], NoneType),
    "data": (dict, NoneType),
    "domains": (dict, NoneType),
    "resources": ({"concurrency": (int, NoneType)}, NoneType),
    "resolved": ({ANY: _POINT_KIND}, NoneType),
    "search": (
        {"objectives": dict, "seed": int, "space": str, "budget": str, "scheduler": str},
        NoneType,
    ),
}
_FIGURES = {int, float, bool, NoneType}
_SAMPLES_KIND = [{"step": int, "prompt": str, "continuation": str}]


def read_json(path: Path, kind: Any = dict) -> Any:
    """What one of our json files holds; DamagedError where it is of another kind."""
    content = read_file(path)
    try:
        value = json.loads(content, parse_int=_whole)
        if misfit := _misfit(value, kind):
            raise ValueError(misfit)
    except (ValueError, RecursionError) as error:
        raise DamagedError(path, f" cannot be read ({error})", MEND) from error
    return value


def _whole(digits: str) -> int:
    """A whole number of JSON. Raises ValueError for one that is no float's size."""
    if len(digits) > sys.float_info.max_10_exp:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _misfit(value: Any, kind: Any, name: str = "it") -> str | None:
    """The first part of a JSON value that is not of its kind, in words; None if all are."""
    if isinstance(kind, tuple):
        misfits = [_misfit(value, one, name) for one in kind]
        return misfits[0] if all(misfits) else None
    wanted = kind if isinstance(kind, type) else type(kind)
    if type(value) is not wanted:
        found = "is missing" if value is None else f"holds a {type(value).__name__}"
        return f"{name} {found}, where a {wanted.__name__} must be"
    parts: list[Any] = []
    if isinstance(kind, dict):
        names = dict.fromkeys(value, kind[ANY]) if ANY in kind else kind
        parts = [(value.get(name), part, name) for name, part in names.items()]
    elif isinstance(kind, list):
        parts = [(part, kind[0], f"{name} {number}") for number, part in enumerate(value)]
    return next((misfit for part in parts if (misfit := _misfit(*part))), None)


def read_experiment(folder: Path) -> dict[str, Any]:
    """A run folder's `experiment.json`, or an empty mapping if there is none.

    Raises ValueError where it is damaged, or was written by a newer version of quarterhour.
    """
    try:
        experiment = read_json(folder / EXPERIMENT, _EXPERIMENT_KIND)
    except FileNotFoundError:
        return {}
    version = experiment.get("format") or FORMAT_VERSION
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{folder} has format {version} of a run folder, and this quarterhour reads formats up"
            f" to {FORMAT_VERSION}: use the newer quarterhour that wrote it"
        )
    return experiment


def check_names(folder: Path, experiment: Any, *names: str) -> None:
    """Raises DamagedError where a run's experiment.json lacks one of these dotted names."""
    for name in names:
        if value_at(experiment, name) in (None, {}):
            raise DamagedError(folder / EXPERIMENT, f" cannot be read ({name} is missing)", MEND)


def value_at(values: Any, path: str) -> Any:
    """What JSON objects hold at a dotted path; None where one has no such name."""
    for name in path.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return values


def read_config(trial: Path) -> dict[str, Any]:
    """What a trial's `config.json` holds. Raises FileNotFoundError or DamagedError."""
    return read_json(trial / CONFIG, _CONFIG_KIND)


def read_ending(trial: Path) -> dict[str, Any] | None:
    """What a trial's `result.json` holds, or None if there is none. Raises DamagedError."""
    look_anew(trial)
    with suppress(FileNotFoundError):
        result = read_json(trial / RESULT, _RESULT_KIND)
        fault = f" cannot be read (its status is {result['status'][:40]!r})"
        if result["metrics"] and not _is_row(result["metrics"]):
            fault = " cannot be read (its metrics are no row)"
        elif result["status"] in [status for status in Status if status.ended]:
            return {name: result.get(name) for name in _RESULT_KIND}
        raise DamagedError(trial / RESULT, fault, MEND)
    return None


def read_samples(trial: Path) -> list[dict[str, Any]]:
    """A trial's samples, newest first; none if none are written, or those are damaged."""
    with suppress(FileNotFoundError), damage_told():
        return read_json(trial / SAMPLES, _SAMPLES_KIND)
    return []


def provenance(trial: Path) -> list[dict[str, Any]]:
    """Versions, commit and hardware that a trial was trained with, and with which it went on.

    A trial that does not tell is from before trials did: it has those that its run had then.
    """
    with suppress(FileNotFoundError), damage_told():
        if told := read_config(trial).get("provenance"):
            return told
    run = run_of(trial)
    experiment = read_experiment(run) if run else {}
    before = experiment.get(BEFORE) or experiment
    return [{name: before[name] for name in PROVENANCE if name in before}]


def run_of(trial: Path) -> Path | None:
    """The run folder that a trial's folder lies in, or None if it lies in none."""
    return next((path for path in trial.parents if (path / EXPERIMENT).exists()), None)


def owner(folder: Path) -> str | None:
    """The process that runs trials in a run folder at this moment, and its machine, if any.

    Asking needs no right to write. Nobody can tell where the lock may not be read: None.
    """
    with suppress(OSError), open(folder / LOCK, "rb", opener=_open_itself) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return read_file(folder / OWNER).decode(errors="replace")
    return None


def elapsed_seconds(search: Path) -> float:
    """Seconds that a search had run, over all its starts, when it last saved them."""
    with suppress(FileNotFoundError), damage_told():
        return read_json(search / ELAPSED, {"seconds": (float, int)})["seconds"]
    return 0.0


def trial_folders(folder: Path) -> list[Path]:
    """All folders of trials in a run folder, by name; those being written are hidden, and not.

    What is not called as a trial is, such as a copy, is somebody else's.
    """
    return [path for path in sorted(_folders_with(folder, CONFIG)) if is_trial_name(path.name)]


def is_trial_name(name: str) -> bool:
    """Whether a trial's folder may be called so: by its seed, or by its number in a search."""
    return bool(re.fullmatch(r"seed[0-9]+|[0-9]{4,}", name))


def ended_folders(runs: Path) -> Iterator[Path]:
    """The trial folders with a result anywhere below the folder of all runs, but hidden ones."""
    return _folders_with(runs, CONFIG, RESULT)


def _folders_with(top: Path, *names: str) -> Iterator[Path]:
    """The folders below `top` that hold these; no links are followed, no hidden folders read."""
    for parent, folders, files in os.walk(top):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if set(names) <= set(files):
            yield Path(parent)


def look_anew(folder: Path) -> None:
    """See what another machine has written: a network's disk is asked when a folder is opened."""
    with suppress(FileNotFoundError):
        os.close(os.open(folder, os.O_RDONLY))


def read_rows(folder: Path, having: str = "") -> list[Row]:
    """Rows of a trial's `metrics.jsonl`: all, or those that have a column.

    What was cut off at the end while it was written is left out. Raises DamagedError for a line
    that is no row, and for steps that do not rise.
    """
    look_anew(folder)
    path = folder / METRICS
    lines = [line for line in _whole_lines(path) if not having or f'"{having}"'.encode() in line]
    try:
        # One call for all is much faster.
        rows = json.loads(b"[" + b",".join(lines) + b"]", parse_int=_whole)
        are_rows = len(rows) == len(lines) and all(map(_is_row, rows))
        if are_rows and all(a["step"] < b["step"] for a, b in pairwise([{"step": 0}, *rows])):
            return rows
    except (ValueError, RecursionError):
        pass
    return _read_lines(path, lines)


def _is_row(value: Any) -> bool:
    """Whether a JSON value has a step, and else figures, and bins where they belong."""
    if not isinstance(value, dict) or type(value.get("step")) is not int:
        return False
    if EVAL_CALIBRATION in value:
        value = dict(value)
        if _misfit(value.pop(EVAL_CALIBRATION), ([[(int, float)]], NoneType)):
            return False
    return set(map(type, value.values())) <= _FIGURES


def _whole_lines(path: Path) -> list[bytes]:
    """The lines of a file, but not what was cut off at its end while it was written."""
    with suppress(FileNotFoundError):
        return read_file(path, most_bytes=2**30).split(b"\n")[:-1]
    return []


def _read_lines(path: Path, lines: list[bytes]) -> list[Row]:
    """The rows line by line, to name one that is broken."""
    rows: list[Row] = []
    last = 0
    for number, line in enumerate(lines, start=1):
        try:
            row: Any = json.loads(line, parse_int=_whole)
        except (ValueError, RecursionError):
            row = None
        if not _is_row(row):
            raise DamagedError(
                path,
                f", line {number} is no row ({line[:40]!r})",
                "every line must be a JSON object with a step and else figures; repair or delete"
                " the line",
            )
        if row["step"] <= last:
            raise DamagedError(
                path,
                f", line {number} has step {row['step']} after step {last}",
                "steps must rise; delete the lines that were written twice",
            )
        rows.append(row)
        last = row["step"]
    return rows
