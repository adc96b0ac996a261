"""Tokenizers: the built-in byte-level BPE, a file or folder, or one of the hub."""

import hashlib
import inspect
import sys
from contextlib import suppress
from pathlib import Path
from textwrap import shorten

import tokenizers
from filelock import FileLock
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from tokenizers import Tokenizer

from quarterhour.data.builtin import builtin_documents
from quarterhour.data.files import cache_folder, write_file
from quarterhour.data.hub import require_hub

BUILTIN_VOCAB_SIZE = 8_192
BUILTIN_TRAINING_DOCUMENTS = 500
MOST_ENTRIES = 2**24  # the library counts from 0 to the largest id when it saves a tokenizer
INSTEAD = "--tokenizer with a folder, a tokenizer.json file, or builtin"


def load_tokenizer(name: str) -> Tokenizer:
    """A tokenizer without truncation, padding or chance.

    `name` is `builtin`, a `tokenizer.json` file, or a folder or hub name that
    `transformers.AutoTokenizer` reads. No code that comes with a tokenizer is run.
    Raises ValueError for what cannot be loaded.
    """
    if name == "builtin":
        tokenizer = _builtin_tokenizer()
    elif Path(name).is_file():
        tokenizer = _tokenizer_from_file(Path(name))
    else:
        tokenizer = _auto_tokenizer(name)
    if (size := vocabulary_size(tokenizer)) > MOST_ENTRIES:
        raise ValueError(
            f"tokenizer {name}: its largest id is {size - 1:,}, and may be {MOST_ENTRIES - 1:,} at"
            f" most; pass {INSTEAD}"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None  # equal texts have equal tokens
    return tokenizer


def _builtin_tokenizer() -> Tokenizer:
    """Byte-level BPE trained once on the built-in corpus's first 500 documents, then cached."""
    documents = builtin_documents()[:BUILTIN_TRAINING_DOCUMENTS]
    source = inspect.getsource(sys.modules[__name__]) + tokenizers.__version__
    key = hashlib.sha256("\0".join([source, *documents]).encode()).hexdigest()[:16]
    path = cache_folder() / f"builtin-bpe-{key}.json"
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            trained = _train_bpe(documents)
            write_file(path, lambda temporary: trained.save(str(temporary)))
    return Tokenizer.from_file(str(path))


def _train_bpe(documents: list[str]) -> Tokenizer:
    tokenizer = _byte_level(tokenizers.models.BPE())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=BUILTIN_VOCAB_SIZE,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def _byte_level(model: tokenizers.models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer


def _tokenizer_from_file(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ValueError(
            f"tokenizer {path}: not a tokenizer.json file ({_reason(error)}); pass {INSTEAD}"
        ) from error


def _auto_tokenizer(name: str) -> Tokenizer:
    """A folder's tokenizer, or one of the hub: from its client's own cache, else downloaded."""
    try:
        return _from_transformers(name)
    except Exception as error:  # errors of several libraries, KeyError among them
        if not isinstance(error, ConnectionError):
            with suppress(Exception):
                return _from_files(_folder(name))
        raise ValueError(
            f"tokenizer {name}: cannot be loaded ({_reason(error)}); pass {INSTEAD}"
        ) from error


def _from_transformers(name: str) -> Tokenizer:
    from transformers import AutoTokenizer  # loading it takes seconds; the built-in never needs it

    local = Path(name).is_dir() or _in_hub_cache(name)
    if not local:
        require_hub()
    loaded = AutoTokenizer.from_pretrained(name, local_files_only=local, trust_remote_code=False)
    tokenizer = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(tokenizer, Tokenizer):
        raise ValueError(f"{type(loaded).__name__} is none of the library `tokenizers`")
    return tokenizer


def _folder(name: str) -> Path:
    """Where a tokenizer's files lie; of one of the hub, its `tokenizer.json` at least."""
    if Path(name).is_dir():
        return Path(name)
    local = _in_hub_cache(name)
    return Path(hf_hub_download(name, "tokenizer.json", local_files_only=local)).parent


def _from_files(folder: Path) -> Tokenizer:
    """What a folder's files say alone, where its settings are missing or ask for code to be run."""
    if (folder / "tokenizer.json").exists():
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    files = (str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer = _byte_level(tokenizers.models.BPE.from_file(*files))
    alphabet = set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    if (folder / "tokenizer_config.json").exists() or not alphabet <= tokenizer.get_vocab().keys():
        raise ValueError("this may be another kind of BPE")
    return tokenizer


def _in_hub_cache(name: str) -> bool:
    return isinstance(try_to_load_from_cache(name, "tokenizer.json"), str)


def _reason(error: Exception) -> str:
    """An error of several lines, or of none, in one."""
    return shorten(str(error), 200) or type(error).__name__


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the largest id: ids need not be consecutive."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1
