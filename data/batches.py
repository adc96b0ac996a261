"""Batches as pure functions of the seed and the step, and the two validation sets.

Shapes: B batch, T seq_len. A batch is int64 token ids [B, T + 1]: inputs are the first T columns,
targets the last T.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from quarterhour.data.tokens import TokenData

VALIDATION_SHARE = 0.1
SPLIT_STREAM = 0
ORDER_STREAM = 1


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Shape of a batch. Raises ValueError for sizes below 1."""

    batch_size: int
    seq_len: int

    def __post_init__(self) -> None:
        for name in ("batch_size", "seq_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} is {getattr(self, name)}: it must be at least 1")


class Batches:
    """Training batches and validation sets of one seed.

    As in the reference, a sample is any window of seq_len + 1 tokens at stride 1. Windows are split
    90/10 at random, so validation windows overlap training windows ("leaky"). No training window
    touches the held-out documents.
    Raises ValueError if the corpus is too small for one batch.
    """

    def __init__(self, tokens: TokenData, config: BatchConfig, seed: int) -> None:
        self.tokens = tokens
        self.config = config
        self.seed = seed
        if len(tokens.heldout) < 2:
            raise ValueError(
                "the held-out documents have a single token, and none after it to score: use a"
                " larger corpus, or another tokenizer"
            )
        self._n_windows = max(0, len(tokens.train) - config.seq_len)
        self._n_validation = int(self._n_windows * VALIDATION_SHARE)
        if min(self._n_validation, self._n_windows - self._n_validation) < config.batch_size:
            raise ValueError(
                f"the corpus has {len(tokens.train):,} training tokens: too few for one batch of"
                f" data.batch_size {config.batch_size} windows of data.seq_len {config.seq_len}"
                " from its training and from its validation windows; use a larger corpus"
            )
        self._epoch = -1
        self._starts = np.empty(0)

    def batch_at(self, step: int) -> np.ndarray:
        """The batch [B, T + 1] of 0-based `step`: the windows at `starts_at(step)`."""
        return self._windows(self.starts_at(step))

    def starts_at(self, step: int) -> np.ndarray:
        """Where the windows of 0-based `step` begin: [B], shuffled windows without replacement.

        When all windows have been drawn, a fresh shuffle follows; a batch may hold the end of one
        and the start of the next.
        """
        first = step * self.config.batch_size
        places = range(first, first + self.config.batch_size)
        return np.array([self._window_at(place) for place in places], dtype=np.int64)

    def _window_at(self, place: int) -> int:
        epoch, index = divmod(place, self._n_windows - self._n_validation)
        if epoch != self._epoch:
            self._shuffle(epoch)
        return self._starts[self._n_validation + index]

    def _shuffle(self, epoch: int) -> None:
        """Put all windows in their order: validation's, then training's as the epoch draws them.

        They are the only array of the corpus's length, in as few bytes as hold a place in it.
        """
        self._epoch = epoch
        self._starts = np.arange(self._n_windows, dtype=np.min_scalar_type(self._n_windows))
        np.random.default_rng([self.seed, SPLIT_STREAM]).shuffle(self._starts)
        training = self._starts[self._n_validation :]
        np.random.default_rng([self.seed, ORDER_STREAM, epoch]).shuffle(training)

    def _windows(self, starts_B: np.ndarray) -> np.ndarray:
        offsets = np.arange(self.config.seq_len + 1)
        return self.tokens.train[starts_B[:, None] + offsets].astype(np.int64)

    def leaky_validation(self, n_batches: int) -> Iterator[np.ndarray]:
        """The reference's validation: its first `n_batches` full batches in a fixed order."""
        if self._epoch < 0:
            self._shuffle(0)
        size = self.config.batch_size
        for first in range(0, min(n_batches * size, self._n_validation - size + 1), size):
            yield self._windows(self._starts[first : first + size].astype(np.int64))

    def heldout(self) -> Iterator[np.ndarray]:
        """The held-out documents as batches [≤ B, ≤ T + 1] that do not overlap.

        Every held-out token but the first is a target exactly once, whatever the batch's shape: all
        configurations are scored on the same tokens.
        """
        tokens, size, seq_len = self.tokens.heldout, self.config.batch_size, self.config.seq_len
        n_full = (len(tokens) - 1) // seq_len
        offsets = np.arange(seq_len + 1)
        for first in range(0, n_full, size):
            starts_B = np.arange(first, min(first + size, n_full)) * seq_len
            yield tokens[starts_B[:, None] + offsets].astype(np.int64)
        rest = tokens[n_full * seq_len :].astype(np.int64)
        if len(rest) > 1:
            yield rest[None]
