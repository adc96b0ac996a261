"""An equal budget for every trial of a search, whatever its shape."""

import math
import re
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Self

from quarterhour.search_spaces.point import QUARTERS, TrialConfig

UNITS = ("steps", "tokens", "flops", "seconds")
EXPONENTS = {"": 0, "k": 3, "M": 6, "B": 9, "G": 9, "T": 12}


class BudgetTooSmallError(ValueError):
    """The budget is too small for a few steps of the configuration."""


@dataclass(frozen=True, kw_only=True)
class SearchBudget:
    """What each trial may spend: steps, tokens, training FLOPs, or seconds of training."""

    unit: str
    amount: float

    def __str__(self) -> str:
        short = f"{self.amount:.15g}"
        return f"{self.unit}:{short if float(short) == self.amount else repr(self.amount)}"

    @classmethod
    def parse(cls, text: str, option: str = "--budget") -> Self:
        """Read `tokens:8.2M`, `steps:2000`, `flops:1e16` or `seconds:900`; else ValueError.

        It names the `option` that was given.
        """
        unit, _, amount = text.partition(":")
        number = re.fullmatch(r"([0-9]+\.?[0-9]*(?:e[+-]?[0-9]+)?)([kMBGT]?)", amount)
        value = float(Decimal(number[1]).scaleb(EXPONENTS[number[2]])) if number else 0.0
        if unit not in UNITS or not 0 < value < math.inf:
            raise ValueError(
                f"{option} is '{text}': it must be one of {', '.join(UNITS)}, a colon and a number"
                " above 0, e.g. steps:2000, tokens:8.2M, flops:1e16 or seconds:900"
            )
        return cls(unit=unit, amount=value)

    @classmethod
    def same_tokens_as(cls, config: TrialConfig) -> Self:
        """The tokens that `config` trains on. Raises ValueError where its steps are not known."""
        if not config.budget.trained_steps:
            raise ValueError("its budget is in seconds, so its tokens are not known: pass --budget")
        data = config.data
        tokens = config.budget.trained_steps * data.batch_size * data.seq_len
        return cls(unit="tokens", amount=float(tokens))

    def applied_to(self, config: TrialConfig) -> TrialConfig:
        """`config` with as many steps as fit into this budget.

        Raises BudgetTooSmallError if fewer than four steps fit; it says how much four take.
        """
        if self.unit == "seconds":
            budget = replace(config.budget, steps=0, seconds=self.amount)
            return replace(config, budget=budget)
        steps = int(self.amount / self.cost_of_a_step(config) * (1 + 1e-12))
        if steps < QUARTERS:
            least = replace(self, amount=float(QUARTERS * self.cost_of_a_step(config)))
            raise BudgetTooSmallError(
                f"budget {self} is {steps} step{'s' * (steps != 1)} of data.batch_size"
                f" {config.data.batch_size} and data.seq_len {config.data.seq_len}:"
                f" it must be at least {QUARTERS}, {least}"
            )
        return replace(config, budget=config.budget.with_steps(steps))

    def cost_of_a_step(self, config: TrialConfig) -> int:
        """What a step of `config` takes; 1 for a budget in seconds, whose trials measure theirs."""
        tokens = config.data.batch_size * config.data.seq_len
        flops = tokens * config.model.flops_per_token(config.data.seq_len)
        return {"steps": 1, "tokens": tokens, "flops": flops, "seconds": 1}[self.unit]
