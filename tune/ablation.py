"""An ablation: variants of one point, as a design gives them, in a run folder of their own."""

from dataclasses import asdict, replace
from typing import Any

from quarterhour.data.batches import Batches
from quarterhour.search_spaces.budget import SearchBudget
from quarterhour.search_spaces.designs import Design, with_levels
from quarterhour.search_spaces.point import TrialConfig
from quarterhour.tune.experiment import Experiment, within_budget


def build_ablation(around: Experiment, design: Design, budget: str | None) -> Experiment:
    """The experiment with the design's cells in place of its one point, each with equal budget.

    Without a budget each cell sees the tokens of that point. Raises ValueError for what is no
    budget, and for a cell that cannot be built, which it names.
    """
    (point,) = around.configurations.values()
    budget = budget or f"tokens:{_tokens(point)}"
    SearchBudget.parse(budget)
    cells: dict[str, TrialConfig] = {}
    for name, levels in design.cells.items():
        told = ", ".join(f"{path} {level}" for path, level in levels.items())
        try:
            cells[name] = within_budget(budget, with_levels(point, levels))
            Batches(around.tokens, cells[name].data, point.seed)
        except ValueError as error:
            raise ValueError(f"{told or name} cannot be built: {error}") from error
    return replace(around, configurations=cells, ablation=described(design, budget))


def _tokens(config: TrialConfig) -> int:
    return (config.budget.steps or 0) * config.data.batch_size * config.data.seq_len


def described(design: Design, budget: str) -> dict[str, Any]:
    """What experiment.json tells of the design, its aliases included."""
    effects = {name: asdict(effect) for name, effect in design.effects().items()}
    factors = {path: list(levels) for path, levels in design.factors.items()}
    cells = {name: dict(cell) for name, cell in design.cells.items()}
    told = {"design": design.kind, "budget": budget}
    return told | {"factors": factors, "cells": cells, "effects": effects}
