import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.schedulers import ASHAScheduler

from quarterhour.search_spaces.point import BudgetConfig
from quarterhour.tune.run_folder import OBJECTIVES, Row
from quarterhour.tune.run_reader import quarters_done, rung_values
from quarterhour.tune.search.pruning import Rungs, in_worse_half

BUDGET = BudgetConfig(steps=8, report_every=1, eval_every=1)
NUMBERS = st.floats(allow_nan=True, allow_infinity=True)
FEW_NUMBERS = st.sampled_from([1.0, 2.0, 2.5, 3.0, math.nan, math.inf])


class RaysAsha:
    """What Ray's ASHAScheduler says on the quarters of the budget."""

    def __init__(self, objective: str) -> None:
        self.scheduler = ASHAScheduler(
            time_attr="quarters",
            metric=objective,
            mode=OBJECTIVES[objective][:3],
            max_t=4,
            grace_period=1,
            reduction_factor=2,
            stop_last_trials=False,
        )
        self.trials: dict[str, SimpleNamespace] = {}

    def stops(self, name: str, row: Row) -> bool:
        trial, result = self._of(name, row)
        return self.scheduler.on_trial_result(None, trial, result) == ASHAScheduler.STOP  # pyright: ignore

    def complete(self, name: str, row: Row) -> None:
        self.scheduler.on_trial_complete(None, *self._of(name, row))  # pyright: ignore

    def _of(self, name: str, row: Row) -> tuple[SimpleNamespace, Row]:
        if name not in self.trials:
            self.trials[name] = SimpleNamespace(trial_id=name)
            self.scheduler.on_trial_add(None, self.trials[name])  # pyright: ignore
        return self.trials[name], row | {"quarters": quarters_done(row["step"], BUDGET.steps)}


@st.composite
def rows_as_they_come_in(draw: st.DrawFn, objective: str) -> list[tuple[str, Row]]:
    """Rows of up to eight trials in any order. Some skip a rung, some lack the objective."""
    values = draw(st.sampled_from([NUMBERS, FEW_NUMBERS]))
    steps: defaultdict[str, int] = defaultdict(int)
    come_in: list[tuple[str, Row]] = []
    for number, further in draw(
        st.lists(
            st.tuples(st.integers(0, 7), st.sampled_from([1, 2, 2, 3, 6])), min_size=12, max_size=40
        )
    ):
        name = f"{number:04d}"
        steps[name] += further
        if steps[name] <= BUDGET.steps:
            measured = {objective: draw(values)} if draw(st.integers(0, 9)) else {}
            come_in.append((name, {"step": steps[name]} | measured))
    return come_in


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of medians of infinite values, or of none
@pytest.mark.parametrize("objective", ["heldout_loss", "tokens_per_second"])
@settings(max_examples=200)
@given(data=st.data())
def test_decisions_are_those_of_rays_asha_as_rows_come_in_and_after_a_restart(
    objective: str, data: st.DataObject
):
    rays, ours = RaysAsha(objective), Rungs(objective)
    rows: defaultdict[str, list[Row]] = defaultdict(list)
    never_stopped = data.draw(st.sets(st.sampled_from([f"{number:04d}" for number in range(8)])))
    stopped: set[str] = set()
    for name, row in data.draw(rows_as_they_come_in(objective)):
        if name in stopped:
            continue
        rows[name].append(row)
        if row["step"] == BUDGET.steps:
            rays.complete(name, row)
        else:
            stops = ours.why_pruned(name, rows[name], BUDGET) is not None
            assert stops == rays.stops(name, row)
            if stops and name not in never_stopped:
                stopped.add(name)
        ours.record(name, rows[name], BUDGET)
    rays, ours = RaysAsha(objective), Rungs(objective)
    for name in sorted(rows):
        *_, last = [rays.stops(name, row) for row in rows[name]]
        if rows[name][-1]["step"] < BUDGET.steps:
            assert (ours.why_pruned(name, rows[name], BUDGET) is not None) == last
        ours.record(name, rows[name], BUDGET)


@pytest.mark.parametrize(
    ("value", "others", "worse"),
    [
        (9.0, [], False),
        (2.0, [2.0], False),
        (2.1, [2.0], True),
        (2.5, [2.0, 3.0], False),
        (2.6, [2.0, 3.0], True),
        (2.6, [2.0, 3.0, math.nan], True),
        (2.6, [math.nan], False),
        (math.nan, [2.0, 3.0], False),
    ],
)
def test_the_worse_half_is_above_the_median_of_the_others_for_a_loss(
    value: float, others: list[float], worse: bool
):
    assert in_worse_half(value, others, "minimize") == worse
    assert in_worse_half(-value, [-other for other in others], "maximize") == worse


def test_a_trial_has_the_value_of_its_first_row_on_each_rung():
    rows = [{"step": step, "heldout_loss": 10 - step} for step in range(1, 9)]
    assert rung_values(rows, BUDGET.steps, "heldout_loss") == {1: 8, 2: 6}
    assert rung_values(rows[4:], BUDGET.steps, "heldout_loss") == {2: 5}
    assert rung_values([{"step": 2}, *rows[7:]], BUDGET.steps, "heldout_loss") == {}


@given(st.integers(4, 10_000))
def test_quarters_end_at_the_rows_that_a_budget_has_there(steps: int):
    ends = BudgetConfig(steps=steps, report_every=1, eval_every=1).quarter_ends()
    assert [quarters_done(end, steps) for end in ends] == [1, 2, 3, 4]
    assert [quarters_done(end - 1, steps) for end in ends] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("steps", "done"), [([2], "a quarter"), ([2, 4], "half"), ([2, 6], "three quarters")]
)
def test_a_reason_says_value_and_part_of_the_budget(steps: list[int], done: str):
    rungs = Rungs("heldout_loss")
    rungs.record("best", [{"step": step, "heldout_loss": 1.0} for step in (2, 4)], BUDGET)
    rows = [{"step": step, "heldout_loss": 4.56789} for step in steps]
    assert rungs.why_pruned("other", rows, BUDGET) == (
        f"heldout_loss 4.568 after {done} of the budget is in the worse half"
    )


def test_a_value_that_a_rung_has_is_not_judged_again():
    rungs = Rungs("heldout_loss")
    rows: list[Row] = [{"step": 2, "heldout_loss": 4.0}]
    rungs.record("first", rows, BUDGET)
    rungs.record("better", [{"step": 2, "heldout_loss": 1.0}], BUDGET)
    assert rungs.why_pruned("first", rows, BUDGET) is None
