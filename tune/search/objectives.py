"""What a search can look for: reported measures, and which way each is better."""

import math
from collections.abc import Sequence

from quarterhour.tune.run_folder import OBJECTIVES, Row


def parse_objectives(text: str) -> tuple[str, ...]:
    """`heldout_loss,tokens_per_second` as names of measures; raises ValueError for others."""
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in OBJECTIVES:
            raise ValueError(f"unknown objective '{name}': use one of {', '.join(OBJECTIVES)}")
    if len(set(names)) < len(names):
        raise ValueError(f"--objective is '{text}': it names a measure twice")
    return names


def objective_values(row: Row, objectives: Sequence[str]) -> list[float] | None:
    """The row's values of the objectives; None unless it has them all, and finite."""
    values = [row.get(name) for name in objectives]
    if any(value is None or not math.isfinite(value) for value in values):
        return None
    return [float(value) for value in values if value is not None]


def objectives_text(row: Row, objectives: Sequence[str]) -> str:
    """The row's values of the objectives, for people; empty unless it has them all, and finite."""
    values = objective_values(row, objectives) or []
    return "  ".join(f"{name} {v:.4g}" for name, v in zip(objectives, values, strict=False))
