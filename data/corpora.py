"""Documents of a corpus: the built-in one, files on disk, or a data set of the Hugging Face hub."""

import json
import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from filelock import FileLock

from quarterhour.data.builtin import builtin_documents
from quarterhour.data.files import cache_folder, write_text
from quarterhour.data.hub import require_hub
from quarterhour.data.readers import READERS, kind_of, read_file

KINDS = ", ".join(READERS)
HUB_NAME = r"\w[\w.-]*/[\w.-]+(:[\w.-]+)?"
INSTEAD = "--corpus with a file, a folder, or builtin"
# What the library `datasets` writes beside a data set.
DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


def load_documents(corpus: str, count: int) -> list[str]:
    """The first `count` documents (fewer if the corpus has fewer), in the corpus's own order.

    `corpus` is `builtin`, a file of a kind in READERS, a folder of such files, or a hub name
    `owner/name[:configuration]`, whose documents are downloaded once and cached.
    Raises ValueError for what cannot be read, naming the file and the place in it.
    """
    if corpus == "builtin":
        return builtin_documents()[:count]
    if files := corpus_files(corpus):
        return list(islice(chain.from_iterable(map(read_file, files)), count))
    if re.fullmatch(HUB_NAME, corpus) and kind_of(Path(corpus)) not in READERS:
        return _hub_documents(corpus, count)
    raise ValueError(
        f"corpus {corpus}: no such file or folder; give a {KINDS} file, a folder of them, a hub"
        " name owner/name[:configuration], or builtin"
    )


def corpus_files(corpus: str) -> list[Path]:
    """The files that a corpus on disk is made of, ordered by name; of another corpus, none.

    In a folder each file counts once, however many links lead to it, and hidden ones never.
    Raises ValueError for a folder without documents, and for one that cannot be read.
    """
    path = Path(corpus)
    if corpus == "builtin" or not path.is_dir():
        return [path] if corpus != "builtin" and path.exists() else []
    try:
        files = list(_files_below(path, {_identity(path)}))
    except OSError as error:
        raise ValueError(f"corpus {corpus}: cannot be read ({error})") from error
    if not files:
        raise ValueError(f"corpus {corpus}: no {KINDS} file in this folder")
    return files


def _files_below(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """The files of documents that have not been `seen`, adding them to it."""
    for path in sorted(folder.iterdir()):
        wanted = path.is_dir() or (kind_of(path) in READERS and path.name not in DESCRIPTIONS)
        if path.name.startswith(".") or not wanted or _identity(path) in seen:
            continue
        seen.add(_identity(path))
        yield from _files_below(path, seen) if path.is_dir() else [path]


def _identity(path: Path) -> tuple[int, int]:
    """What a file or folder is, whatever it is called."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _hub_documents(name: str, count: int) -> list[str]:
    """Documents of a hub data set, streamed once and cached as jsonl."""
    path = cache_folder() / f"hub-{name.replace('/', '--').replace(':', '--')}-{count}.jsonl"
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            lines = [json.dumps({"text": text}) for text in islice(_hub_texts(name), count)]
            write_text(path, "\n".join(lines) + "\n")
    return list(read_file(path))


def _hub_texts(name: str) -> Iterator[str]:
    """The texts of a hub data set's train split, streamed."""
    import datasets  # loading it takes seconds, and the built-in corpus never needs it

    repository, _, configuration = name.partition(":")
    try:
        require_hub()
        rows: Any = datasets.load_dataset(  # pyright: ignore
            repository, configuration or None, split="train", streaming=True
        )
        for row in rows:
            yield row["text"]
    except KeyError as error:
        raise ValueError(f"corpus {name}: its rows have no field {error}") from error
    except Exception as error:  # errors of several libraries, from the hub's client to arrow
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"corpus {name}: cannot be read ({reason}); pass {INSTEAD}") from error
