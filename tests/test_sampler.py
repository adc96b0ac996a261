"""What a search proposes: within the space, near what it knows, the same after a restart."""

from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import RandomSampler, TPESampler

from quarterhour.tune.search.sampler import (
    FIRST_AROUND,
    FIRST_MODEL,
    AroundKnown,
    another,
    is_within,
    sampler,
)

NUMBERS = st.sampled_from(
    [
        FloatDistribution(0.8, 0.98),
        FloatDistribution(1e-5, 1e-2, log=True),
        FloatDistribution(-1.0, 1.0, step=0.25),
        IntDistribution(2, 32, step=2),
        IntDistribution(1, 6),
        IntDistribution(1, 1024, log=True),
        IntDistribution(0, 1),
    ]
)


@given(NUMBERS, st.floats(0, 1), st.integers(0, 1000), st.floats(0.01, 3))
def test_a_changed_number_is_another_of_its_range(
    kind: FloatDistribution | IntDistribution, place: float, seed: int, step: float
):
    value = kind.low + place * (kind.high - kind.low)
    if kind.step:
        value = kind.low + kind.step * round((value - kind.low) / kind.step)
    new = another(value, kind, np.random.default_rng(seed), step)
    assert kind._contains(new)
    assert isinstance(new, int if isinstance(kind, IntDistribution) else float)
    assert new != value


@given(st.sampled_from(["a", "b", "c"]), st.integers(0, 100))
def test_a_choice_changes_to_another(choice: str, seed: int):
    kind = CategoricalDistribution(["a", "b", "c"])
    new = another(choice, kind, np.random.default_rng(seed), 0.2)
    assert new in kind.choices
    assert new != choice


def test_changes_are_about_as_large_as_asked_for_in_a_log_range_too():
    kind, rng = FloatDistribution(1e-4, 1e-2, log=True), np.random.default_rng(0)
    new = np.log10([another(1e-3, kind, rng, 0.1) for _ in range(2000)])
    assert abs(new.mean() + 3) < 0.02
    assert abs(new.std() - 0.2) < 0.01


def space(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", 0, 1)
    n = trial.suggest_int("n", 1, 8)
    if trial.suggest_categorical("kind", ["plain", "with y"]) == "with y":
        trial.suggest_float("y", 0, 1)
    return (x - 0.3) ** 2 + n


def study_of(
    n_known: int, target: Callable[[optuna.Trial], Any] = space, **directions: Any
) -> optuna.Study:
    study = optuna.create_study(sampler=RandomSampler(seed=0), **directions)
    study.optimize(target, n_trials=n_known)
    return study


def proposed(study: optuna.Study, seed: int) -> dict[str, Any]:
    """What is proposed around the known trials; the study is left as it was but for that trial."""
    study.sampler = AroundKnown(seed)
    trial = study.ask()
    space(trial)
    study.tell(trial, state=optuna.trial.TrialState.FAIL)
    return trial.params


def test_a_proposal_has_most_values_of_a_known_trial_and_never_all():
    study = study_of(8)
    known = [trial.params for trial in study.trials]
    for seed in range(100):
        params = proposed(study, seed)
        assert params not in known
        alike = max(sum(other.get(n) == v for n, v in params.items()) for other in known)
        assert alike >= 1


def test_of_a_single_value_beside_what_cannot_change_another_is_proposed():
    def target(trial: optuna.Trial) -> float:
        return trial.suggest_float("x", 1, 1) + trial.suggest_int("n", 1, 8)

    study = study_of(1, target)
    for seed in range(20):
        study.sampler = AroundKnown(seed)
        trial = study.ask()
        target(trial)
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        assert trial.params["x"] == 1
        assert trial.params["n"] != study.trials[0].params["n"]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_the_better_a_known_trial_the_more_proposals_begin_at_it(direction: str):
    study = study_of(6, direction=direction)
    ranked = sorted(study.trials, key=lambda t: t.value, reverse=direction == "maximize")
    begun = [0] * len(ranked)
    for seed in range(200):
        sampler = AroundKnown(seed)
        sampler.before_trial(study, study.trials[0])
        begun[[trial.params for trial in ranked].index(sampler._values)] += 1
    assert begun[0] > begun[1] > begun[2] > sum(begun[3:]) / 2
    assert 80 < begun[0] < 120


def test_with_several_objectives_it_begins_on_the_pareto_front():
    study = study_of(12, lambda t: (space(t), -t.params["x"]), directions=["minimize"] * 2)
    front = [trial.params for trial in study.best_trials]
    for seed in range(30):
        sampler = AroundKnown(seed)
        sampler.before_trial(study, study.trials[0])
        assert sampler._values in front


def test_without_a_complete_trial_it_draws_from_the_whole_space():
    xs = [proposed(optuna.create_study(), seed)["x"] for seed in range(50)]
    assert min(xs) < 0.1
    assert max(xs) > 0.9


def test_a_value_that_a_parameter_may_not_have_here_is_drawn_anew():
    study = study_of(3)
    narrower: dict[str, BaseDistribution] = {"n": IntDistribution(100, 200)}
    for seed in range(20):
        study.sampler = AroundKnown(seed)
        trial = study.ask()
        assert 100 <= trial.suggest_int("n", 100, 200) <= 200
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    assert not is_within(4, narrower["n"])
    assert is_within(100, narrower["n"])


def test_the_whole_space_first_then_around_the_known_then_the_model_too():
    kinds = [[type(sampler(seed, n)) for n in range(FIRST_MODEL + 40)] for seed in range(3)]
    for of_seed in kinds:
        assert set(of_seed[:FIRST_AROUND]) == {RandomSampler}
        assert set(of_seed[FIRST_AROUND:FIRST_MODEL]) == {AroundKnown}
        assert set(of_seed[FIRST_MODEL:]) == {AroundKnown, TPESampler}
    assert kinds[0] != kinds[1]
