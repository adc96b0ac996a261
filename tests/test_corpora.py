import bz2
import csv
import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import ipc, parquet

from quarterhour.data.corpora import corpus_files, load_documents
from quarterhour.data.tokens import DataConfig, prepare_tokens

TEXTS = [f"Document {number}\nof several lines, with ü and 日本." for number in range(6)]
ROWS = [{"text": text} for text in TEXTS]


def write_jsonl(path: Path, texts: list[Any] = TEXTS) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def write_parquet(path: Path, values: list[Any] = TEXTS, field: str = "text") -> Path:
    parquet.write_table(pyarrow.table({field: values}), path)
    return path


def write_paragraphs(path: Path) -> Path:
    path.write_text("\n\n \n" + "\n\n\n".join(TEXTS), encoding="utf-8")
    return path


def write_folder(path: Path) -> Path:
    (path / "b").mkdir(parents=True)
    write_jsonl(path / "a.jsonl", TEXTS[:2])
    write_parquet(path / "b" / "c.parquet", TEXTS[2:4])
    (path / "d.txt").write_text("\n\n".join(TEXTS[4:]), encoding="utf-8")
    (path / "NOTICE").write_text("no document")
    return path


def write_json(path: Path, items: Sequence[Any] = ROWS) -> Path:
    path.write_text(json.dumps(items, indent=2, ensure_ascii=False), encoding="utf-8")
    return path


def write_objects(path: Path) -> Path:
    path.write_text("\n".join(json.dumps(row, indent=2) for row in ROWS))
    return path


def write_csv(path: Path, delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["number", "text"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows({"number": 1, "text": text} for text in TEXTS)
    return path


def write_arrow(path: Path, new: Callable[..., Any] = ipc.new_stream) -> Path:
    table = pyarrow.table({"text": TEXTS})
    with pyarrow.OSFile(str(path), "wb") as file, new(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=4)
    return path


def compress(path: Path, library: Any, name: str) -> Path:
    """The file in two parts, each compressed, as put together by `cat`."""
    content = path.read_bytes()
    packed = library.compress(content[:99]) + library.compress(content[99:])
    (path.parent / name).write_bytes(packed)
    return path.parent / name


CORPORA: dict[str, Callable[[Path], Path | str]] = {
    "builtin": lambda folder: "builtin",  # noqa: ARG005
    "jsonl": lambda folder: write_jsonl(folder / "corpus.jsonl"),
    "parquet": lambda folder: write_parquet(folder / "corpus.parquet"),
    "txt": lambda folder: write_paragraphs(folder / "corpus.txt"),
    "folder": lambda folder: write_folder(folder / "corpus"),
    "json": lambda folder: write_json(folder / "corpus.json"),
    "objects": lambda folder: write_objects(folder / "corpus.json"),
    "texts": lambda folder: write_json(folder / "corpus.json", TEXTS),
    "csv": lambda folder: write_csv(folder / "corpus.csv"),
    "tsv": lambda folder: write_csv(folder / "corpus.tsv", delimiter="\t"),
    "arrow": lambda folder: write_arrow(folder / "corpus.arrow"),
    "arrow file": lambda folder: write_arrow(folder / "corpus.arrow", ipc.new_file),
    "jsonl.gz": lambda folder: compress(write_jsonl(folder / "a.jsonl"), gzip, "b.JSONL.GZ"),
    "json.bz2": lambda folder: compress(write_json(folder / "a.json"), bz2, "b.json.bz2"),
    "csv.gz": lambda folder: compress(write_csv(folder / "a.csv"), gzip, "b.csv.gz"),
    "txt.gz": lambda folder: compress(write_paragraphs(folder / "a.txt"), gzip, "b.txt.gz"),
}


@pytest.fixture(params=CORPORA)
def corpus(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(CORPORA[request.param](tmp_path))


def test_a_corpus_gives_as_many_texts_as_asked_for_in_its_own_order(corpus: str):
    documents = load_documents(corpus, 5)
    assert len(documents) == 5
    assert all(isinstance(text, str) and text.strip() for text in documents)
    assert len(set(documents)) == 5
    assert load_documents(corpus, 5) == documents
    assert load_documents(corpus, 3) == documents[:3]


@pytest.mark.parametrize("kind", sorted(CORPORA.keys() - {"builtin"}))
def test_files_give_the_texts_they_hold_and_no_more(kind: str, tmp_path: Path):
    documents = load_documents(str(CORPORA[kind](tmp_path)), 1_000)
    assert [text.strip() for text in documents] == TEXTS


def test_the_builtin_corpus_has_the_studys_550_documents_of_similar_length():
    documents = load_documents("builtin", 10_000)
    assert len(documents) == len(set(documents)) == 550
    assert min(len(text) for text in documents) >= 2_300
    assert max(len(text) for text in documents) <= 2 * 2_300 + 2


def test_the_builtin_corpus_is_collected_once(monkeypatch: pytest.MonkeyPatch):
    documents = load_documents("builtin", 550)
    monkeypatch.setattr("quarterhour.data.builtin._pieces", lambda: pytest.fail("collected again"))
    assert load_documents("builtin", 550) == documents


@pytest.mark.parametrize("name", ["absent.jsonl", "absent.parquet", "absent.txt", "absent"])
def test_a_missing_file_or_folder_is_said_to_be_missing(
    name: str, tmp_path: Path, unreachable_hub: None
):
    path = tmp_path / name
    with pytest.raises(ValueError, match=f"^corpus {path}: no such file or folder"):
        load_documents(str(path), 5)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not a JSON object with a 'text' field"),
        ("", "not a JSON object with a 'text' field"),
        ("[1]", "not a JSON object with a 'text' field"),
        ('"text"', "not a JSON object with a 'text' field"),
        ('{"body": "b"}', r"not a JSON object with a 'text' field \(KeyError: 'text'\)"),
        ('{"text": ""}', "the 'text' field holds ''"),
        ('{"text": " \\n"}', "must be text that is not empty"),
        ('{"text": null}', "the 'text' field holds None"),
        ('{"text": 3}', "the 'text' field holds 3"),
        ('{"text": "half a pair: \\ud800"}', "text"),
    ],
)
def test_a_jsonl_line_that_is_no_document_is_named(line: str, reason: str, tmp_path: Path):
    path = tmp_path / "broken.jsonl"
    path.write_text(f'{{"text": "a"}}\n{{"text": "b"}}\n{line}\n{{"text": "d"}}\n')
    assert load_documents(str(path), 2) == ["a", "b"]
    with pytest.raises(ValueError, match=f"^corpus {path}, line 3: .*{reason}"):
        load_documents(str(path), 4)


@pytest.mark.parametrize("nothing", [" ", None])
def test_an_empty_row_of_a_parquet_file_is_named(nothing: str | None, tmp_path: Path):
    path = write_parquet(tmp_path / "corpus.parquet", ["a", nothing, "c"])
    assert load_documents(str(path), 1) == ["a"]
    with pytest.raises(ValueError, match=f"^corpus {path}, row 2: "):
        load_documents(str(path), 3)


def test_a_parquet_file_of_numbers_is_refused(tmp_path: Path):
    path = write_parquet(tmp_path / "corpus.parquet", [1, 2])
    with pytest.raises(ValueError, match=f"^corpus {path}, row 1: "):
        load_documents(str(path), 2)


def test_a_parquet_file_without_text_is_named_with_the_field(tmp_path: Path):
    path = write_parquet(tmp_path / "corpus.parquet", field="body")
    with pytest.raises(ValueError, match=f"^corpus {path}: its rows have no field 'text'"):
        load_documents(str(path), 2)


def test_a_parquet_file_that_is_none_says_what_to_pass_instead(tmp_path: Path):
    path = tmp_path / "corpus.parquet"
    path.write_text("no parquet")
    with pytest.raises(ValueError, match=f"^corpus {path}: cannot be read .*pass --corpus"):
        load_documents(str(path), 2)


def test_a_file_of_another_kind_is_refused(tmp_path: Path):
    path = tmp_path / "corpus.md"
    path.write_text("text\na\n")
    with pytest.raises(ValueError, match=r"use a .jsonl, .*, .txt file, not '.md'"):
        load_documents(str(path), 2)


def test_a_folder_without_documents_is_refused(tmp_path: Path):
    (tmp_path / "NOTICE").write_text("no document")
    with pytest.raises(ValueError, match=r"no .jsonl, .*, .txt file in this folder"):
        load_documents(str(tmp_path), 2)


def test_an_error_in_a_folder_names_the_file(tmp_path: Path):
    folder = write_folder(tmp_path / "corpus")
    (folder / "a.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=rf"^corpus {folder / 'a.jsonl'}, line 1: "):
        load_documents(str(folder), 2)


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.txt"])
def test_a_file_that_is_not_utf_8_is_named(name: str, tmp_path: Path):
    path = tmp_path / name
    path.write_bytes('{"text": "Müll"}\n'.encode("latin-1"))
    with pytest.raises(ValueError, match=f"^corpus {path}: cannot be read as UTF-8 text"):
        load_documents(str(path), 2)


def test_a_name_that_is_neither_file_nor_hub_name_is_refused():
    with pytest.raises(ValueError, match=r"^corpus bultin: no such file or folder; .* or builtin$"):
        load_documents("bultin", 2)


@pytest.fixture
def unreachable_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise ConnectionError("nobody answers")

    monkeypatch.setattr("quarterhour.data.corpora.require_hub", refuse)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """A hub with one data set; the calls that reach it."""
    calls: list[Any] = []

    def load_dataset(*arguments: Any, **options: Any) -> Iterator[dict[str, str]]:
        calls.append((arguments, options))
        return ({"text": text} for text in TEXTS)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("quarterhour.data.corpora.require_hub", lambda: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_without_the_hub_the_error_says_what_to_pass_instead(unreachable_hub: None):
    expected = r"^corpus owner/set:part: cannot be read \(nobody answers\); pass --corpus with a "
    with pytest.raises(ValueError, match=expected):
        load_documents("owner/set:part", 2)


def test_a_hub_data_set_is_streamed_once_and_then_read_without_the_hub(
    hub: list[Any], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
):
    assert load_documents("owner/set:part", 4) == TEXTS[:4]
    assert hub == [(("owner/set", "part"), {"split": "train", "streaming": True})]
    request.getfixturevalue("unreachable_hub")
    assert load_documents("owner/set:part", 4) == TEXTS[:4]
    assert len(hub) == 1


def test_hub_data_sets_counts_and_parts_are_cached_apart(hub: list[Any]):
    assert load_documents("owner/set", 2) == TEXTS[:2]
    assert load_documents("owner/set", 3) == TEXTS[:3]
    assert load_documents("owner/set:other", 3) == TEXTS[:3]
    assert load_documents("owner/sets", 3) == TEXTS[:3]
    assert [arguments for arguments, _ in hub] == [
        ("owner/set", None),
        ("owner/set", None),
        ("owner/set", "other"),
        ("owner/sets", None),
    ]


def test_a_stream_that_breaks_off_leaves_nothing_in_the_cache(
    hub: list[Any], monkeypatch: pytest.MonkeyPatch
):
    def break_off(*arguments: Any, **options: Any) -> Iterator[dict[str, str]]:
        yield {"text": TEXTS[0]}
        raise OSError("connection lost")

    with monkeypatch.context() as broken:
        broken.setattr(datasets, "load_dataset", break_off)
        with pytest.raises(ValueError, match=r"cannot be read \(connection lost\)"):
            load_documents("owner/set", 3)
    assert load_documents("owner/set", 3) == TEXTS[:3]


def test_a_file_counts_once_in_a_folder_whatever_leads_to_it(tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write_jsonl(elsewhere / "z.jsonl", TEXTS[4:])
    folder = tmp_path / "corpus"
    parts = folder / "corpus.jsonl"  # a folder, as Spark and caches name it
    parts.mkdir(parents=True)
    first = write_jsonl(parts / "part-00000.jsonl", TEXTS[:2])
    write_jsonl(parts / "part-00001.jsonl", TEXTS[2:4])
    for hidden in (folder / ".ipynb_checkpoints", parts / ".git"):
        hidden.mkdir()
        shutil.copy(first, hidden)
    shutil.copy(first, folder / ".part.jsonl")
    (folder / "link.jsonl").symlink_to(first)
    (folder / "more.jsonl").symlink_to("link.jsonl")
    os.link(first, folder / "same.jsonl")
    (folder / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)
    assert load_documents(str(folder), 99) == TEXTS
    assert load_documents(str(parts), 99) == TEXTS[:4]
    tokens = prepare_tokens(
        DataConfig(corpus=str(folder), tokenizer="builtin", train_documents=5, heldout_documents=1)
    )
    assert tokens.manifest.remarks() == ["read from 3 files, 1 of them outside the folder"]


def test_a_suffix_may_be_in_any_case(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.TXT").write_text("two")
    (tmp_path / "c.Jsonl").write_text('{"text": "three"}')
    write_parquet(tmp_path / "d.PARQUET", ["four"])
    documents = load_documents(str(tmp_path), 9)
    assert [text.strip() for text in documents] == ["one", "two", "three", "four"]
    assert load_documents(str(tmp_path / "b.TXT"), 9) == ["two\n"]
    assert len(corpus_files(str(tmp_path))) == 4


def test_a_folder_that_datasets_has_saved_is_read(tmp_path: Path):
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(tmp_path / "saved"))
    assert load_documents(str(tmp_path / "saved"), 9) == TEXTS


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path):
    write_jsonl(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").symlink_to("moved.jsonl")
    with pytest.raises(ValueError, match=rf"^corpus {tmp_path}: .*No such file.*b\.jsonl"):
        load_documents(str(tmp_path), 1)


def test_a_pipe_is_refused_at_once(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(ValueError, match=r"pipe\.jsonl: this is not a regular file"):
        load_documents(str(tmp_path), 1)


@pytest.mark.parametrize("kind", sorted(CORPORA.keys() - {"builtin", "folder"}))
@pytest.mark.parametrize(
    "name", ["corpus*", "corpus [v2]", "a?b", "{a,b}", "gzip::b", "s3:b", "__b", "~", "a #b%20"]
)
def test_a_path_is_a_path_and_no_pattern(kind: str, name: str, tmp_path: Path):
    here = Path(CORPORA[kind](tmp_path))
    folder = tmp_path / name
    folder.mkdir()
    path = here.rename(folder / f"{name}{''.join(here.suffixes)}")
    other = TEXTS[::-1]
    write_parquet(folder / "corpus other.parquet", other)
    write_jsonl(folder / "corpus v.jsonl", other)
    assert [text.strip() for text in load_documents(str(path), 99)] == TEXTS


@pytest.mark.parametrize("kind", ["txt", "jsonl", "json", "csv"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_no_part_of_a_text(kind: str, encoding: str, tmp_path: Path):
    path = Path(CORPORA[kind](tmp_path))
    path.write_text(path.read_text(encoding="utf-8"), encoding=encoding)
    documents = load_documents(str(path), 99)
    assert [text.strip() for text in documents] == TEXTS
    assert not any("\ufeff" in text for text in documents)


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_without_one_such_a_file_is_refused(kind: str, encoding: str, tmp_path: Path):
    path = Path(CORPORA[kind](tmp_path))
    path.write_text("text " + path.read_text(encoding="utf-8"), encoding=encoding)
    with pytest.raises(ValueError, match=f"^corpus {path}: .*UTF-16 without a byte-order mark"):
        load_documents(str(path), 99)


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_nor_is_one_inside_of_files_that_were_put_together(kind: str, tmp_path: Path):
    path = Path(CORPORA[kind](tmp_path))
    content = path.read_text(encoding="utf-8").rstrip() + "\n\n" * (kind == "txt")
    content += "\n" * (kind == "jsonl")
    path.write_text(f"\ufeff{content}\ufeff{content}", encoding="utf-8")
    assert [text.strip() for text in load_documents(str(path), 99)] == TEXTS * 2


def test_paragraphs_keep_all_of_a_text_and_end_in_a_line_feed(tmp_path: Path):
    text = "\n \none\n  two\n\n\t\n\nthree\r\n\r\nfour"
    (tmp_path / "a.txt").write_bytes(text.encode())
    documents = load_documents(str(tmp_path / "a.txt"), 99)
    assert documents == ["\n \none\n  two\n\n\t\n\n", "three\n\n", "four\n"]
    (tmp_path / "b.txt").write_text("five")
    assert load_documents(str(tmp_path), 99) == [*documents, "five\n"]


STORIES = ["One.\n\nStill one.\n", "Two.\n", " Three\n\n\nand so on.\n"]


@pytest.mark.parametrize(
    "between", ["<|endoftext|>\n", "<|endoftext|>", "<|endoftext|> \r\n", "<|endoftext|>\n" * 2]
)
@pytest.mark.parametrize("ends", [True, False])
def test_end_marks_divide_a_text_and_are_no_part_of_it(between: str, ends: bool, tmp_path: Path):
    path = tmp_path / "stories.txt"
    path.write_bytes((between.join(STORIES) + between * ends).encode())
    assert load_documents(str(path), 99) == STORIES
    assert load_documents(str(path), 1) == STORIES[:1]


def test_end_marks_within_a_line_divide_it(tmp_path: Path):
    (tmp_path / "a.txt").write_text("a<|endoftext|>b b<|endoftext|><|endoftext|>c\n\nc")
    assert load_documents(str(tmp_path / "a.txt"), 99) == ["a\n", "b b\n", "c\n\nc\n"]


def test_a_late_end_mark_is_no_text_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("quarterhour.data.readers.HEAD_CHARACTERS", 4)
    (tmp_path / "a.txt").write_text("a\n\nb<|endoftext|>c")
    assert load_documents(str(tmp_path / "a.txt"), 99) == ["a\n\n", "b\n", "c\n"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('[{"text": "a"}, {"text": "b"}, {"body": "c"}]', "item 3: not a JSON .*KeyError: 'text'"),
        ('[{"text": "a"}, {"text": "b"}, 3]', "item 3: not a JSON object with a 'text' field"),
        ('[{"text": "a"}, {"text": "b"}, {"text": ', "item 3: not a JSON object"),
        ('[{"text": "a"}, {"text": "b"}', "item 3: not a JSON object"),
        ('[{"text": "a"}, {"text": "b"}][{"text": "c"}]', "item 3: not a JSON object"),
        ('[{"text": "a"}, {"text": "b"}, ""]', "item 3: the 'text' field holds ''"),
        ('["a", "b", "c', "item 3: not a JSON object .*Unterminated string"),
        ('["a", "b", ' + "[" * 100_000, "item 3: not a JSON object .*Recursion"),
        ('{"text": "a"}\n{"text": "b"}\n' + "[" * 100_000, "item 3: not a JSON .*Recursion"),
        ('{"text": "a"}\n{"text": "b"}\n]', "item 3: not a JSON object"),
        ('{"data": [{"text": "a"}]}', "item 1: not a JSON object .*KeyError: 'text'"),
    ],
)
def test_a_broken_json_file_is_named_with_the_place(content: str, reason: str, tmp_path: Path):
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"^corpus {path}, {reason}"):
        load_documents(str(path), 9)


@pytest.mark.parametrize("piece", [1, 7, 64])
def test_a_json_list_is_read_piece_by_piece(
    piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("quarterhour.data.readers.PIECE_CHARACTERS", piece)
    path = write_json(tmp_path / "corpus.json", ROWS * 9)
    assert load_documents(str(path), 99) == TEXTS * 9
    with path.open("a") as file:
        file.write("cut off")
    assert load_documents(str(path), 50) == (TEXTS * 9)[:50]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("number,text\n1,a\n2\n", ", line 3: the 'text' field holds None"),
        ('text\na\n"b\nc', ", line 4: unexpected end of data"),
        ("words\na\n", ": its rows have no field 'text'"),
        ("", ": its rows have no field 'text'"),
    ],
)
def test_a_broken_csv_file_is_named(content: str, reason: str, tmp_path: Path):
    path = tmp_path / "broken.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"^corpus {path}{reason}"):
        load_documents(str(path), 9)


def test_csv_texts_may_be_long_and_look_like_anything(tmp_path: Path):
    texts = ["x" * 300_000, "NA", "null", "2024-01-01", 'a "b", c', "a\r\nb"]
    path = tmp_path / "corpus.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    assert load_documents(str(path), 9) == texts


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt.bz2", "a.csv.zst"])
def test_a_damaged_compressed_file_is_named(name: str, tmp_path: Path):
    path = tmp_path / name
    path.write_bytes(gzip.compress(b'{"text": "a"}\n' * 99)[:40])
    with pytest.raises(ValueError, match=f"^corpus {path}: cannot be read"):
        load_documents(str(path), 99)


SHARED_CORPUS = Path(__file__).parents[2] / "shared" / "data" / "enwiki" / "enwiki.jsonl"


@pytest.mark.skipif(not SHARED_CORPUS.exists(), reason="../shared/data/enwiki is absent")
def test_a_corpus_of_articles_is_prepared_with_the_studys_counts():
    tokens = prepare_tokens(DataConfig(corpus=str(SHARED_CORPUS), tokenizer="builtin"))
    assert (tokens.manifest.train_documents, tokens.manifest.heldout_documents) == (500, 50)
