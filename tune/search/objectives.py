"""What a search can look for: reported measures, and which way each is better."""

import math
from collections.abc import Sequence
from typing import Literal

from quarterhour.tune.ledger import Row

# What is better, for every reported measure of which that can be said.
DIRECTIONS: dict[str, Literal["minimize", "maximize"]] = {
    "heldout_loss": "minimize",
    "heldout_bits_per_byte": "minimize",
    "eval_loss": "minimize",
    "eval_perplexity": "minimize",
    "eval_accuracy": "maximize",
    "eval_top5_accuracy": "maximize",
    "train_loss": "minimize",
    "train_loss_last": "minimize",
    "train_loss_min": "minimize",
    "train_batch_loss": "minimize",
    "train_batch_perplexity": "minimize",
    "train_batch_accuracy": "maximize",
    "train_batch_top5_accuracy": "maximize",
    "tokens_per_second": "maximize",
    "step_seconds": "minimize",
    "seconds": "minimize",
    "flops": "minimize",
    "tokens": "minimize",
    "peak_memory_bytes": "minimize",
}


def parse_objectives(text: str) -> tuple[str, ...]:
    """`heldout_loss,tokens_per_second` as names of measures; raises ValueError for others."""
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in DIRECTIONS:
            raise ValueError(f"unknown objective '{name}': use one of {', '.join(DIRECTIONS)}")
    if len(set(names)) < len(names):
        raise ValueError(f"--objective is '{text}': it names a measure twice")
    return names


def objective_values(row: Row, objectives: Sequence[str]) -> list[float] | None:
    """The row's values of the objectives; None unless it has them all, and finite."""
    values = [row.get(name) for name in objectives]
    if any(value is None or not math.isfinite(value) for value in values):
        return None
    return [float(value) for value in values if value is not None]
