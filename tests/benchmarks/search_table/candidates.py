"""Samplers to choose between, by name: functions of a search's seed and a trial's number."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import optuna
from ground import SIX
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from quarterhour.tune.search.sampler import FIRST_AROUND, SEED_STRIDE, AroundKnown, sampler

SamplerOf = Callable[[int, int], BaseSampler]


def of_optuna(kind: type[BaseSampler], seed: int, number: int, **options: Any) -> BaseSampler:
    """One of Optuna's, with a seed of its own for every trial."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return kind(seed=seed * SEED_STRIDE + number, **options)


def tpe(**options: Any) -> SamplerOf:
    given = {
        "multivariate": True, "group": True, "constant_liar": True,
        "n_startup_trials": FIRST_AROUND,
    }  # fmt: skip
    return partial(of_optuna, TPESampler, **given | options)


random = partial(of_optuna, RandomSampler)
gp = partial(of_optuna, GPSampler, n_startup_trials=FIRST_AROUND, warn_independent_sampling=False)
cma_es = partial(
    of_optuna, CmaEsSampler, n_startup_trials=FIRST_AROUND, warn_independent_sampling=False
)


class AroundBest(AroundKnown):
    """Around the best alone."""

    NEXT = 0.0


def around(kind: type[AroundKnown] = AroundKnown, **values: float) -> SamplerOf:
    variant = type("Variant", (kind,), values)
    return lambda seed, number: variant(seed * SEED_STRIDE + number)


def mixture(*parts: tuple[float, SamplerOf], first: int = 10_000) -> SamplerOf:
    """Each part with its share of the `first` trials of the sampler; then TPE."""

    def chosen(seed: int, number: int) -> BaseSampler:
        shares, samplers = zip(*parts, strict=True)
        rng = np.random.default_rng([seed, number, 2])
        part = samplers[rng.choice(len(parts), p=shares)]
        return (part if number < len(SIX) + first else tpe())(seed, number)

    return chosen


class Adaptive(BaseSampler):
    """Chooses between parts by how often each has improved on the best, as PriorBand does."""

    def __init__(self, seed: int, number: int, parts: tuple[SamplerOf, ...]) -> None:
        self._seed, self._number, self._parts = seed, number, parts

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        part = self._parts[self._part(study.get_trials(deepcopy=False))]
        self._of = part(self._seed, self._number)
        self._of.before_trial(study, trial)

    def _part(self, trials: list[FrozenTrial]) -> int:
        """The parts of the trials before are found by choosing them again."""
        wins, tries = np.ones(len(self._parts)), np.full(len(self._parts), 2.0)
        best, part = np.inf, 0
        for number in range(self._number + 1):
            rng, shares = np.random.default_rng([self._seed, number, 2]), wins / tries
            part = rng.choice(len(self._parts), p=shares / shares.sum())
            if number == self._number:
                break
            value = trials[number].value if trials[number].state is TrialState.COMPLETE else np.inf
            if number >= len(SIX):
                tries[part] += 1
                wins[part] += value is not None and value < best
            best = min(best, value or np.inf)
        return part

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        return self._of.infer_relative_search_space(study, trial)

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        return self._of.sample_relative(study, trial, search_space)

    def sample_independent(self, study: Any, trial: Any, name: str, kind: Any) -> Any:
        return self._of.sample_independent(study, trial, name, kind)


def adaptive(*parts: SamplerOf) -> SamplerOf:
    return lambda seed, number: Adaptive(seed, number, parts)


BEST, KNOWN = around(AroundBest), around()

CANDIDATES: dict[str, SamplerOf] = {
    "the default": sampler,
    "TPE, multivariate and grouped": tpe(),
    "TPE, multivariate": tpe(group=False),
    "TPE, independent": tpe(group=False, multivariate=False),
    "TPE, 10 start-up trials": tpe(n_startup_trials=10),
    "TPE, 16 start-up trials": tpe(n_startup_trials=16),
    "GP": gp,
    "CMA-ES": cma_es,
    "random": random,
    "around the best": BEST,
    "around the known": KNOWN,
    "half around the best, half TPE": mixture((0.5, BEST), (0.5, tpe())),
    "half around the known, half TPE": mixture((0.5, KNOWN), (0.5, tpe())),
    "half around the best, half GP": mixture((0.5, BEST), (0.5, gp)),
    "first 12 of best, known, whole space; then TPE": mixture(
        (0.5, BEST), (0.25, KNOWN), (0.25, random), first=12
    ),
    "best, known, TPE, whole space by success": adaptive(BEST, KNOWN, tpe(), random),
}
