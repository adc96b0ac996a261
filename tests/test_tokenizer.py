import json
import shutil
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from quarterhour.data.builtin import builtin_documents
from quarterhour.data.decoding import continuation_text, prompt_tokens
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


def write_bpe(folder: Path, tokenizer: Tokenizer) -> Path:
    """The two files that `tokenizers` and older versions of `transformers` save."""
    tokenizer.model.save(str(folder))
    return folder


def test_vocabulary_and_merges_alone_are_a_byte_level_bpe(builtin: Tokenizer, tmp_path: Path):
    loaded = load_tokenizer(str(write_bpe(tmp_path, builtin)))
    text = "Two  spaces, ü and 日本\n"
    assert encode(loaded, text) == encode(builtin, text)
    assert loaded.decode(encode(loaded, text)) == text


def refused_folder(folder: Path, reason: str) -> None:
    """It is refused in one line that has the reason."""
    with pytest.raises(ValueError, match=rf"^tokenizer {folder}: cannot be loaded \({reason}.*\)"):
        load_tokenizer(str(folder))


def test_of_another_bpe_they_do_not_say_enough(tmp_path: Path, unreachable_hub: None):
    refused_folder(
        write_bpe(tmp_path, Tokenizer(models.BPE({"a": 0}, []))), r"Couldn't .* one of: \("
    )


def test_nor_does_a_vocabulary_alone(tmp_path: Path, unreachable_hub: None):
    (tmp_path / "vocab.txt").write_text("[UNK]\nthe\n")
    refused_folder(tmp_path, r"Couldn't .* one of: \(1\) ")


def test_a_tokenizer_of_another_library_is_named(tmp_path: Path, unreachable_hub: None):
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    refused_folder(tmp_path, "ByT5Tokenizer is none of the library")


@pytest.fixture
def folder_with_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tokenizer whose settings name a module beside them, which leaves a file when it is run."""
    config = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n"
    (tmp_path / "own.py").write_text(code)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    return tmp_path


def test_code_in_a_tokenizers_folder_is_not_run(folder_with_code: Path, unreachable_hub: None):
    refused_folder(folder_with_code, "The repository .* contains custom code")
    assert not (folder_with_code / "ran").exists()


def test_a_tokenizer_json_beside_the_code_is_read(
    builtin: Tokenizer, folder_with_code: Path, unreachable_hub: None
):
    builtin.save(str(folder_with_code / "tokenizer.json"))
    assert load_tokenizer(str(folder_with_code)).to_str() == builtin.to_str()
    assert not (folder_with_code / "ran").exists()


def test_so_it_is_in_the_hubs_cache(
    builtin: Tokenizer, tmp_path: Path, folder_with_code: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("quarterhour.data.tokenizer.require_hub", lambda: pytest.fail("asked"))
    builtin.save(str(folder_with_code / "tokenizer.json"))
    repository = tmp_path / "hub/models--owner--name"
    files = shutil.ignore_patterns("hub")
    shutil.copytree(folder_with_code, repository / "snapshots/0123", ignore=files)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0123")
    assert load_tokenizer("owner/name").to_str() == builtin.to_str()
    assert not (folder_with_code / "ran").exists()


@pytest.mark.parametrize("scheme", ["always", "first"])
def test_a_continuation_keeps_the_space_that_it_begins_with(scheme: str):
    pieces = [("<unk>", 0.0), *((piece, -1.0) for piece in ("▁", "a", "b", "▁a", "▁b"))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    prompt, continuation = encode(tokenizer, "ab"), encode(tokenizer, "ab b")[2:]
    assert continuation_text(tokenizer, prompt, continuation) == " b"
    assert continuation_text(tokenizer, [], encode(tokenizer, "ab b")) == "ab b"


@given(st.text(), st.lists(st.integers(0, 8_191), max_size=9))
def test_of_the_builtin_tokenizer_it_is_what_its_tokens_say(
    builtin: Tokenizer, prompt: str, continuation: list[int]
):
    text = continuation_text(builtin, encode(builtin, prompt), continuation)
    assert text == builtin.decode(continuation)


def test_a_prompt_that_cannot_be_encoded_has_no_tokens():
    words = Tokenizer(models.WordLevel({"the": 0}))
    assert prompt_tokens(words, "the") == [0]
    assert prompt_tokens(words, "cat") == []


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data/smollm-tokenizer is absent")
def test_the_studys_tokenizer_has_49152_entries_from_its_folder_and_from_its_file():
    from_folder, from_file = load_tokenizer(str(SHARED)), load_tokenizer(f"{SHARED}/tokenizer.json")
    assert from_folder.get_vocab_size() == from_file.get_vocab_size() == 49_152
    text = "Once upon a time,  there was 1 café.\n"
    assert encode(from_folder, text) == encode(from_file, text)
    assert from_file.decode(encode(from_file, text), skip_special_tokens=False) == text
