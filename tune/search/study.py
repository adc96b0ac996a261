"""The Optuna study of a search: a picture of its trial folders, made anew at every start."""

import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, JournalStorage
from optuna.trial import TrialState

from quarterhour.search_spaces.open_ended import SpacePoint, locate
from quarterhour.search_spaces.point import TrialConfig
from quarterhour.tune.foreign import MEND, DamagedError
from quarterhour.tune.ledger import Result, TrialSpec
from quarterhour.tune.run_folder import OBJECTIVES, RESULT, STUDY, Status
from quarterhour.tune.run_reader import began_and_ended, read_rows
from quarterhour.tune.search.journal import Journal
from quarterhour.tune.search.objectives import objective_values
from quarterhour.tune.search.sampler import sampler
from quarterhour.tune.search.settings import Search

STATES = {
    Status.COMPLETE: TrialState.COMPLETE,
    Status.PRUNED: TrialState.PRUNED,
    Status.FAILED: TrialState.FAIL,
    # With a violated constraint, from which the sampler learns; from a failed trial it would not.
    Status.INFEASIBLE: TrialState.PRUNED,
}
STUDY_NAME = "search"


@contextmanager
def _experimental() -> Generator[None]:
    """No warning that what is used is experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


class LedgerStudy:
    """Optuna's picture of a search's trial folders: rebuilt from them, then told how each ends.

    Trials from before are taken up first and written to the journal together.
    """

    def __init__(self, search: Search) -> None:
        self._search = search
        self._journal = Journal(search.folder / STUDY)
        self.storage: BaseStorage = JournalStorage(self._journal)
        self._study = optuna.create_study(
            storage=self.storage,
            study_name=STUDY_NAME,
            directions=[OBJECTIVES[name] for name in search.objectives],
        )
        with _experimental():
            self._study.set_metric_names([*search.objectives])

    def write(self) -> None:
        """Write what was taken up; from then on everything is written as it happens."""
        self._journal.publish()

    def take_up(self, spec: TrialSpec) -> optuna.Trial | None:
        """Take in a trial from before. One that has not ended runs again: its Optuna trial.

        Raises ValueError if the space, which is a user's code, lacks it by now, and DamagedError.
        """
        try:
            point = locate(self._search.space, self._search.baseline, spec.config)
        except ValueError as error:
            raise ValueError(
                f"{spec.folder} is {error}; make the space what it was, with all that it reads, or"
                " pass --name for another search"
            ) from error
        result = spec.result()
        if not result:
            return self._ask_at(int(spec.name), point)
        self._skip_to(int(spec.name))
        state, intermediate = STATES[result.status], self._intermediate_values(spec)
        last = [*intermediate.values()][-1:] if state is TrialState.PRUNED else None  # as told live
        ended = optuna.create_trial(
            state=state,
            params=point.params,
            distributions=point.distributions,
            values=self._values(result, spec) or last or None,
            intermediate_values=intermediate,
            constraints=_constraints(result),
            user_attrs=_attributes(spec, result),
        )
        ended.datetime_start, ended.datetime_complete = began_and_ended(spec.folder)
        self._study.add_trial(ended)
        return None

    def ask_at(self, number: int, config: TrialConfig) -> optuna.Trial:
        """A running trial at a given configuration. Raises ValueError if the space lacks it."""
        return self._ask_at(number, locate(self._search.space, self._search.baseline, config))

    def propose(self, number: int) -> tuple[optuna.Trial, Mapping[str, Any]]:
        """A new trial at the sampler's proposal, and its point of the space."""
        self._skip_to(number)
        trial = self._ask(number, {})
        return trial, self._search.space(trial)

    def _skip_to(self, number: int) -> None:
        """Let the next trial have its folder's number: one that is not there has failed."""
        for _ in range(len(self._study.get_trials(deepcopy=False)), number):
            self._study.add_trial(optuna.create_trial(state=TrialState.FAIL))

    def _ask_at(self, number: int, point: SpacePoint) -> optuna.Trial:
        self._skip_to(number)
        self._study.enqueue_trial(point.params)
        return self._ask(number, point.distributions)

    def _ask(self, number: int, distributions: dict[str, BaseDistribution]) -> optuna.Trial:
        self._study.sampler = sampler(self._search.seed, number)
        return self._study.ask(distributions)

    def tell(self, trial: optuna.Trial, result: Result, spec: TrialSpec) -> None:
        """End a trial as its folder says; raises DamagedError, and leaves it open."""
        values = self._values(result, spec)
        for tokens, value in self._intermediate_values(spec).items():
            trial.report(value, tokens)
        for name, value in _constraints(result).items():
            trial.set_constraint(name, value)
        for name, value in _attributes(spec, result).items():
            trial.set_user_attr(name, value)
        self._study.tell(trial, values, STATES[result.status])

    def give_up(self, trial: optuna.Trial) -> None:
        """End a trial of which nothing is known: its folder is damaged."""
        self._study.tell(trial, state=TrialState.FAIL)

    def best(self) -> list[int]:
        """Numbers of the best trials in Optuna: one, or the Pareto front of several objectives."""
        return [trial.number for trial in self._study.best_trials]

    def _values(self, result: Result, spec: TrialSpec) -> list[float] | None:
        if result.status is not Status.COMPLETE:
            return None
        values = objective_values(result.metrics, self._search.objectives)
        if not values:
            fault = f" has no finite {' and '.join(self._search.objectives)}"
            raise DamagedError(spec.folder / RESULT, fault, MEND)
        return values

    def _intermediate_values(self, spec: TrialSpec) -> dict[int, float]:
        """A single objective's values by tokens; Optuna has none for several objectives."""
        objectives = self._search.objectives
        if len(objectives) != 1:
            return {}
        rows = read_rows(spec.folder, having=objectives[0])
        values = {row["tokens"]: objective_values(row, objectives) for row in rows}
        return {tokens: value[0] for tokens, value in values.items() if value}


def _constraints(result: Result) -> dict[str, float]:
    """Above 0 where it is violated: by a point that does not fit in memory or budget."""
    return {"memory": 1.0} if result.status is Status.INFEASIBLE else {}


def _attributes(spec: TrialSpec, result: Result) -> dict[str, Any]:
    """What people are told of a trial beside its values."""
    told = {
        "origin": spec.origin,
        "seed": spec.config.seed,
        "status": result.status,
        "reason": result.reason,
        "adopted from": result.adopted_from,
    }
    return {name: value for name, value in told.items() if value is not None}
