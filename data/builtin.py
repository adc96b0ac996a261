"""The built-in corpus: the language reference and docstrings that come with every CPython."""

import ast
import hashlib
import inspect
import json
import random
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

from filelock import FileLock

from quarterhour.data.files import cache_folder, write_text

DOCUMENTS = 550
LEAST_CHARACTERS = 2_300
SHUFFLE_SEED = 0
SKIPPED_FOLDERS = {
    "test", "tests", "idle_test", "idlelib", "lib2to3", "site-packages", "dist-packages",
    "turtledemo", "ensurepip", "pydoc_data", "__pycache__",
}  # fmt: skip


def builtin_documents() -> list[str]:
    """550 documents of about 730 tokens, the same for every run of one Python build.

    They are collected once, in seconds, and cached; the build and this code are in the key.
    """
    build = sys.version + inspect.getsource(sys.modules[__name__])
    path = cache_folder() / f"builtin-{hashlib.sha256(build.encode()).hexdigest()[:16]}.jsonl"
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            lines = [json.dumps({"text": text}) for text in _pack(_pieces())]
            write_text(path, "\n".join(lines) + "\n")
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def _pieces() -> list[str]:
    """Topics and docstrings, each once, long ones cut, in an order fixed by the seed."""
    texts = [*topics.values(), *_docstrings(Path(sysconfig.get_path("stdlib")))]
    pieces: list[str] = []
    for text in dict.fromkeys(texts):
        for start in range(0, len(text), LEAST_CHARACTERS):
            pieces.append(text[start : start + LEAST_CHARACTERS].strip() + "\n\n")
    random.Random(SHUFFLE_SEED).shuffle(pieces)
    return pieces


def _docstrings(library: Path) -> Iterator[str]:
    """Docstrings of the standard library's sources, read without importing anything."""
    for path in sorted(library.rglob("*.py")):
        if SKIPPED_FOLDERS.isdisjoint(path.relative_to(library).parts):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                    docstring = ast.get_docstring(node)
                    if docstring:
                        title = getattr(node, "name", path.stem)
                        yield f"{title}\n\n{docstring}"


def _pack(pieces: list[str]) -> list[str]:
    """Join whole pieces into documents of at least LEAST_CHARACTERS."""
    documents: list[str] = []
    document = ""
    for piece in pieces:
        document += piece
        if len(document) >= LEAST_CHARACTERS:
            documents.append(document)
            document = ""
    return documents[:DOCUMENTS]
