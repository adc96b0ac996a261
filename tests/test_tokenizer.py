import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from quarterhour.data.builtin import builtin_documents
from quarterhour.data.tokenizer import load_tokenizer

SHARED = Path(__file__).parents[2] / "shared" / "data" / "smollm-tokenizer"


@pytest.fixture(scope="module")
def builtin(cache: None) -> Tokenizer:
    return load_tokenizer("builtin")


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def test_the_builtin_tokenizer_has_8192_entries(builtin: Tokenizer):
    assert builtin.get_vocab_size() == 8_192
    assert sorted(builtin.get_vocab().values()) == list(range(8_192))


@given(st.text())
@example("  two spaces,\ttab\r\nand a line \n\n")
@example("日本語 \N{GRINNING FACE} \x00\ufffd e\u0301")
def test_the_builtin_tokenizer_gives_back_any_text(builtin: Tokenizer, text: str):
    ids = encode(builtin, text)
    assert builtin.decode(ids, skip_special_tokens=False) == text
    assert len(ids) <= len(text.encode())


def test_the_builtin_tokenizer_shortens_its_own_corpus(builtin: Tokenizer):
    text = "".join(builtin_documents()[500:])
    assert len(encode(builtin, text)) < len(text) / 3


def test_training_twice_gives_the_same_bytes(
    builtin: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    documents = builtin_documents()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # so that it is trained again
    monkeypatch.setattr("quarterhour.data.tokenizer.builtin_documents", lambda: documents)
    assert load_tokenizer("builtin").to_str() == builtin.to_str()


def test_the_builtin_tokenizer_is_trained_once(builtin: Tokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "quarterhour.data.tokenizer._train_bpe", lambda _: pytest.fail("trained again")
    )
    assert load_tokenizer("builtin").to_str() == builtin.to_str()


def test_a_tokenizer_json_file_is_read_and_neither_cuts_nor_pads(
    builtin: Tokenizer, tmp_path: Path
):
    cutting = Tokenizer.from_str(builtin.to_str())
    cutting.enable_truncation(4)
    cutting.enable_padding(length=9)
    cutting.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert loaded.to_str() == builtin.to_str()


@pytest.mark.parametrize("content", ["no tokenizer", "{}"])
def test_a_file_that_is_no_tokenizer_is_named(content: str, tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    expected = f"^tokenizer {path}: not a tokenizer.json file .*pass --tokenizer with a folder"
    with pytest.raises(ValueError, match=expected):
        load_tokenizer(str(path))


def write_folder(folder: Path, tokenizer: str) -> Path:
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def unreachable_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise ConnectionError("nobody answers")

    monkeypatch.setattr("quarterhour.data.tokenizer.require_hub", refuse)


def test_a_folder_is_read_without_the_hub(
    builtin: Tokenizer, tmp_path: Path, unreachable_hub: None
):
    loaded = load_tokenizer(str(write_folder(tmp_path, builtin.to_str())))
    text = builtin_documents()[0]
    assert encode(loaded, text) == encode(builtin, text)


@pytest.mark.parametrize("content", ["no tokenizer", "{}"])
def test_a_folder_with_a_broken_tokenizer_is_named(
    content: str, tmp_path: Path, unreachable_hub: None
):
    folder = write_folder(tmp_path, content)
    with pytest.raises(ValueError, match=f"^tokenizer {folder}: cannot be loaded .*pass --tokeniz"):
        load_tokenizer(str(folder))


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path, unreachable_hub: None):
    with pytest.raises(ValueError, match=f"^tokenizer {tmp_path}: cannot be loaded"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("name", ["absent.json", "absent"])
def test_a_missing_path_is_named(name: str, tmp_path: Path, unreachable_hub: None):
    path = tmp_path / name
    with pytest.raises(ValueError, match=f"^tokenizer {path}: cannot be loaded"):
        load_tokenizer(str(path))


def test_without_the_hub_the_error_says_what_to_pass_instead(unreachable_hub: None):
    expected = r"^tokenizer owner/none-such: cannot be loaded \(nobody answers\); pass --tokenizer "
    with pytest.raises(ValueError, match=expected):
        load_tokenizer("owner/none-such")


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data/smollm-tokenizer is absent")
def test_the_studys_tokenizer_has_49152_entries_from_its_folder_and_from_its_file():
    from_folder, from_file = load_tokenizer(str(SHARED)), load_tokenizer(f"{SHARED}/tokenizer.json")
    assert from_folder.get_vocab_size() == from_file.get_vocab_size() == 49_152
    text = "Once upon a time,  there was 1 café.\n"
    assert encode(from_folder, text) == encode(from_file, text)
    assert from_file.decode(encode(from_file, text), skip_special_tokens=False) == text
