"""Reads run folders, which may be another version's, another user's or damaged.

With the standard library alone, so that TensorBoard, the search and the analysis can share it.
"""

import fcntl
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any

from quarterhour.tune.foreign import (
    ANY,
    MEND,
    DamagedError,
    damage_told,
    look_anew,
    misfit,
    open_itself,
    read_file,
    read_json,
    value_at,
    whole,
)
from quarterhour.tune.run_folder import (
    BEFORE,
    CONFIG,
    ELAPSED,
    EVAL_CALIBRATION,
    EVENTS,
    EXPERIMENT,
    FORMAT_VERSION,
    LOCK,
    METRICS,
    OWNER,
    PROVENANCE,
    RESULT,
    RUNG_OF,
    SAMPLES,
    Row,
    Status,
)

_BEGAN = re.compile(r"events\.out\.tfevents\.([0-9]{1,10})\.")

# What a file must hold, as `misfit` reads it.
_POINT_KIND = {
    "budget": {"steps": int, "report_every": int, "eval_every": int, "max_steps": (int, NoneType)},
    "model": (dict, NoneType),
    "optim": (dict, NoneType),
    "data": (dict, NoneType),
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
    "data": (
        {
            "heldout_lost_share": (float, int, NoneType),
            "corpus": (str, NoneType),
            "tokenizer": (str, NoneType),
            "tokenizer_hash": (str, NoneType),
            "vocab_size": (int, NoneType),
        },
        NoneType,
    ),
    "domains": ({ANY: [(float, int, bool, str)]}, NoneType),
    "resources": (
        {"concurrency": (int, NoneType), "cluster": ({"machines": [str]}, NoneType)},
        NoneType,
    ),
    "resolved": ({ANY: _POINT_KIND}, NoneType),
    "ablation": (
        {
            "design": str,
            "budget": str,
            "factors": {ANY: [(float, int, bool, str)]},
            "cells": {ANY: {ANY: (float, int, bool, str)}},
            "effects": {ANY: {"codes": {ANY: float}, "aliases": [str], "paths": ([str], NoneType)}},
            "generators": ([str], NoneType),
            "variants": (
                {ANY: {"cell": str, "budget": str, "rate": (float, int)}},
                NoneType,
            ),
        },
        NoneType,
    ),
    "promotion": (
        {
            "budgets": [str],
            "keep": [int],
            "seeds": [int],
            "margin": (float, int, NoneType),
        },
        NoneType,
    ),
    "seeds_of": ({ANY: [int]}, NoneType),
    "search": (
        {
            "objectives": {ANY: str},
            "seed": int,
            "space": str,
            "budget": str,
            "scheduler": str,
            "free": ([str], NoneType),
        },
        NoneType,
    ),
}
_FIGURES = {int, float, bool, NoneType}
_SAMPLES_KIND = [{"step": int, "prompt": str, "continuation": str}]


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
    """Versions, commit and hardware of a trial's training, one entry for each that it had.

    A trial without any is older than these entries: its run's stand for it.
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
    with suppress(OSError), open(folder / LOCK, "rb", opener=open_itself) as lock:
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


def began_and_ended(trial: Path) -> tuple[datetime, datetime]:
    """When a trial began, by the names of its events, and when it wrote its last row.

    Without them it is when its configuration was written. An adopted trial has those of its source.
    """
    began = [int(name[1]) for path in trial.glob(EVENTS) if (name := _BEGAN.match(path.name))]
    written = [path.stat().st_mtime for path in (trial / CONFIG, trial / METRICS) if path.exists()]
    times = min([*began, *written]), written[-1]
    begin, end = map(datetime.fromtimestamp, times)
    return begin, max(begin, end)


def trial_folders(folder: Path) -> list[Path]:
    """All folders of trials in a run folder, by name.

    Folders that are still being written are hidden, and skipped; so are those that have no trial's
    name, such as copies.
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
        rows = json.loads(b"[" + b",".join(lines) + b"]", parse_int=whole)
        are_rows = len(rows) == len(lines) and all(map(_is_row, rows))
        if are_rows and all(a["step"] < b["step"] for a, b in pairwise([{"step": 0}, *rows])):
            return rows
    except (ValueError, RecursionError):
        pass
    return _read_lines(path, lines)


def _is_row(value: Any) -> bool:
    """Whether a JSON value has a step, and else figures, and bins where they belong.

    A cost is never infinite, as a loss may be.
    """
    if not isinstance(value, dict) or type(value.get("step")) is not int:
        return False
    if EVAL_CALIBRATION in value:
        value = dict(value)
        if misfit(value.pop(EVAL_CALIBRATION), ([[(int, float)]], NoneType)):
            return False
    costs = (value.get(name) or 0 for name in ("tokens", "flops"))
    return set(map(type, value.values())) <= _FIGURES and not any(map(math.isinf, costs))


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
            row: Any = json.loads(line, parse_int=whole)
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


def quarters_done(updates: int, steps: int) -> int:
    """How many quarters of a trial's steps are done after so many updates."""
    return sum(updates >= steps * quarter // 4 for quarter in range(1, 5))


def rung_values(rows: Iterable[Row], steps: int, objective: str) -> dict[int, float]:
    """A trial's value on each rung that it has come to: that of its first row there."""
    values: dict[int, float] = {}
    for row in rows:
        rung = RUNG_OF.get(quarters_done(row["step"], steps))
        if rung and objective in row:
            values.setdefault(rung, row[objective])
    return values
