"""The kinds of file that documents are read from, a piece at a time: huge files are no trouble.

A reader gives places, to name in an error, and what stands there as a document.
"""

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any, BinaryIO, TextIO, cast

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
BYTE_ORDER_MARK = "\ufeff"
ENCODINGS = {  # by the byte-order mark, the longer ones first
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
END_MARK = re.compile(r"<\|endoftext\|>(?:[ \t]*\n)?")
BETWEEN_ITEMS = " \t\r\n,"
HEAD_CHARACTERS = 2**24  # of a text file: searched for an end mark
PIECE_CHARACTERS = 2**20  # of a JSON list: read at once

Places = Iterator[tuple[str, Any]]


def kind_of(path: Path) -> str:
    """The suffix that says how to read a file: in lower case, without that of a compression."""
    unpacked = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
    return unpacked.suffix.lower()


def read_file(path: Path) -> Iterator[str]:
    """The documents of a file. Raises ValueError, naming file and place, for what is none."""
    reader = READERS.get(kind_of(path))
    if not reader:
        raise ValueError(f"corpus {path}: use a {', '.join(READERS)} file, not '{path.suffix}'")
    if not path.is_file():  # to open a pipe may take for ever
        raise ValueError(f"corpus {path}: this is not a regular file")
    for place, text in reader(path):
        yield _checked(text, f"{path}, {place}")


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


def _read_json_lines(path: Path) -> Places:
    for number, line in enumerate(_lines(path), 1):
        place = f"line {number}"
        yield place, _parsed(line, f"{path}, {place}", lambda item: item["text"])


def _read_json(path: Path) -> Places:
    """The items of a list, which may be mere texts, or objects that follow each other."""
    for number, item in enumerate(_json_items(path), 1):
        place = f"item {number}"
        yield place, _parsed(item, f"{path}, {place}", _text_of_item)


def _text_of_item(item: Any) -> Any:
    return item if isinstance(item, str) else item["text"]


def _parsed(source: str, place: str, text_of: Callable[[Any], Any]) -> Any:
    try:
        return text_of(json.loads(source))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"corpus {place}: not a JSON object with a 'text' field"
            f" ({type(error).__name__}: {error}); mend or remove it"
        ) from error


def _json_items(path: Path) -> Iterator[str]:
    """The source of each item; of what is broken, the rest from there on."""
    decode = json.JSONDecoder().raw_decode
    with _opened(path) as file:
        rest, end = file.read(PIECE_CHARACTERS).lstrip(), 0
        closing = "]" if rest.startswith("[") else ""
        rest = rest.removeprefix("[")
        while True:
            while end < len(rest) and rest[end] in BETWEEN_ITEMS:
                end += 1
            start = end
            try:
                _, end = decode(rest, start)
            except (ValueError, RecursionError):
                # Doubled each time, so that a long item is not copied many times.
                more = file.read(max(PIECE_CHARACTERS, len(rest) - start))
                rest, end = rest[start:] + more, 0
                if not more:
                    break
            else:
                yield rest[start:end]
        if rest.rstrip() != closing:
            yield rest


def _read_csv(path: Path) -> Places:
    csv.field_size_limit(2**31 - 1)  # a field is a document
    delimiter = "\t" if kind_of(path) == ".tsv" else ","
    rows = csv.DictReader(_lines(path, newline=""), delimiter=delimiter, strict=True)
    try:
        if "text" not in (rows.fieldnames or ()):
            raise ValueError(f"corpus {path}: its rows have no field 'text'")
        for row in rows:
            yield f"line {rows.line_num}", row["text"]
    except csv.Error as error:
        place = f"{path}, line {rows.reader.line_num}"
        raise ValueError(f"corpus {place}: {error}; mend the file") from error


def _read_table(path: Path) -> Places:
    """The `text` column of a Parquet or Arrow file, or of an Arrow stream."""
    import pyarrow  # loading it takes time, and the built-in corpus never needs it
    from pyarrow import ipc, parquet

    try:
        with path.open("rb") as file:  # given the path, pyarrow would look for more in its name
            batches: Iterable[Any]
            if kind_of(path) == ".parquet":
                batches = parquet.ParquetFile(file).iter_batches(64, columns=["text"])
            elif file.peek(6).startswith(b"ARROW1"):
                table = ipc.open_file(file)
                batches = map(table.get_batch, range(table.num_record_batches))
            else:
                batches = ipc.open_stream(file)
            texts = (text for batch in batches for text in batch["text"].to_pylist())
            for number, text in enumerate(texts, 1):
                yield f"row {number}", text
    except KeyError as error:
        raise ValueError(f"corpus {path}: its rows have no field 'text'") from error
    except (OSError, UnicodeError, pyarrow.ArrowException) as error:
        raise ValueError(
            f"corpus {path}: cannot be read ({shorten(str(error), 200)}); restore it, or pass"
            " --corpus with another file"
        ) from error


def _read_text(path: Path) -> Places:
    """What end marks divide; in a file without them, paragraphs.

    Nothing but the marks is left out: empty lines belong to what stands before them. Each document
    ends with a line feed, put in where it is missing, so that its last word is one.
    """
    with _opened(path) as file:
        marked = END_MARK.search(file.read(HEAD_CHARACTERS))
    number = 0
    for part in _joined(_lines(path)) if marked else _paragraphs(_lines(path)):
        for text in END_MARK.split(part):
            if text.strip():
                number += 1
                yield f"document {number}", text if text.endswith("\n") else text + "\n"


def _joined(lines: Iterable[str]) -> Iterator[str]:
    """Lines put together, each part up to and with a line that has an end mark."""
    part: list[str] = []
    for line in lines:
        *ended, rest = END_MARK.split(line)
        if ended:
            yield "".join([*part, line.removesuffix(rest)])
            part = []
        part.append(rest)
    yield "".join(part)


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Lines up to where text follows on empty lines."""
    part: list[str] = []
    for line in lines:
        if line.strip() and part and not part[-1].strip() and any(map(str.strip, part)):
            yield "".join(part)
            part = []
        part.append(line)
    yield "".join(part)


def _lines(path: Path, newline: str | None = None) -> Iterator[str]:
    """A text file's lines; files that were put together have byte-order marks inside them."""
    with _opened(path, newline) as file:
        for line in file:
            yield line.removeprefix(BYTE_ORDER_MARK)


@contextmanager
def _opened(path: Path, newline: str | None = None) -> Generator[TextIO]:
    """A file, unpacked, as UTF-8 text without its byte-order mark, or as that says."""
    try:
        with io.BufferedReader(_unpacked(path)) as file:  # pyright: ignore[reportArgumentType]
            head = file.peek(4)[:4]
            marked = (name for mark, name in ENCODINGS.items() if head.startswith(mark))
            encoding = next(marked, "utf-8-sig")
            if encoding == "utf-8-sig" and b"\0" in head:
                raise UnicodeError("it looks like UTF-16 without a byte-order mark")
            yield io.TextIOWrapper(file, encoding, newline=newline)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"corpus {path}: cannot be read as UTF-8 text ({error})") from error


def _unpacked(path: Path) -> BinaryIO:
    """The bytes of a file, as they were before compression."""
    compression = COMPRESSIONS.get(path.suffix.lower())
    if not compression:
        return path.open("rb", buffering=0)
    import pyarrow  # loading it takes time

    return cast(BinaryIO, pyarrow.input_stream(path, compression=compression))


READERS: dict[str, Callable[[Path], Places]] = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_table,
    ".arrow": _read_table,
    ".txt": _read_text,
}
"""How each kind of file is read; files of text may be compressed besides."""
