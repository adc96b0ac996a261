"""Documents of a corpus: the built-in one, files on disk, or a data set of the Hugging Face hub."""

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock

from quarterhour.data.builtin import builtin_documents
from quarterhour.data.files import cache_folder, write_text
from quarterhour.data.hub import require_hub

FILE_KINDS = (".jsonl", ".parquet", ".txt")
HUB_NAME = r"\w[\w.-]*/[\w.-]+(:[\w.-]+)?"
INSTEAD = "--corpus with a file, a folder, or builtin"


def load_documents(corpus: str, count: int) -> list[str]:
    """The first `count` documents (fewer if the corpus has fewer), in the corpus's own order.

    `corpus` is `builtin`, a .jsonl or .parquet file with a `text` field, a .txt file (paragraphs
    set apart by empty lines are its documents), a folder of such files, or a hub name
    `owner/name[:configuration]`, whose documents are downloaded once and cached.
    Raises ValueError for what cannot be read, naming the file and line.
    """
    if corpus == "builtin":
        return builtin_documents()[:count]
    if Path(corpus).exists():
        return list(islice(_read_path(Path(corpus)), count))
    if re.fullmatch(HUB_NAME, corpus) and Path(corpus).suffix not in FILE_KINDS:
        return _hub_documents(corpus, count)
    raise ValueError(
        f"corpus {corpus}: no such file or folder; give a {', '.join(FILE_KINDS)} file, a folder"
        " of them, a hub name owner/name[:configuration], or builtin"
    )


def _checked(text: Any, place: str) -> str:
    """`text` if it is text that a tokenizer can read, and not empty."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError(
            f"corpus {place}: the 'text' field holds {text!r:.40}; it must be text that is not"
            " empty: mend or remove it"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"corpus {place}: text that is not Unicode ({error}); mend it") from error
    return text


def _read_path(path: Path) -> Iterator[str]:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in FILE_KINDS)
        if not files:
            raise ValueError(f"corpus {path}: no {', '.join(FILE_KINDS)} file in this folder")
        for file in files:
            yield from _read_path(file)
    elif path.suffix == ".jsonl":
        yield from _read_jsonl(path)
    elif path.suffix == ".parquet":
        texts = _dataset_texts(str(path), "parquet", data_files=str(path))
        for number, text in enumerate(texts, 1):
            yield _checked(text, f"{path}, row {number}")
    elif path.suffix == ".txt":
        yield from _read_paragraphs(path)
    else:
        raise ValueError(f"corpus {path}: use a {', '.join(FILE_KINDS)} file, not '{path.suffix}'")


def _read_jsonl(path: Path) -> Iterator[str]:
    for number, line in enumerate(_lines(path), 1):
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"corpus {path}, line {number}: not a JSON object with a 'text' field"
                f" ({type(error).__name__}: {error}); mend or remove the line"
            ) from error
        yield _checked(text, f"{path}, line {number}")


def _read_paragraphs(path: Path) -> Iterator[str]:
    paragraph: list[str] = []
    for line in (*_lines(path), ""):
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "".join(paragraph)
            paragraph = []


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from file
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"corpus {path}: cannot be read as UTF-8 text ({error})") from error


def _hub_documents(name: str, count: int) -> list[str]:
    """Documents of a hub data set, streamed once and cached as jsonl."""
    path = cache_folder() / f"hub-{name.replace('/', '--').replace(':', '--')}-{count}.jsonl"
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            repository, _, configuration = name.partition(":")
            texts = islice(_dataset_texts(name, repository, configuration or None), count)
            lines = [json.dumps({"text": text}) for text in texts]
            write_text(path, "\n".join(lines) + "\n")
    return list(_read_jsonl(path))


def _dataset_texts(corpus: str, *arguments: str | None, **options: str) -> Iterator[str]:
    """The texts of a data set's train split, streamed; arguments as of `datasets.load_dataset`."""
    import datasets  # loading it takes seconds, and the built-in corpus never needs it

    try:
        if not options:
            require_hub()
        rows: Any = datasets.load_dataset(*arguments, split="train", streaming=True, **options)  # pyright: ignore
        for row in rows:
            yield row["text"]
    except KeyError as error:
        raise ValueError(f"corpus {corpus}: its rows have no field {error}") from error
    except Exception as error:  # errors of several libraries, from the hub's client to arrow
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"corpus {corpus}: cannot be read ({reason}); pass {INSTEAD}") from error
