import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from quarterhour.data.corpora import load_documents
from quarterhour.data.tokens import DataConfig, prepare_tokens

TEXTS = [f"Document {number}\nof several lines, with ü and 日本." for number in range(6)]


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


CORPORA: dict[str, Callable[[Path], Path | str]] = {
    "builtin": lambda folder: "builtin",  # noqa: ARG005
    "jsonl": lambda folder: write_jsonl(folder / "corpus.jsonl"),
    "parquet": lambda folder: write_parquet(folder / "corpus.parquet"),
    "txt": lambda folder: write_paragraphs(folder / "corpus.txt"),
    "folder": lambda folder: write_folder(folder / "corpus"),
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


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "txt", "folder"])
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
    path = tmp_path / "corpus.csv"
    path.write_text("text\na\n")
    with pytest.raises(ValueError, match=r"use a .jsonl, .parquet, .txt file, not '.csv'"):
        load_documents(str(path), 2)


def test_a_folder_without_documents_is_refused(tmp_path: Path):
    (tmp_path / "NOTICE").write_text("no document")
    with pytest.raises(ValueError, match=r"no .jsonl, .parquet, .txt file in this folder"):
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


SHARED_CORPUS = Path(__file__).parents[2] / "shared" / "data" / "enwiki" / "enwiki.jsonl"


@pytest.mark.skipif(not SHARED_CORPUS.exists(), reason="../shared/data/enwiki is absent")
def test_a_corpus_of_articles_is_prepared_with_the_studys_counts():
    tokens = prepare_tokens(DataConfig(corpus=str(SHARED_CORPUS), tokenizer="builtin"))
    assert (tokens.manifest.train_documents, tokens.manifest.heldout_documents) == (500, 50)
