"""Tokens of a corpus: made once, kept in the cache, memory-mapped by every trial."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from tokenizers import Tokenizer

from quarterhour.data.corpora import load_documents
from quarterhour.data.files import cache_folder, write_folder, write_text
from quarterhour.data.tokenizer import load_tokenizer


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to train on: the first documents of a corpus, and the next ones as held-out set."""

    corpus: str
    tokenizer: str
    train_documents: int = 500
    heldout_documents: int = 50

    def __post_init__(self) -> None:
        for name in ("train_documents", "heldout_documents"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a folder of tokens holds; equal fingerprints mean equal tokens.

    `heldout_bytes` counts the UTF-8 bytes of the held-out targets: all characters but those that
    the first token has a part of.
    """

    corpus_hash: str
    tokenizer_hash: str
    fingerprint: str
    vocab_size: int
    train_documents: int
    train_tokens: int
    heldout_documents: int
    heldout_tokens: int
    heldout_bytes: int


class TokenData:
    """Training and held-out tokens, memory-mapped and read-only, so that all trials share them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = Manifest(**json.loads((folder / "manifest.json").read_text()))
        dtype = _token_dtype(self.manifest.vocab_size)
        self.train: np.ndarray = np.memmap(folder / "train.bin", dtype=dtype, mode="r")
        self.heldout: np.ndarray = np.memmap(folder / "heldout.bin", dtype=dtype, mode="r")

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the tokens."""
        return Tokenizer.from_file(str(self.folder / "tokenizer.json"))


def prepare_tokens(config: DataConfig) -> TokenData:
    """Tokenize a corpus, or find its tokens in the cache.

    Documents are joined without a separator and without special tokens (reference). A corpus of
    fewer documents than asked for is split in the same proportion; the manifest has the counts.
    Raises ValueError where the corpus or the tokenizer cannot be used.
    """
    documents = load_documents(config.corpus, config.train_documents + config.heldout_documents)
    train, heldout = _split(documents, config)
    tokenizer = load_tokenizer(config.tokenizer)
    name = f"{_corpus_hash(train, heldout)}-{_tokenizer_hash(tokenizer)}"
    folder = cache_folder() / "tokens" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            write_folder(folder, lambda path: _tokenize(path, tokenizer, train, heldout))
    return TokenData(folder)


def _tokenize(folder: Path, tokenizer: Tokenizer, train: list[str], heldout: list[str]) -> None:
    """Fill `folder` with token arrays, tokenizer and manifest."""
    train_tokens, heldout_tokens = _encode(tokenizer, train), _encode(tokenizer, heldout)
    train_tokens.tofile(folder / "train.bin")
    heldout_tokens.tofile(folder / "heldout.bin")
    tokenizer.save(str(folder / "tokenizer.json"))
    first_token = tokenizer.encode(heldout[0], add_special_tokens=False)
    scored_text = heldout[0][first_token.offsets[0][1] :] + "".join(heldout[1:])
    manifest = Manifest(
        corpus_hash=_corpus_hash(train, heldout),
        tokenizer_hash=_tokenizer_hash(tokenizer),
        fingerprint=_hash(train_tokens.tobytes() + b"|" + heldout_tokens.tobytes()),
        vocab_size=tokenizer.get_vocab_size(),
        train_documents=len(train),
        train_tokens=len(train_tokens),
        heldout_documents=len(heldout),
        heldout_tokens=len(heldout_tokens),
        heldout_bytes=len(scored_text.encode()),
    )
    write_text(folder / "manifest.json", json.dumps(asdict(manifest), indent=2))


def _corpus_hash(train: list[str], heldout: list[str]) -> str:
    return _hash("\0".join([*train, "\0", *heldout]).encode())


def _tokenizer_hash(tokenizer: Tokenizer) -> str:
    return _hash(tokenizer.to_str().encode())


def _split(documents: list[str], config: DataConfig) -> tuple[list[str], list[str]]:
    wanted = config.train_documents + config.heldout_documents
    heldout = len(documents) * config.heldout_documents // wanted
    if not heldout:
        least = -(-wanted // config.heldout_documents)
        raise ValueError(
            f"corpus {config.corpus}: {len(documents)} documents are too few to hold one out; it"
            f" needs at least {least}, and {wanted} for the reference's counts"
        )
    return documents[:-heldout], documents[-heldout:]


def _encode(tokenizer: Tokenizer, documents: list[str]) -> np.ndarray:
    encodings = tokenizer.encode_batch(documents, add_special_tokens=False)
    dtype = _token_dtype(tokenizer.get_vocab_size())
    return np.concatenate([np.array(encoding.ids, dtype) for encoding in encodings])


def _token_dtype(vocab_size: int) -> type[np.unsignedinteger]:
    return np.uint16 if vocab_size <= 2**16 else np.uint32


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
