"""Tokens of a corpus: made once, kept in the cache, memory-mapped by every trial."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
from filelock import FileLock
from tokenizers import Tokenizer

from quarterhour.data.corpora import corpus_files, load_documents
from quarterhour.data.decoding import lost_share
from quarterhour.data.files import cache_folder, write_folder, write_text
from quarterhour.data.tokenizer import load_tokenizer, vocabulary_size

# Part of a folder's name: raised when the tokens or the manifest of equal data would differ.
FORMAT = 3


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
    the first token has a part of. `heldout_lost_share` is the share of the held-out text's bytes
    that the tokens do not give back; where it is above 0, bits per byte would be wrong.
    `heldout_copies` counts the held-out documents that are training documents too, `corpus_files`
    the files of a corpus on disk, and `linked_files` those of them that lie outside its folder.
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
    heldout_lost_share: float = 0.0
    heldout_copies: int = 0
    corpus_files: int = 0
    linked_files: int = 0

    def remarks(self) -> list[str]:
        """What a user has to know of the data before anything trains on it."""
        said: list[str] = []
        if self.corpus_files:
            links = f", {self.linked_files} of them outside the folder" * bool(self.linked_files)
            said.append(f"read from {self.corpus_files} file{'s' * (self.corpus_files > 1)}{links}")
        if self.heldout_copies:
            said.append(
                f"{self.heldout_copies} of {self.heldout_documents} held-out documents are training"
                " documents too: the held-out loss is too low"
            )
        if self.heldout_lost_share:
            said.append(
                f"the tokenizer loses {100 * self.heldout_lost_share:.2g} % of the held-out text:"
                " there are no bits per byte"
            )
        return said


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
    name = f"{_corpus_hash(train, heldout)}-{_tokenizer_hash(tokenizer)}-{FORMAT}"
    folder = cache_folder() / "tokens" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            try:
                write_folder(folder, lambda path: _tokenize(path, tokenizer, train, heldout))
            except ValueError as error:
                raise ValueError(
                    f"tokenizer {config.tokenizer}: {error}; pass --tokenizer with another"
                ) from error
    tokens = TokenData(folder)
    files = corpus_files(config.corpus)
    tokens.manifest = replace(
        tokens.manifest, corpus_files=len(files), linked_files=_outside(Path(config.corpus), files)
    )
    return tokens


def recorded_tokenizer(name: str, tokenizer_hash: str) -> Tokenizer:
    """The tokenizer of that name, which made the tokens of an earlier run, and adds none to a text.

    `tokenizer_hash` is what the run's manifest says. Raises ValueError where it is another now.
    """
    tokenizer = load_tokenizer(name)
    if _tokenizer_hash(tokenizer) != tokenizer_hash:
        raise ValueError(
            f"tokenizer {name} is not the one that the trial was trained with: pass --tokenizer"
            " with that"
        )
    tokenizer.post_processor = None
    return tokenizer


def _outside(corpus: Path, files: list[Path]) -> int:
    """How many of a folder's files lie elsewhere, so that links lead to them."""
    root = corpus.resolve()
    return sum(not file.resolve().is_relative_to(root) for file in files)


def _tokenize(folder: Path, tokenizer: Tokenizer, train: list[str], heldout: list[str]) -> None:
    """Fill `folder` with token arrays, tokenizer and manifest."""
    heldout_ids = _encode(tokenizer, heldout)
    dtype = _token_dtype(vocabulary_size(tokenizer))
    train_tokens, heldout_tokens = (
        np.fromiter(chain.from_iterable(ids), dtype)
        for ids in (_encode(tokenizer, train), heldout_ids)
    )
    train_tokens.tofile(folder / "train.bin")
    heldout_tokens.tofile(folder / "heldout.bin")
    tokenizer.save(str(folder / "tokenizer.json"))
    offsets = tokenizer.encode(heldout[0], add_special_tokens=False).offsets or [(0, 0)]
    scored_text = heldout[0][offsets[0][1] :] + "".join(heldout[1:])
    manifest = Manifest(
        corpus_hash=_corpus_hash(train, heldout),
        tokenizer_hash=_tokenizer_hash(tokenizer),
        fingerprint=_hash(train_tokens.tobytes() + b"|" + heldout_tokens.tobytes()),
        vocab_size=vocabulary_size(tokenizer),
        train_documents=len(train),
        train_tokens=len(train_tokens),
        heldout_documents=len(heldout),
        heldout_tokens=len(heldout_tokens),
        heldout_bytes=len(scored_text.encode()),
        heldout_lost_share=lost_share(tokenizer, heldout, heldout_ids),
        heldout_copies=_copies(heldout, train),
    )
    write_text(folder / "manifest.json", json.dumps(asdict(manifest), indent=2))


def _copies(texts: list[str], others: list[str]) -> int:
    """How many of the texts are among the others; space around them does not count, nor CR."""
    known = {tuple(text.strip().splitlines()) for text in others}
    return sum(tuple(text.strip().splitlines()) in known for text in texts)


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


def _encode(tokenizer: Tokenizer, documents: list[str]) -> list[list[int]]:
    """Each document's token ids; raises ValueError where there are none."""
    try:
        encodings = tokenizer.encode_batch(documents, add_special_tokens=False)
    except Exception as error:  # the library raises plain Exception without an unknown token
        raise ValueError(f"it cannot encode the documents ({error})") from error
    tokens = [encoding.ids for encoding in encodings]
    if not any(tokens):
        raise ValueError(f"it has no token for what stands in {len(documents)} documents")
    return tokens


def _token_dtype(vocab_size: int) -> type[np.unsignedinteger]:
    return np.uint16 if vocab_size <= 2**16 else np.uint32


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
