import dataclasses
from pathlib import Path

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_spec, tiny_tokens, train

from quarterhour.data.tokens import TokenData
from quarterhour.search_spaces.budget import BudgetTooSmallError, SearchBudget
from quarterhour.search_spaces.open_ended import open_ended
from quarterhour.search_spaces.profiles import PROFILES, QUICK
from quarterhour.tune.ledger import read_spec
from quarterhour.tune.run_reader import read_rows


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenData:
    return tiny_tokens(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize(
    ("text", "unit", "amount"),
    [
        ("steps:2000", "steps", 2_000), ("tokens:8.2M", "tokens", 8.2e6),
        ("flops:1e16", "flops", 1e16), ("seconds:900", "seconds", 900),
        ("seconds:0.12345678901234567", "seconds", 0.12345678901234567),
        ("flops:1.2345678901234567e+16", "flops", 1.2345678901234567e16),
        ("tokens:300k", "tokens", 3e5), ("tokens:1B", "tokens", 1e9), ("flops:2T", "flops", 2e12),
    ],
)  # fmt: skip
def test_a_budget_is_a_unit_and_an_amount(text: str, unit: str, amount: float):
    budget = SearchBudget.parse(text)
    assert budget == SearchBudget(unit=unit, amount=amount)
    assert SearchBudget.parse(str(budget)) == budget


@pytest.mark.parametrize(
    "text", ["", "steps", "steps:", "steps:0", "steps:-1", "hours:3", "tokens:1.2.3", "flops:1e999"]
)
def test_other_texts_are_refused(text: str):
    with pytest.raises(ValueError, match=f"--budget is '{text}'"):
        SearchBudget.parse(text)


@given(st.integers(0, 2**31), st.sampled_from(["steps", "tokens", "flops"]), st.floats(1, 50))
def test_no_trial_spends_more_and_each_within_a_step_of_the_budget(
    seed: int, unit: str, share: float
):
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()
    config = QUICK.baseline.with_values(open_ended(QUICK)(trial))
    tokens = config.data.batch_size * config.data.seq_len
    flops = tokens * config.model.flops_per_token(config.data.seq_len)
    of_step = {"steps": 1, "tokens": tokens, "flops": flops}[unit]
    amount = 4 * of_step * share
    budgeted = SearchBudget(unit=unit, amount=amount).applied_to(config)
    spent = budgeted.budget.steps * of_step
    assert spent <= amount * (1 + 1e-9)
    assert spent + of_step > amount
    assert dataclasses.replace(budgeted, budget=config.budget) == config
    with pytest.raises(BudgetTooSmallError, match="at least 4") as told:
        SearchBudget(unit=unit, amount=3.9 * of_step).applied_to(config)
    least = SearchBudget.parse(str(told.value).split()[-1])
    assert least.applied_to(config).budget.steps == 4


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_the_baselines_own_tokens_give_its_own_budget(profile: object):
    baseline = profile.baseline  # pyright: ignore
    assert SearchBudget.same_tokens_as(baseline).applied_to(baseline) == baseline


@given(st.integers(4, 5_000))
def test_trials_of_any_length_are_measured_as_often(steps: int):
    budget = SearchBudget(unit="steps", amount=steps).applied_to(QUICK.baseline)
    ends = list(budget.budget.window_ends())
    assert min(steps, 60) <= len(ends) <= 210
    assert set(budget.budget.quarter_ends()) <= set(ends)
    assert ends[-1] == steps


def test_a_budget_in_seconds_is_in_the_key_and_its_measured_steps_are_not():
    minute = SearchBudget.parse("seconds:60").applied_to(QUICK.baseline)
    measured = minute.with_values({"budget.steps": 77, "budget.seconds": 60.0})
    assert minute.key("data") == measured.key("data")
    hour = SearchBudget.parse("seconds:3600").applied_to(QUICK.baseline)
    assert hour.key("data") != minute.key("data")


def test_a_trial_measures_the_steps_of_its_seconds_once(tokens: TokenData, tmp_path: Path):
    spec = tiny_spec(tmp_path, tokens, budget__seconds=0.5)
    train(spec, tokens, rows=3)
    steps = read_spec(spec.folder).config.budget.steps
    assert steps >= 4
    train(spec, tokens)
    assert read_spec(spec.folder).config.budget.steps == steps
    rows = read_rows(spec.folder)
    assert rows[-1]["step"] == steps
    assert rows[-1]["learning_rate"] == pytest.approx(0.1 * spec.config.optim.learning_rate)
    assert spec.result().key == spec.key  # pyright: ignore
