import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from tiny import write_corpus

import data.tokens
from data.tokens import DataConfig, TokenData, prepare_tokens


def config(corpus: Path, **counts: int) -> DataConfig:
    return DataConfig(corpus=str(corpus), tokenizer="builtin", **counts)


def prepare_in_a_process(corpus: str, log: str) -> None:
    """Leaves one line in `log` if this process had to tokenize."""
    tokenize = data.tokens._tokenize

    def logged(*arguments: object) -> None:
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
        tokenize(*arguments)  # pyright: ignore

    data.tokens._tokenize = logged  # pyright: ignore
    prepare_tokens(config(Path(corpus)))


def test_the_builtin_corpus_has_the_size_of_the_references(tokens: TokenData):
    manifest = tokens.manifest
    assert (manifest.train_documents, manifest.heldout_documents) == (500, 50)
    assert 300_000 < manifest.train_tokens < 420_000
    assert manifest.vocab_size == 8_192
    assert tokens.train.max() < 8_192


def test_tokens_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    corpus = write_corpus(tmp_path / "once.jsonl", documents=23)
    first = prepare_tokens(config(corpus))
    monkeypatch.setattr(data.tokens, "_tokenize", lambda *_: pytest.fail("tokenized again"))
    second = prepare_tokens(config(corpus))
    assert first.folder == second.folder
    assert (first.train == second.train).all()


def test_processes_that_start_at_once_tokenize_once(tmp_path: Path):
    corpus = write_corpus(tmp_path / "shared.jsonl", documents=24)
    log = tmp_path / "log"
    spawn = multiprocessing.get_context("spawn")
    arguments = (str(corpus), str(log))
    processes = [spawn.Process(target=prepare_in_a_process, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(log.read_text().splitlines()) == 1


def test_tokens_are_memory_mapped_and_read_only(tokens: TokenData):
    for array in (tokens.train, tokens.heldout):
        assert isinstance(array, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_tokens_are_the_documents_without_anything_between(tmp_path: Path):
    corpus = write_corpus(tmp_path / "joined.jsonl", documents=22)
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    prepared = prepare_tokens(config(corpus))
    assert prepared.tokenizer().decode(prepared.train.tolist()) == "".join(texts[:20])
    assert prepared.tokenizer().decode(prepared.heldout.tolist()) == "".join(texts[20:])


def test_heldout_bytes_are_those_of_all_tokens_but_the_first(tmp_path: Path):
    prepared = prepare_tokens(config(write_corpus(tmp_path / "bytes.jsonl")))
    scored = prepared.tokenizer().decode(prepared.heldout[1:].tolist())
    assert prepared.manifest.heldout_bytes == len(scored.encode())


def test_the_fingerprint_follows_the_tokens_and_not_the_path(tmp_path: Path):
    corpus = write_corpus(tmp_path / "a.jsonl")
    copy = tmp_path / "b.jsonl"
    copy.write_bytes(corpus.read_bytes())
    other = write_corpus(tmp_path / "c.jsonl", documents=111)
    prints = [prepare_tokens(config(p)).manifest.fingerprint for p in (corpus, copy, other)]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(("documents", "heldout"), [(110, 10), (22, 2), (11, 1), (30, 2)])
def test_a_smaller_corpus_is_split_in_the_same_proportion(
    documents: int, heldout: int, tmp_path: Path
):
    prepared = prepare_tokens(config(write_corpus(tmp_path / "few.jsonl", documents)))
    assert prepared.manifest.train_documents == documents - heldout
    assert prepared.manifest.heldout_documents == heldout


def test_too_few_documents_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="10 documents are too few to hold one out"):
        prepare_tokens(config(write_corpus(tmp_path / "few.jsonl", documents=10)))
