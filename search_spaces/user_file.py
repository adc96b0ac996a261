"""A Python file of a user's own, whose code runs, and what it calls by a name: `FILE.py:NAME`."""

import runpy
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def is_in_file(name: str) -> bool:
    """Whether a name has the form `FILE.py:NAME`."""
    return name.rpartition(":")[0].endswith(".py")


def run_for(option: str, name: str) -> Any:
    """What the file of `FILE.py:NAME` calls NAME, or None; the file is run.

    Raises ValueError, which names the `option`, where there is no such file or it cannot be run.
    """
    file, _, wanted = name.rpartition(":")
    if not Path(file).is_file():
        raise ValueError(f"{option} {name}: there is no file {file}")
    try:
        with beside(file):
            return runpy.run_path(file).get(wanted)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{option} {name}: {file} cannot be run: {told(error)}") from error


@contextmanager
def beside(file: str) -> Generator[None]:
    """Let modules be imported from a file's folder, last of all, so that they replace no others."""
    folder = str(Path(file).absolute().parent)
    is_new = folder not in sys.path
    if is_new:
        sys.path.append(folder)
    try:
        yield
    finally:
        if is_new:
            sys.path.remove(folder)


def told(error: BaseException) -> str:
    """An error of a user's code: its kind and what it says."""
    return f"{type(error).__name__}: {error}"
