"""A user's own space: a function in a Python file of theirs, whose code runs."""

import io
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

from optuna.trial import BaseTrial

from quarterhour.data.files import cache_folder, write_text
from quarterhour.search_spaces.point import plain
from quarterhour.search_spaces.user_file import beside, is_in_file, run_for, told

Space = Callable[[BaseTrial], Mapping[str, Any]]


def run_space_file(name: str) -> Space:
    """The function of `FILE.py:NAME`. The file is run, and remembered as one that the user runs.

    Raises ValueError where there is no such file or function, or the file cannot be run.
    """
    file, _, function = name.rpartition(":")
    if not is_in_file(name):
        raise ValueError(f"unknown space '{name}': use open-ended, architectures or FILE.py:NAME")
    mark = _mark(name) if Path(file).is_file() else None  # of the file before it runs
    found = run_for("--space", name)
    if mark is None or not callable(found):
        raise ValueError(f"--space {name}: {file} has no function {function}")
    mark.parent.mkdir(exist_ok=True)
    write_text(mark, name)
    return partial(_called, cast(Space, found), file)


def content_hash(name: str) -> str | None:
    """The hash of the file in `FILE.py:NAME`; None where there is none."""
    file = _file(name)
    return sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else None


def absolute(name: str) -> str:
    """`FILE.py:NAME` with the whole path of the file; any other name as it is."""
    return f"{_file(name).absolute()}:{name.rpartition(':')[2]}" if ":" in name else name


def is_remembered(name: str) -> bool:
    """Whether this user has run `FILE.py:NAME`, there and as it is."""
    return _mark(name).exists()


def _file(name: str) -> Path:
    return Path(name.rpartition(":")[0])


def _mark(name: str) -> Path:
    """What remembers in the user's cache that they have run a file.

    Where it lies counts too, for it may import what lies beside it.
    """
    file = _file(name)
    identity = f"{file.resolve()}:{name.rpartition(':')[2]}\n".encode() + file.read_bytes()
    return cache_folder() / "spaces" / sha256(identity).hexdigest()


class _PlainTrial:
    """An Optuna trial that takes numpy's choices as Python's: its storage knows no others."""

    def __init__(self, trial: BaseTrial) -> None:
        self._trial = trial

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self._trial.suggest_categorical(name, [plain(choice) for choice in choices])


def _called(function: Space, file: str, trial: BaseTrial) -> Mapping[str, Any]:
    """A point of a user's space; any other error becomes a ValueError that names its kind."""
    try:
        with beside(file):
            return dict(function(cast(BaseTrial, _PlainTrial(trial))))
    except ValueError:
        raise
    except (Exception, SystemExit) as error:
        raise ValueError(told(error)) from error


def quiet(space: Space, trial: BaseTrial) -> Mapping[str, Any]:
    """A point of a space whose warnings and prints were shown before: without them."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return space(trial)
