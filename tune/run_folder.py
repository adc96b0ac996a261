"""What a run folder holds: its files, how a trial can end, and every column of a row.

Written down once, with the standard library alone, for all who write or read a run: the trial, the
search, TensorBoard and the analysis.
"""

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
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


def read_json(path: Path) -> dict[str, Any]:
    """The object in one of our json files; raises ValueError, one line, for a damaged one."""
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
    except ValueError as error:
        raise ValueError(
            f"{path} cannot be read ({error}): it must hold one JSON object; restore it, or delete"
            " it and start the run again"
        ) from error
    return content


def read_experiment(folder: Path) -> dict[str, Any]:
    """A run folder's `experiment.json`, or an empty mapping if there is none.

    Raises ValueError where it is damaged, or was written by a newer version of quarterhour.
    """
    path = folder / EXPERIMENT
    if not path.is_file():
        return {}
    experiment = read_json(path)
    version = experiment.get("format", FORMAT_VERSION)
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{folder} has format {version} of a run folder, and this quarterhour reads formats up"
            f" to {FORMAT_VERSION}: use the newer quarterhour that wrote it"
        )
    return experiment


def run_of(trial: Path) -> Path | None:
    """The run folder that a trial's folder lies in, or None if it lies in none."""
    return next((path for path in trial.parents if (path / EXPERIMENT).exists()), None)


def owner(folder: Path) -> str | None:
    """The process that runs trials in a run folder at this moment, and its machine, if any."""
    with suppress(FileNotFoundError), (folder / LOCK).open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return (folder / OWNER).read_text()
    return None


def elapsed_seconds(search: Path) -> float:
    """Seconds that a search had run, over all its starts, when it last saved them."""
    path = search / ELAPSED
    return read_json(path)["seconds"] if path.exists() else 0.0


def trial_folders(folder: Path) -> list[Path]:
    """All folders of trials in a run folder, by name; those being written are hidden, and not."""
    return [
        path.parent
        for path in sorted(folder.rglob(CONFIG))
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def ended_folders(runs: Path) -> Iterator[Path]:
    """The folders with a result anywhere below the folder of all runs, but hidden ones."""
    for parent, folders, files in os.walk(runs):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if RESULT in files:
            yield Path(parent)


def look_anew(folder: Path) -> None:
    """See what another machine has written: a network's disk is asked when a folder is opened."""
    with suppress(FileNotFoundError):
        os.close(os.open(folder, os.O_RDONLY))


def read_rows(folder: Path, having: str = "") -> list[Row]:
    """Rows of a trial's `metrics.jsonl`: all, or those that have a column.

    What was cut off at the end while it was written is left out. Raises ValueError, one line, for a
    line that is no row, and for steps that do not rise.
    """
    look_anew(folder)
    path = folder / METRICS
    lines = [line for line in _whole_lines(path) if not having or f'"{having}"'.encode() in line]
    try:
        rows = json.loads(b"[" + b",".join(lines) + b"]")  # one call for all is much faster
        steps = [0, *(row["step"] for row in rows)]
        if len(rows) == len(lines) and all(a < b for a, b in pairwise(steps)):
            return rows
    except (ValueError, TypeError, KeyError):
        pass
    return _read_lines(path, lines)


def _whole_lines(path: Path) -> list[bytes]:
    """The lines of a file, but not what was cut off at its end while it was written."""
    return path.read_bytes().split(b"\n")[:-1] if path.is_file() else []


def _read_lines(path: Path, lines: list[bytes]) -> list[Row]:
    """The rows line by line, to name one that is broken."""
    rows: list[Row] = []
    last = 0
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            step = row["step"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path}, line {number} is no row ({line[:40]!r}): every line must be a JSON object"
                " with a step; repair or delete the line"
            ) from error
        if step <= last:
            raise ValueError(
                f"{path}, line {number} has step {step} after step {last}: steps must rise;"
                " delete the lines that were written twice"
            )
        rows.append(row)
        last = step
    return rows
