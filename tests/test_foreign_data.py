"""Corpora and tokenizers that do not fit each other, from the command to the report."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import write_corpus
from tokenizers import Tokenizer, models

from quarterhour.analysis.chapters import run as run_chapter
from quarterhour.analysis.chapters.memorisation import memorisation
from quarterhour.analysis.runs import load_run
from quarterhour.tune.cli import main
from quarterhour.tune.run_reader import read_rows

SMALL = {
    "data.batch_size": 2, "data.seq_len": 16, "model.d_model": 12, "model.d_ff": 12,
    "model.n_layers": 1,
}  # fmt: skip

Quarterhour = Callable[..., str]


@pytest.fixture
def quarterhour(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Quarterhour:
    """The command in an empty folder: all that it prints, in long lines."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "999")

    def call(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["quarterhour", *arguments])
        with pytest.raises(SystemExit):
            main()
        return "".join(capfd.readouterr())

    return call


def trained(quarterhour: Quarterhour, tokenizer: Tokenizer, corpus: str = "corpus.jsonl") -> str:
    """What a run of three steps on that corpus prints; its folder is runs/a."""
    tokenizer.save("tokenizer.json")
    settings = [part for path, value in SMALL.items() for part in ("--set", f"{path}={value}")]
    data = ["--corpus", corpus, "--tokenizer", "tokenizer.json", "--max-steps", "3"]
    return quarterhour("run", "baseline", "--name", "a", *data, *settings)


def letters(text: str) -> Tokenizer:
    """A tokenizer of the text's characters, which drops all others."""
    return Tokenizer(models.BPE({letter: n for n, letter in enumerate(sorted(set(text)))}, []))


def test_text_that_the_tokenizer_drops_gives_no_bits_per_byte(quarterhour: Quarterhour):
    texts = ["the cat sat on it"] * 20 + ["the cat 今天天气很好"] * 2
    Path("corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    printed = trained(quarterhour, letters("the cat sat on it"))
    lost = "tokenizer loses 69 % of the held-out text"
    assert f"{lost}: there are no bits per byte" in printed
    assert "heldout_loss" in printed
    assert "heldout_bits_per_byte" not in printed

    (rows,) = (read_rows(path.parent) for path in Path("runs/a").rglob("metrics.jsonl"))
    assert "heldout_loss" in rows[-1]
    assert not any("heldout_bits_per_byte" in row for row in rows)
    run = load_run(Path("runs/a"))
    assert run.experiment["data"]["heldout_lost_share"] == pytest.approx(18 / 26)
    assert any(lost in remark for remark in run_chapter.remarks(run))
    assert memorisation(run)["heldout_bits_per_byte"].isna().all()
    assert "report in" in quarterhour("report", "runs/a")

    data = ["--corpus", "corpus.jsonl", "--tokenizer", "tokenizer.json"]
    refused = quarterhour("search", "--objective", "heldout_bits_per_byte", *data)
    assert "there are none where a tokenizer loses text" in refused


def test_prompts_without_a_token_are_not_continued(quarterhour: Quarterhour):
    texts = ["今天天气很好今天天气很好"] * 22
    Path("corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    printed = trained(quarterhour, letters("今天天气很好"))
    assert "2 of 2 held-out documents are training documents too" in printed
    assert "1 of 1 trials complete" in printed
    samples = json.loads(next(Path("runs/a").rglob("samples.json")).read_text())
    assert {sample["continuation"] for sample in samples} == {""}
    run = load_run(Path("runs/a"))
    assert "Held-out documents that are training documents too: 2." in run_chapter.remarks(run)


def test_ids_may_have_holes(quarterhour: Quarterhour):
    write_corpus(Path("corpus.jsonl"), documents=22)
    vocabulary = {letter: number for number, letter in enumerate("abcdefg ")} | {"h": 450}
    printed = trained(quarterhour, Tokenizer(models.BPE(vocabulary, [])))
    assert "tokenizer.json, 451 entries" in printed
    assert "1 of 1 trials complete" in printed
    assert "heldout_bits_per_byte" in printed


def test_the_files_of_a_folder_are_counted_in_the_headline(quarterhour: Quarterhour):
    Path("corpus").mkdir()
    for number in range(3):
        write_corpus(Path("corpus") / f"{number}.JSONL", documents=8)
    assert "\nread from 3 files\n" in trained(quarterhour, letters("abcdefgh "), "corpus")
