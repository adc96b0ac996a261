"""What Optuna proposes: a point of its own model, or one around the best that is known."""

import math
import warnings
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial

# TPE models from the first trials after the six reference points.
STARTUP_TRIALS = 6
AROUND_BEST_SHARE = 0.5
SEED_STRIDE = 1_000_003


def sampler(seed: int, number: int) -> BaseSampler:
    """The sampler of trial `number`: what it draws depends on the number and the trials before.

    So a resumed search proposes what an undisturbed one would, and no point is drawn twice.
    """
    own_seed = seed * SEED_STRIDE + number
    is_around = np.random.default_rng(own_seed).random() < AROUND_BEST_SHARE
    return AroundBest(own_seed) if is_around else tpe(own_seed)


def tpe(seed: int) -> TPESampler:
    """Optuna's model of all trials."""
    with warnings.catch_warnings():  # `multivariate` and `group` are experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(
            seed=seed,
            multivariate=True,
            group=True,
            constant_liar=True,
            n_startup_trials=STARTUP_TRIALS,
        )


class AroundBest(BaseSampler):
    """Changes some values of the best trial, at least one; of several objectives', of one of them.

    What the best trial has no value for is drawn from its whole range, as all is before there is
    a best trial.
    """

    CHANGED = 0.5  # chance of a number to change
    CHOSEN_ANEW = 0.2  # chance of a choice to change
    STEP = 0.15  # standard deviation of a number's change, as a share of its range

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng([seed, 1])
        self._whole_space = RandomSampler(seed=seed)
        self._values: dict[str, Any] = {}
        self._changed = set[str]()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Choose the trial to begin at, and which of its values change."""
        if best := study.best_trials:
            self._begin_at(best[self._rng.integers(len(best))])

    def _begin_at(self, center: FrozenTrial) -> None:
        self._values = center.params
        self._changed = {n for n, kind in center.distributions.items() if self._is_changed(kind)}
        self._changed = self._changed or {str(self._rng.choice([*center.params]))}

    def _is_changed(self, distribution: BaseDistribution) -> bool:
        chooses = isinstance(distribution, CategoricalDistribution)
        return self._rng.random() < (self.CHOSEN_ANEW if chooses else self.CHANGED)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """None: each value is drawn by itself."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """None."""
        return {}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """The value of one parameter."""
        value = self._values.get(param_name)
        if param_name not in self._values or not is_within(value, param_distribution):
            return self._whole_space.sample_independent(
                study, trial, param_name, param_distribution
            )
        if param_name not in self._changed:
            return value
        return changed(value, param_distribution, self._rng, self.STEP)


def is_within(value: Any, distribution: BaseDistribution) -> bool:
    """Whether a distribution has a value: a space may give a parameter other ranges."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    if isinstance(distribution, IntDistribution):
        return value in range(distribution.low, distribution.high + 1, distribution.step)
    assert isinstance(distribution, FloatDistribution)
    return distribution.low <= value <= distribution.high


def changed(
    value: Any, distribution: BaseDistribution, rng: np.random.Generator, step: float
) -> Any:
    """Another value of a distribution: any other choice, or a number a `step` of its range away.

    What would lie beyond an end of the range is as far on this side of it.
    """
    if isinstance(distribution, CategoricalDistribution):
        others = [choice for choice in distribution.choices if choice != value]
        return others[rng.integers(len(others))]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = distribution.low, distribution.high
    to, back = (math.log, math.exp) if distribution.log else (float, float)
    share = (to(value) - to(low)) / (to(high) - to(low)) + rng.normal(0, step)
    inside = abs((share + 1) % 2 - 1)
    number = back(to(low) + inside * (to(high) - to(low)))
    if grid := distribution.step:
        steps = round((number - value) / grid) or (1 if number > value else -1)
        if not low <= value + steps * grid <= high:
            steps = -steps
        number = value + steps * grid
    number = min(max(number, low), high)
    return int(number) if isinstance(distribution, IntDistribution) else float(number)
