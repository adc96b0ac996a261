"""Text and files that may come from anywhere: shown and read so that they can do no harm."""

import functools
import json
import os
import re
import stat
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

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
        with open(path, "rb", opener=open_itself) as file:
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


def open_itself(path: str, flags: int) -> int:
    """Open a file, but not what a link leads to, and without waiting for a pipe's other end."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


ANY = "*"
"""In the kind of a mapping: every name."""


def read_json(path: Path, kind: Any = dict) -> Any:
    """What one of our json files holds; DamagedError where it is of another kind."""
    content = read_file(path)
    try:
        value = json.loads(content, parse_int=whole)
        if fault := misfit(value, kind):
            raise ValueError(fault)
    except (ValueError, RecursionError) as error:
        raise DamagedError(path, f" cannot be read ({error})", MEND) from error
    return value


def whole(digits: str) -> int:
    """A whole number of JSON. Raises ValueError for one that is no float's size."""
    if len(digits) > sys.float_info.max_10_exp:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def misfit(value: Any, kind: Any, name: str = "it") -> str | None:
    """The first part of a JSON value that is not of its kind, in words; None if all are.

    A kind is a type, or a mapping that has these names at least, or a list of any number of one
    kind, or a tuple of several kinds that will do. What may be None may be missing.
    """
    if isinstance(kind, tuple):
        misfits = [misfit(value, one, name) for one in kind]
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
    return next((fault for part in parts if (fault := misfit(*part))), None)


def value_at(values: Any, path: str) -> Any:
    """What JSON objects hold at a dotted path; None where one has no such name."""
    for name in path.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return values


def look_anew(folder: Path) -> None:
    """See what another machine has written: a network's disk is asked when a folder is opened."""
    with suppress(FileNotFoundError):
        os.close(os.open(folder, os.O_RDONLY))
