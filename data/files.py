"""Files and folders written whole or not at all, and the user's cache folder."""

import errno
import os
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """This project's folder in the user's cache; created if missing.

    Raises OSError where it cannot be made or written.
    """
    folder = platformdirs.user_cache_path("quarterhour")
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    return folder


@contextmanager
def _named(path: Path) -> Generator[None]:
    """Give an error of the system the path of what was written, which a full disk's lacks."""
    try:
        yield
    except OSError as error:
        if error.errno:
            error.filename = error.filename or str(path)
        raise


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk and rename it there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # There may be a dead process's file, or a link that somebody has laid to elsewhere.
    temporary.unlink(missing_ok=True)
    temporary.touch(exist_ok=False)
    try:
        with _named(path):
            write(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole, in UTF-8; bytes of a path that are no text stay as they are."""
    content = text.encode(errors="surrogateescape")
    write_file(path, lambda temporary: temporary.write_bytes(content))


def write_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a folder beside `path`, flush its files and rename it there.

    An existing folder stays until the new one is whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        _named(path),
        tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as aside,
    ):
        new = Path(aside) / "new"
        new.mkdir()
        write(new)
        for file_path in (entry for entry in new.rglob("*") if entry.is_file()):
            with file_path.open("rb") as file:
                os.fsync(file.fileno())
        if path.exists():
            path.rename(Path(aside) / "old")
        new.rename(path)
