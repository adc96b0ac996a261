"""The rungs of a search's early stopping: a quarter and a half of a trial's budget."""

from collections.abc import Iterable

from quarterhour.search_spaces.point import BudgetConfig
from quarterhour.tune.run_folder import Row

# The rung of a row, by the quarters that are done at it. At its end a trial is not judged.
RUNG_OF = {1: 1, 2: 2, 3: 2}
DONE = {1: "a quarter", 2: "half", 3: "three quarters"}


def rung_values(rows: Iterable[Row], budget: BudgetConfig, objective: str) -> dict[int, float]:
    """A trial's value on each rung that it has come to: that of its first row there."""
    values: dict[int, float] = {}
    for row in rows:
        rung = RUNG_OF.get(budget.quarters_done(row["step"]))
        if rung and objective in row:
            values.setdefault(rung, row[objective])
    return values
