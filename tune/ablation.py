"""An ablation: variants of one point, as a design gives them, in a run folder of their own."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from quarterhour.data.batches import Batches
from quarterhour.search_spaces.budget import SearchBudget
from quarterhour.search_spaces.designs import Cell, Design, with_levels
from quarterhour.search_spaces.point import TrialConfig
from quarterhour.tune.experiment import Experiment, within_budget

RATES = (0.5, 1.0, 2.0)
"""Factors on a cell's learning rate, with which it looks for its own best one."""
RATE_PATHS = ("optim.learning_rate", "optim.muon_learning_rate")


def build_ablation(
    around: Experiment, design: Design, budgets: Sequence[str], *, tune_rate: bool
) -> Experiment:
    """The experiment with the design's cells in place of its one point, each with equal budget.

    Without a budget each cell sees the tokens of that point. With several, and with `tune_rate`,
    a cell is trained in several variants. Raises ValueError for what is no budget, a cell that
    cannot be built, which it names, and a rate that would be both varied and tuned.
    """
    (point,) = around.configurations.values()
    if tune_rate and (varied := [path for path in RATE_PATHS if path in design.factors]):
        raise ValueError(f"--tune-lr gives each cell its own {varied[0]}: leave --vary of it out")
    if twice := [budget for budget in budgets if budgets.count(budget) > 1]:
        raise ValueError(f"--budget has {twice[0]} twice: leave one out")
    budgets = budgets or [str(SearchBudget.same_tokens_as(point))]
    variants = dict(_variants(design, budgets, RATES if tune_rate else (1.0,)))
    configurations = {
        name: _variant(around, point, design.cells[told["cell"]], told)
        for name, told in variants.items()
    }
    described = describe_ablation(design, budgets, variants)
    return replace(around, configurations=configurations, ablation=described)


def _variants(
    design: Design, budgets: Sequence[str], rates: Sequence[float]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name of each configuration, and its cell, budget, and factor on the learning rate."""
    for budget in budgets:
        for cell in design.cells:
            for rate in rates:
                parts = [cell, *[budget.replace(":", "-")] * (len(budgets) > 1)]
                parts += [f"lr{rate:g}"] * (len(rates) > 1)
                yield "-".join(parts), {"cell": cell, "budget": budget, "rate": rate}


def _variant(
    around: Experiment, point: TrialConfig, levels: Cell, told: Mapping[str, Any]
) -> TrialConfig:
    spoken = ", ".join(f"{path} {level}" for path, level in levels.items())
    try:
        config = with_levels(point, levels)
        paths = RATE_PATHS[: 1 + (config.optim.optimizer == "muon")]
        rates = {path: config.values()[path] * told["rate"] for path in paths}
        config = within_budget(told["budget"], config.with_values(rates))
        Batches(around.tokens, config.data, point.seed)
    except ValueError as error:
        raise ValueError(f"{spoken or told['cell']} cannot be built: {error}") from error
    return config


def describe_ablation(
    design: Design, budgets: Sequence[str], variants: Mapping[str, Any]
) -> dict[str, Any]:
    """What experiment.json tells of the design, its aliases included."""
    return {
        "design": design.kind,
        "budget": ",".join(budgets),
        "factors": {path: list(levels) for path, levels in design.factors.items()},
        "cells": {name: dict(cell) for name, cell in design.cells.items()},
        "generators": design.generators,
        "effects": {name: asdict(effect) for name, effect in design.effects().items()},
        "variants": dict(variants),
    }
