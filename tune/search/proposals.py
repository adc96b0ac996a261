"""What a search begins next: given points first, then what its sampler proposes."""

from collections.abc import Iterator, Sequence
from itertools import chain

import optuna

from quarterhour.search_spaces.budget import BudgetTooSmallError
from quarterhour.search_spaces.point import TrialConfig
from quarterhour.tune.ledger import TrialSpec
from quarterhour.tune.run_folder import SAMPLER, Status
from quarterhour.tune.search.first_points import FirstPoint
from quarterhour.tune.search.queue import refuse, waiting_points
from quarterhour.tune.search.settings import Search
from quarterhour.tune.search.study import LedgerStudy

ENQUEUED = "enqueued"


class Proposals:
    """Makes the trials that follow those of `begun`. A given point of the same key is left out."""

    def __init__(
        self,
        search: Search,
        study: LedgerStudy,
        first_points: Sequence[FirstPoint],
        begun: Sequence[TrialSpec],
    ) -> None:
        self._search = search
        self._study = study
        self._number = max(search.numbers(), default=-1) + 1
        self._begun = {spec.key for spec in begun}
        points = {self._key(config): (origin, config) for origin, config in first_points}
        self._first_points = {key: points[key] for key in points if key not in self._begun}

    def next(self) -> tuple[TrialSpec, optuna.Trial]:
        """The next trial, with its folder. Raises ValueError where its point cannot be built."""
        given = self._given()
        spec, trial = self._at(*given) if given else self._of_sampler()
        spec.write_config()
        self._number += 1
        self._forget(spec.key)
        return spec, trial

    def _given(self) -> FirstPoint | None:
        """Origin and configuration of the given point whose turn it is."""
        return next(chain(self._first_points.values(), self._enqueued()), None)

    def _enqueued(self) -> Iterator[FirstPoint]:
        """The points that wait and can be trained; the others are refused."""
        for file, config in waiting_points(self._search.folder):
            if self._key(config) in self._begun:
                continue
            if reason := self._search.why_unfit(config):
                refuse(file, reason)
            else:
                yield ENQUEUED, config

    def _at(self, origin: str, config: TrialConfig) -> tuple[TrialSpec, optuna.Trial]:
        trial = self._study.ask_at(self._number, config)
        return self._search.trial(self._number, config, origin), trial

    def _of_sampler(self) -> tuple[TrialSpec, optuna.Trial]:
        """A trial that has its result already if the budget is too small for its point."""
        trial, point = self._study.propose(self._number)
        try:
            config = self._search.config_of(point)
            return self._search.trial(self._number, config, SAMPLER), trial
        except BudgetTooSmallError as error:
            config = self._search.baseline.with_values(point)
            spec = self._search.trial(self._number, config, SAMPLER)
            # Before its configuration: without its result it would be a trial to train.
            spec.folder.mkdir(parents=True, exist_ok=True)
            spec.write_result(Status.INFEASIBLE, {}, reason=str(error))
            return spec, trial

    def _forget(self, key: str) -> None:
        """Let no point wait whose trial has begun."""
        self._begun.add(key)
        self._first_points.pop(key, None)
        for file, config in waiting_points(self._search.folder):
            if self._key(config) in self._begun:
                file.unlink()

    def _key(self, config: TrialConfig) -> str:
        return config.key(self._search.data_fingerprint)
