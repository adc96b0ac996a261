"""Rules of early stopping to choose between, each by name."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from quarterhour.search_spaces.point import BudgetConfig
from quarterhour.tune.ledger import TrialSpec
from quarterhour.tune.run_folder import SAMPLER, Row, Status
from quarterhour.tune.run_reader import read_rows


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Stop a trial at the `rungs`, in eighths, unless it is in the best 1 / `reduction` there.

    With `after_warmup` no trial is judged before its warmup has ended, with `alike` only among
    those that decay as it does by then.
    """

    rungs: tuple[int, ...]
    reduction: float = 2
    after_warmup: bool = False
    alike: bool = False


class RulePruner:
    """Judges trials that run one at a time, as the search's own pruner does."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._values: defaultdict[tuple[int, str], list[float]] = defaultdict(list)

    def prune_if_worse(self, spec: TrialSpec) -> None:
        """Take in a trial's new row, and end it as PRUNED if it is worse than the rule allows."""
        row = read_rows(spec.folder)[-1]
        rung = rung_of(row, spec.config.budget)
        if rung not in self._rule.rungs or self._is_warming_up(spec, rung):
            return
        others = self._values[rung, self._kind(spec)]
        value = row["heldout_loss"]
        if spec.origin == SAMPLER and value > self._worst_kept(others):
            spec.write_result(Status.PRUNED, row, reason=f"worse at rung {rung}")
        others.append(value)

    def record(self, spec: TrialSpec) -> None:
        """Nothing: every row has been taken in."""

    def _worst_kept(self, others: list[float]) -> float:
        return float(np.percentile(others, 100 / self._rule.reduction)) if others else np.inf

    def _is_warming_up(self, spec: TrialSpec, rung: int) -> bool:
        return self._rule.after_warmup and rung / 8 < spec.config.optim.warmup_fraction

    def _kind(self, spec: TrialSpec) -> str:
        """`decays` for schedules whose rate falls all the way, else the schedule."""
        if not self._rule.alike:
            return ""
        schedule = spec.config.optim.schedule
        return "decays" if schedule in ("cosine", "linear") else schedule


def rung_of(row: Row, budget: BudgetConfig) -> int:
    """The eighth of the budget that a row ends."""
    return next(n for n in range(1, 9) if budget.steps * n // 8 >= row["step"])


RULES = {
    "quarter, half; best half": Rule(rungs=(2, 4)),
    "none": Rule(rungs=()),
    "half; best half": Rule(rungs=(4,)),
    "quarter, half, three quarters; best half": Rule(rungs=(2, 4, 6)),
    "eighth, quarter, half; best half": Rule(rungs=(1, 2, 4)),
    "every eighth; best half": Rule(rungs=(1, 2, 3, 4, 5, 6, 7)),
    "quarter, half; best third": Rule(rungs=(2, 4), reduction=3),
    "quarter, half; best quarter": Rule(rungs=(2, 4), reduction=4),
    "quarter, half, three quarters; best third": Rule(rungs=(2, 4, 6), reduction=3),
    "quarter, half; best half; after warmup": Rule(rungs=(2, 4), after_warmup=True),
    "quarter, half; best half; among alike": Rule(rungs=(2, 4), alike=True),
    "quarter, half; best half; after warmup, among alike": Rule(
        rungs=(2, 4), after_warmup=True, alike=True
    ),
}
