"""What a command came to: its exit code, and with --json one object on stdout."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from quarterhour.tune.foreign import DamagedError, tell
from quarterhour.tune.run_folder import Status
from quarterhour.tune.run_reader import read_config, read_ending, read_rows

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
"""Raised when a reader of the version before would misread an object."""

_CONFIG = ("name", "seed", "key", "data_fingerprint", "origin", "config")
_RESULT = ("status", "reason", "diverged", "parameters", "adopted_from", "metrics")
_TRIAL = ("folder", *_CONFIG, *_RESULT)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How a command ended: its exit code, an error in one line, and what it came to by name."""

    exit_code: int = 0
    error: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    def write(self, command: str | None, stream: TextIO) -> None:
        """Print it as one JSON object. Raises OSError where nobody reads."""
        head = {"schema": SCHEMA, "command": command, "exit_code": self.exit_code}
        told = head | {"error": self.error} | dict(self.fields)
        try:
            print(json.dumps(_strict(told), indent=2, allow_nan=False), file=stream, flush=True)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # nor is it at the exit
            raise


class EndedError(Exception):
    """A command ends before its end: one line, and an exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def trial_answers(folders: Iterable[Path], unended: Status) -> list[dict[str, Any]]:
    """Trials by the names of their config.json and result.json, and null for what is not there.

    One without a result is `unended`, with its last row as `metrics`; one without a folder is
    WAITING, and one with a damaged file FAILED.
    """
    return [
        dict.fromkeys(_TRIAL) | {"folder": folder} | _told(folder, unended) for folder in folders
    ]


def _told(folder: Path, unended: Status) -> dict[str, Any]:
    try:
        config = read_config(folder)
        told = {name: config.get(name) for name in _CONFIG}
        if ending := read_ending(folder):
            return told | ending
        return told | {"status": unended, "metrics": [{}, *read_rows(folder)][-1]}
    except FileNotFoundError:
        return {"status": Status.WAITING}
    except DamagedError as error:
        tell(str(error))
        return {"status": Status.FAILED, "reason": error.reason}


def records(table: "pd.DataFrame") -> list[dict[str, Any]]:
    """A table's rows, unrounded, with null for what is missing."""
    text: Any = table.to_json(orient="records", double_precision=15)
    return json.loads(text)


def _strict(value: Any) -> Any:
    """A value as strict JSON has it: a number that is not finite is a text, such as "NaN"."""
    if isinstance(value, Mapping):
        return {str(name): _strict(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(part) for part in value]
    if hasattr(value, "item"):  # numpy's
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value if value is None or isinstance(value, str | int | float) else str(value)
