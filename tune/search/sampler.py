"""What a search proposes: at first points around what it knows, then Optuna's model as well."""

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
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

# Without the six, the first points are drawn from the whole space.
FIRST_AROUND = 6
# With fewer trials than this, points around the known ones beat the model's.
FIRST_MODEL = 18
SEED_STRIDE = 1_000_003


def sampler(seed: int, number: int) -> BaseSampler:
    """The sampler of trial `number`: what it draws depends on the number and the trials before.

    So a resumed search proposes what an undisturbed one would, and no point is drawn twice.
    """
    own_seed = seed * SEED_STRIDE + number
    if number < FIRST_AROUND:
        return RandomSampler(seed=own_seed)
    if number < FIRST_MODEL or np.random.default_rng(own_seed).random() < 0.5:
        return AroundKnown(own_seed)
    return tpe(own_seed)


def tpe(seed: int) -> TPESampler:
    """Optuna's model of all trials."""
    with warnings.catch_warnings():  # `multivariate` and `group` are experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(
            seed=seed,
            multivariate=True,
            group=True,
            constant_liar=True,
            n_startup_trials=FIRST_AROUND,
        )


class AroundKnown(BaseSampler):
    """Changes some values of a trial that is complete, at least one.

    The better one is, the likelier it is that one; with several objectives, those of the Pareto
    front are equally likely. What it has no value for is drawn from its whole range, as all is
    while no trial is complete.
    """

    CHANGED = 0.3  # chance of a value to change
    STEP = 0.15  # standard deviation of a number's change, as a share of its range
    NEXT = 0.5  # how likely a trial is, in comparison with the next better one

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng([seed, 1])
        self._whole_space = RandomSampler(seed=seed)
        self._values: dict[str, Any] = {}
        self._changed = set[str]()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Choose the trial to begin at, and which of its values change."""
        known = known_trials(study)
        if not known:
            return
        weights = (1.0 if len(study.directions) > 1 else self.NEXT) ** np.arange(len(known))
        center = known[self._rng.choice(len(known), p=weights / weights.sum())]
        self._values = center.params
        names = [name for name, kind in center.distributions.items() if not kind.single()]
        changed = {name for name in names if self._rng.random() < self.CHANGED}
        if names and not changed:
            changed = {names[self._rng.integers(len(names))]}
        self._changed = changed

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
        return another(value, param_distribution, self._rng, self.STEP)


def known_trials(study: Study) -> list[FrozenTrial]:
    """The complete trials, the best one first; of several objectives, the Pareto front."""
    if len(study.directions) > 1:
        return study.best_trials
    known = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    largest_first = study.direction is StudyDirection.MAXIMIZE
    return sorted(known, key=lambda trial: trial.value or 0.0, reverse=largest_first)


def is_within(value: Any, distribution: BaseDistribution) -> bool:
    """Whether a distribution has a value: a space may give a parameter other ranges."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    if isinstance(distribution, IntDistribution):
        return value in range(distribution.low, distribution.high + 1, distribution.step)
    assert isinstance(distribution, FloatDistribution)
    return distribution.low <= value <= distribution.high


def another(
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
