"""Which trials stop early: asynchronous successive halving, as a function of ledger rows.

The rule of Li et al. (https://arxiv.org/abs/1810.05934), as Ray's ASHAScheduler has it with a
reduction factor of 2: at a quarter and at a half of its budget a trial is compared with all that
have come to that rung before it. It stops if it is worse than their median.
"""

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress

import numpy as np

from quarterhour.search_spaces.point import BudgetConfig
from quarterhour.tune.ledger import TrialSpec, read_spec
from quarterhour.tune.run_folder import DONE, OBJECTIVES, RUNG_OF, SAMPLER, Better, Row, Status
from quarterhour.tune.run_reader import quarters_done, read_rows, rung_values
from quarterhour.tune.training.events import record_ending


def in_worse_half(value: float, others: Iterable[float], better: Better) -> bool:
    """Whether a value is worse than the median of the others; NaN among them is ignored."""
    sign = 1 if better == "maximize" else -1
    rewards = [sign * other for other in others if not math.isnan(other)]
    return bool(rewards) and sign * value < float(np.percentile(rewards, 50))


class Rungs:
    """The values of a search's trials, by rung and trial, as they have come in."""

    def __init__(self, objective: str) -> None:
        self.objective = objective
        self.values = {rung: dict[str, float]() for rung in RUNG_OF.values()}

    def why_pruned(self, trial: str, rows: Sequence[Row], budget: BudgetConfig) -> str | None:
        """Why a trial stops after its last row, or None.

        Only its first row on a rung is judged, and only once: never if the rung has its value.
        """
        before = rung_values(rows[:-1], budget.steps, self.objective)
        for rung, value in rung_values(rows, budget.steps, self.objective).items():
            others = self.values[rung]
            is_new = rung not in before and trial not in others
            if is_new and in_worse_half(value, others.values(), OBJECTIVES[self.objective]):
                done = DONE[quarters_done(rows[-1]["step"], budget.steps)]
                return (
                    f"{self.objective} {value:.4g} after {done} of the budget is in the worse half"
                )
        return None

    def record(self, trial: str, rows: Iterable[Row], budget: BudgetConfig) -> None:
        """Take in the values of a trial. What a rung has stays."""
        for rung, value in rung_values(rows, budget.steps, self.objective).items():
            self.values[rung].setdefault(trial, value)


class Pruner:
    """Judges the trials of a search by the rows in their folders."""

    def __init__(self, objective: str) -> None:
        self.rungs = Rungs(objective)

    def prune_if_worse(self, spec: TrialSpec) -> None:
        """Take in a trial's new row; in the worse half, a trial of the sampler ends as PRUNED."""
        if spec.origin == SAMPLER and not spec.result():
            rows = read_rows(spec.folder)
            reason = self.rungs.why_pruned(spec.name, rows, _measured_budget(spec))
            if reason:
                spec.write_result(Status.PRUNED, rows[-1], reason=reason)
                record_ending(spec.folder, Status.PRUNED)
        self.record(spec)

    def record(self, spec: TrialSpec) -> None:
        """Take in a trial's rows."""
        rows = read_rows(spec.folder, having=self.rungs.objective)
        self.rungs.record(spec.name, rows, _measured_budget(spec))


def _measured_budget(spec: TrialSpec) -> BudgetConfig:
    """A trial's budget as its folder has it, if there is one: with the steps of one in seconds."""
    with suppress(FileNotFoundError):
        return read_spec(spec.folder).config.budget
    return spec.config.budget
