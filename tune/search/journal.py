"""What Optuna logs of a study: kept by the search itself, with a copy in its folder for readers."""

import json
from collections.abc import Generator, Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import BaseJournalBackend

from quarterhour.data.files import write_file
from quarterhour.tune.foreign import is_plain_file
from quarterhour.tune.run_folder import STUDY

Logs = list[dict[str, Any]]


class Journal(BaseJournalBackend):
    """A study's logs in memory, and from `publish` on in a file as well.

    Nothing depends on the file: where it is not what was written, it is written anew, and where it
    cannot be written, the search goes on without.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[bytes] = []
        self._n_written = 0
        self._written: tuple[int, ...] | None = None
        self._is_published = False

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """All logs from that number on."""
        return map(json.loads, self._lines[log_number_from:])

    def append_logs(self, logs: Logs) -> None:
        """Take in logs."""
        self._lines += [json.dumps(log).encode() + b"\n" for log in logs]
        if self._is_published:
            self.publish()

    def publish(self) -> None:
        """Write what the file lacks, now and whenever logs come."""
        self._is_published = True
        with suppress(OSError):
            if _identity(self._path) == self._written:
                with self._path.open("ab") as file:
                    file.writelines(self._lines[self._n_written :])
            else:
                write_file(self._path, lambda new: new.write_bytes(b"".join(self._lines)))
            self._n_written, self._written = len(self._lines), _identity(self._path)


class PublishedJournal(BaseJournalBackend):
    """The file of another process's journal, as far as it can be read. Nothing is written to it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """All logs from that number on that are whole."""
        with suppress(ValueError):
            yield from map(json.loads, islice(published_lines(self._path), log_number_from, None))

    def append_logs(self, logs: Logs) -> None:
        """Raises PermissionError."""
        raise PermissionError(f"{self._path} is only read here")


def published_lines(path: Path) -> Generator[bytes]:
    """The lines of a journal's file; none where there is no file, but a link or a pipe."""
    with suppress(OSError):
        if is_plain_file(path):
            with path.open("rb") as file:
                yield from file


def open_storage(folder: Path) -> BaseStorage:
    """The study of a search, as its folder shows it to readers."""
    return JournalStorage(PublishedJournal(folder / STUDY))


def _identity(path: Path) -> tuple[int, ...] | None:
    """A value that changes when a file is changed or replaced; None where there is none."""
    with suppress(OSError):
        stat = path.lstat()
        return stat.st_ino, stat.st_size, stat.st_mtime_ns
    return None
