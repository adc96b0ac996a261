"""A promotion: candidates trained whole at rising budgets, and the rule by which they go on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from quarterhour.data.batches import Batches
from quarterhour.search_spaces.budget import SearchBudget
from quarterhour.search_spaces.point import TrialConfig
from quarterhour.tune.experiment import Experiment, within_budget


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Who goes on from each stage, fixed before the first trial.

    At `budgets[n]` a candidate is trained with `seeds[n]` seeds. From there the best `keep[n]` by
    mean held-out loss go on, and whoever is no worse than the last of them by more than `margin`
    nats, or without a margin, by more than seed noise. Raises ValueError for what is no such rule.
    """

    budgets: tuple[str, ...]
    keep: tuple[int, ...]
    seeds: tuple[int, ...]
    margin: float | None = None

    def __post_init__(self) -> None:
        parsed = [SearchBudget.parse(budget, "--budgets") for budget in self.budgets]
        amounts = [budget.amount for budget in parsed]
        if len(parsed) < 2 or len({budget.unit for budget in parsed}) > 1:
            raise ValueError(
                f"--budgets is {','.join(self.budgets)}: give two or more of one kind, such as"
                " tokens:1M,tokens:4M"
            )
        if amounts != sorted({*amounts}):
            raise ValueError(f"--budgets is {','.join(self.budgets)}: each must be above the last")
        if len(self.keep) != len(parsed) - 1:
            raise ValueError(
                f"--keep has {len(self.keep)} numbers: give {len(parsed) - 1}, how many go on from"
                " each budget but the last"
            )
        if min(self.keep) < 1 or list(self.keep) != sorted(self.keep, reverse=True):
            raise ValueError(f"--keep is {self.keep}: it must fall, and be at least 1")
        if len(self.seeds) != len(parsed) or min(self.seeds) < 1:
            raise ValueError(
                f"--seeds is {self.seeds}: give {len(parsed)} numbers of at least 1, one a budget"
            )
        if self.margin is not None and self.margin < 0:
            raise ValueError(f"--margin is {self.margin}: it must be at least 0")

    def described(self) -> dict[str, Any]:
        """The rule as experiment.json has it."""
        lists = {"budgets": [*self.budgets], "keep": [*self.keep], "seeds": [*self.seeds]}
        return {**lists, "margin": self.margin}


def check_candidates(candidates: Experiment, rule: Rule) -> None:
    """Raises ValueError where fewer than two differ, or one cannot be trained at some budget."""
    last = _at(candidates, rule.budgets[-1], [*candidates.configurations])
    for config in [*_at(candidates, rule.budgets[0], [*candidates.configurations]).values()]:
        Batches(candidates.tokens, config.data, config.seed)
    names: dict[str, str] = {}
    for name, config in last.items():
        if same := names.get(key := config.key("")):
            raise ValueError(f"{same} and {name} are the same point: leave one of them out")
        names[key] = name
    if len(names) < 2:
        raise ValueError(f"{', '.join(names.values())} is alone: give two or more candidates")


def stage_of(candidates: Experiment, rule: Rule, stage: int, names: Sequence[str]) -> Experiment:
    """These candidates at a stage's budget, with its seeds, in the promotion's run folder."""
    budget, seeds = rule.budgets[stage], tuple(range(rule.seeds[stage]))
    configurations = _at(candidates, budget, names)
    return replace(
        candidates,
        configurations=configurations,
        seeds=seeds,
        seeds_of={name: list(seeds) for name in configurations},
        promotion=rule.described(),
    )


def _at(candidates: Experiment, budget: str, names: Sequence[str]) -> Mapping[str, TrialConfig]:
    """The candidates with a budget, each by the name that it has at that stage."""
    return {
        f"{name}-{budget.replace(':', '-')}": within_budget(budget, candidates.configurations[name])
        for name in names
    }
