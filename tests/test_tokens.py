import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest
from tiny import write_corpus
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

import quarterhour.data.tokens
from quarterhour.data.tokenizer import load_tokenizer
from quarterhour.data.tokens import DataConfig, TokenData, prepare_tokens


def config(corpus: Path, **counts: int) -> DataConfig:
    return DataConfig(corpus=str(corpus), tokenizer="builtin", **counts)


def prepare_in_a_process(corpus: str, log: str, start: Barrier) -> None:
    """Leaves one line in `log` if this process had to tokenize."""
    tokenize = quarterhour.data.tokens._tokenize

    def logged(*arguments: object) -> None:
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
        tokenize(*arguments)  # pyright: ignore

    quarterhour.data.tokens._tokenize = logged  # pyright: ignore
    start.wait(60)
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
    monkeypatch.setattr(
        "quarterhour.data.tokens._tokenize", lambda *_: pytest.fail("tokenized again")
    )
    second = prepare_tokens(config(corpus))
    assert first.folder == second.folder
    assert (first.train == second.train).all()


def test_processes_that_start_at_once_tokenize_once(tmp_path: Path):
    corpus = write_corpus(tmp_path / "shared.jsonl", documents=24)
    log = tmp_path / "log"
    spawn = multiprocessing.get_context("spawn")
    arguments = (str(corpus), str(log), spawn.Barrier(3))
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


def write_texts(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def write_letters(path: Path, letters: str) -> str:
    """A tokenizer of single letters, numbered in the order given."""
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    Tokenizer(models.BPE(vocab=vocabulary, merges=[])).save(str(path))
    return str(path)


def test_the_fingerprint_follows_tokenizer_split_and_heldout_documents(tmp_path: Path):
    letters, reversed_letters = (
        write_letters(tmp_path / f"{order}.json", order) for order in ("abcd", "dcba")
    )
    corpus = str(write_texts(tmp_path / "a.jsonl", ["ab", "bc", "cd"]))
    other = str(write_texts(tmp_path / "b.jsonl", ["ab", "bc", "da"]))
    configs = [
        DataConfig(corpus=c, tokenizer=t, train_documents=n, heldout_documents=1)
        for c, t, n in (
            (corpus, letters, 2),
            (other, letters, 2),
            (corpus, reversed_letters, 2),
            (corpus, letters, 1),
        )
    ]
    assert len({prepare_tokens(config).manifest.fingerprint for config in configs}) == 4


def test_the_fingerprint_is_the_same_in_another_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    letters = write_letters(tmp_path / "letters.json", "abcd")
    corpus = str(write_texts(tmp_path / "corpus.jsonl", ["ab", "cd"]))
    asked = DataConfig(corpus=corpus, tokenizer=letters, train_documents=1, heldout_documents=1)
    here = prepare_tokens(asked)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    there = prepare_tokens(asked)
    assert here.folder != there.folder
    assert here.manifest == there.manifest


def test_of_more_documents_the_first_train_and_the_next_are_held_out(tmp_path: Path):
    letters = write_letters(tmp_path / "letters.json", "abcd")
    corpus = str(write_texts(tmp_path / "corpus.jsonl", ["ab", "cd", "dc", "aa"]))
    prepared = prepare_tokens(
        DataConfig(corpus=corpus, tokenizer=letters, train_documents=2, heldout_documents=1)
    )
    assert (prepared.train.tolist(), prepared.heldout.tolist()) == ([0, 1, 2, 3], [3, 2])


def test_no_special_tokens_are_put_in(tmp_path: Path):
    tokenizer = load_tokenizer("builtin")
    tokenizer.add_special_tokens(["<start>"])
    start = ("<start>", tokenizer.token_to_id("<start>"))
    tokenizer.post_processor = TemplateProcessing(single="<start> $A", special_tokens=[start])
    assert tokenizer.encode("text").ids[0] == start[1]
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    corpus = write_corpus(tmp_path / "corpus.jsonl", documents=11)
    plain = prepare_tokens(config(corpus))
    started = prepare_tokens(replace(config(corpus), tokenizer=str(tmp_path / "tokenizer.json")))
    assert started.train.tolist() == plain.train.tolist()


def test_a_vocabulary_above_16_bits_is_kept_in_32(tmp_path: Path):
    letters = "".join(map(chr, range(0x20000, 0x20000 + 2**16 + 1)))
    corpus = str(write_texts(tmp_path / "corpus.jsonl", [letters[-1], letters[0]]))
    tokenizer = write_letters(tmp_path / "letters.json", letters)
    prepared = prepare_tokens(
        DataConfig(corpus=corpus, tokenizer=tokenizer, train_documents=1, heldout_documents=1)
    )
    assert (prepared.train.tolist(), prepared.heldout.tolist()) == ([2**16], [0])


def test_a_preparation_that_breaks_off_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise OSError("disk full")

    corpus = write_corpus(tmp_path / "broken-off.jsonl", documents=25)
    folders = prepare_tokens(config(corpus, train_documents=10, heldout_documents=1)).folder.parent
    before = sorted(folder for folder in folders.iterdir() if folder.is_dir())
    with monkeypatch.context() as patch:
        patch.setattr("quarterhour.data.tokens.write_text", fail)
        with pytest.raises(OSError, match="disk full"):
            prepare_tokens(config(corpus))
    assert sorted(folder for folder in folders.iterdir() if folder.is_dir()) == before
    assert prepare_tokens(config(corpus)).manifest.train_documents == 23


@pytest.mark.parametrize("first", ["plain", " a space", "\n\nlines"])
def test_heldout_bytes_are_so_whatever_the_first_document_begins_with(first: str, tmp_path: Path):
    corpus = write_texts(tmp_path / "corpus.jsonl", ["a", "b", first, "ünd noch"])
    prepared = prepare_tokens(config(corpus, train_documents=2, heldout_documents=2))
    tokenizer = prepared.tokenizer()
    targets = [tokenizer.id_to_token(token) for token in prepared.heldout[1:].tolist()]
    assert prepared.manifest.heldout_bytes == len("".join(targets))  # a character stands for a byte


@pytest.mark.parametrize("field", ["train_documents", "heldout_documents"])
@pytest.mark.parametrize("count", [0, -5])
def test_a_count_of_documents_below_one_is_refused(field: str, count: int, tmp_path: Path):
    corpus = write_corpus(tmp_path / "corpus.jsonl", documents=22)
    with pytest.raises(ValueError, match=f"{field} is {count}"):
        prepare_tokens(config(corpus, **{field: count}))


def prepared_texts(folder: Path, train: list[str], heldout: list[str], tokenizer: str) -> TokenData:
    """The texts, prepared as they are: the first to train on, the others held out."""
    corpus = write_texts(folder / "corpus.jsonl", train + heldout)
    counts = {"train_documents": len(train), "heldout_documents": len(heldout)}
    return prepare_tokens(DataConfig(corpus=str(corpus), tokenizer=tokenizer, **counts))


def saved(folder: Path, tokenizer: Tokenizer) -> str:
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder / "tokenizer.json")


WORDS = {"<unk>": 0, "the": 1, "cat": 2, "sat": 3, "on": 4, "it": 5}
LETTERS = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz <>")}


def word_level(pre_tokenizer: pre_tokenizers.PreTokenizer) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizer
    return tokenizer


def byte_level(normalizer: normalizers.Normalizer, *, prefix: bool = False) -> Tokenizer:
    tokenizer = load_tokenizer("builtin")
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    return tokenizer


def metaspace() -> Tokenizer:
    pieces = [("<unk>", 0.0), *((letter, -1.0) for letter in "▁abcdefghijklmnopqrstuvwxyz")]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "text"),
    [
        (lambda: load_tokenizer("builtin"), "The cat 猫\n\n sat  <unk>\ufeff"),
        (lambda: byte_level(normalizers.Lowercase()), "the cat"),
        (lambda: byte_level(normalizers.Sequence([]), prefix=True), "the cat  sat"),
        (lambda: Tokenizer(models.BPE(LETTERS, [])), "the cat <unk>"),
        (metaspace, "the cat sat"),
        (metaspace, " the  cat"),
    ],
)
def test_a_tokenizer_that_gives_the_text_back_loses_nothing(
    tokenizer: Callable[[], Tokenizer], text: str, tmp_path: Path
):
    prepared = prepared_texts(tmp_path, ["the dog"], [text, text], saved(tmp_path, tokenizer()))
    assert prepared.manifest.heldout_lost_share == 0.0
    assert prepared.manifest.remarks() == ["read from 1 file"]


@pytest.mark.parametrize(
    ("tokenizer", "text", "share"),
    [
        (lambda: Tokenizer(models.BPE(LETTERS, [])), "the 猫", 3 / 7),
        (lambda: Tokenizer(models.BPE(LETTERS, [], unk_token=">")), "the 猫猫", 6 / 10),
        (lambda: word_level(pre_tokenizers.WhitespaceSplit()), "the dog sat", 5 / 11),
        (lambda: word_level(pre_tokenizers.Split("\n", "isolated")), "the\nunk", 4 / 7),
        (lambda: word_level(pre_tokenizers.WhitespaceSplit()), "the  cat\n", 3 / 9),
        (lambda: byte_level(normalizers.Lowercase()), "The Cat", 2 / 7),
        (lambda: byte_level(normalizers.NFKC()), "ﬁt", 3 / 4),
        (lambda: byte_level(normalizers.Strip()), "  the\n", 3 / 6),
        (metaspace, "the\ncat 猫", 4 / 11),
    ],
)
def test_text_that_a_tokenizer_loses_is_told(
    tokenizer: Callable[[], Tokenizer], text: str, share: float, tmp_path: Path
):
    prepared = prepared_texts(tmp_path, ["the cat"], [text, text], saved(tmp_path, tokenizer()))
    assert prepared.manifest.heldout_lost_share == pytest.approx(share)
    (_, told) = prepared.manifest.remarks()
    assert told.startswith(f"the tokenizer loses {100 * share:.2g} % of the held-out text")


def test_a_text_changed_without_a_character_lost_is_told_too(tmp_path: Path):
    """The decoder moves the spaces: what they were is not known from the tokens."""
    tokenizer = Tokenizer(models.WordPiece(WORDS | {"-": 6}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokens = prepared_texts(tmp_path, ["the cat"], ["the-cat sat"], saved(tmp_path, tokenizer))
    assert tokens.manifest.heldout_lost_share == pytest.approx(1 / 11)


def test_documents_of_both_sets_are_counted(tmp_path: Path):
    train, heldout = ["one", "two\r\ntwos\r\n", "three"], ["two\ntwos", "four", "one"]
    tokens = prepared_texts(tmp_path, train, heldout, "builtin")
    assert tokens.manifest.heldout_copies == 2
    assert tokens.manifest.remarks()[1].startswith("2 of 3 held-out documents are training docu")


def test_a_manifest_of_an_older_version_is_read(tmp_path: Path):
    prepared = prepared_texts(tmp_path, ["the cat"], ["the cat sat"], "builtin")
    older = tmp_path / "older"
    shutil.copytree(prepared.folder, older)
    manifest = json.loads((older / "manifest.json").read_text())
    for name in ("heldout_lost_share", "heldout_copies", "corpus_files", "linked_files"):
        del manifest[name]
    (older / "manifest.json").write_text(json.dumps(manifest))
    assert TokenData(older).manifest.remarks() == []


@pytest.mark.parametrize("largest", [30, 450, 2**16 - 1, 2**16, 70_000])
def test_the_vocabulary_reaches_to_the_largest_id(largest: int, tmp_path: Path):
    tokenizer = saved(tmp_path, Tokenizer(models.BPE(LETTERS | {"é": largest}, [])))
    prepared = prepared_texts(tmp_path, ["aé"], ["éa"], tokenizer)
    assert prepared.manifest.vocab_size == largest + 1
    assert (prepared.train.tolist(), prepared.heldout.tolist()) == ([0, largest], [largest, 0])


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (models.WordLevel({"the": 0}), "cannot encode the documents .WordLevel error: Missing"),
        (models.WordPiece({"the": 0}), "cannot encode the documents .WordPiece error: Missing"),
        (models.Unigram([("a", 0.0)]), "cannot encode the documents .Encountered an unknown to"),
        (models.BPE({"a": 0}, []), "has no token for what stands in 1 doc"),
        (models.BPE(), "has no token for what stands in 1 doc"),
    ],
)
def test_a_tokenizer_that_does_not_fit_the_corpus_is_named(
    model: models.Model, reason: str, tmp_path: Path
):
    tokenizer = saved(tmp_path, Tokenizer(model))
    with pytest.raises(ValueError, match=f"^tokenizer {tokenizer}: it {reason}.*; pass --token"):
        prepared_texts(tmp_path, ["the"], ["猫"], tokenizer)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("largest", [2**24, 2**32 - 1])
def test_an_absurd_id_is_refused_before_the_library_counts_to_it(largest: int, tmp_path: Path):
    file = Path(saved(tmp_path, Tokenizer(models.BPE(LETTERS, []))))
    content = json.loads(file.read_text())
    content["model"]["vocab"]["é"] = largest
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"^tokenizer {file}: its largest id is {largest:,}, and"):
        prepared_texts(tmp_path, ["aé"], ["éa"], str(file))


def test_a_tokenizer_that_cuts_at_random_does_not(tmp_path: Path):
    pieces = {"a": 0, "b": 1, "ab": 2}
    tokenizer = saved(tmp_path, Tokenizer(models.BPE(pieces, [("a", "b")], dropout=0.5)))
    prepared = prepared_texts(tmp_path, ["ab" * 50], ["ab" * 50], tokenizer)
    assert prepared.train.tolist() == prepared.heldout.tolist() == [2] * 50


def test_a_document_without_a_token_is_skipped(tmp_path: Path):
    letters = saved(tmp_path, Tokenizer(models.BPE({"a": 0, "b": 1}, [])))
    prepared = prepared_texts(tmp_path, ["猫", "ab"], ["猫", "ba"], letters)
    assert (prepared.train.tolist(), prepared.heldout.tolist()) == ([0, 1], [1, 0])
    assert prepared.manifest.heldout_lost_share == 3 / 5
