"""The Optuna study of a search: a picture of its trial folders, made anew at every start."""

import warnings
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from quarterhour.search_spaces.open_ended import SpacePoint, locate
from quarterhour.search_spaces.point import TrialConfig
from quarterhour.tune.ledger import Result, TrialSpec
from quarterhour.tune.run_folder import OBJECTIVES, STUDY, Status, read_rows
from quarterhour.tune.search.objectives import objective_values
from quarterhour.tune.search.settings import Search

STATES = {
    Status.COMPLETE: TrialState.COMPLETE,
    Status.PRUNED: TrialState.PRUNED,
    Status.FAILED: TrialState.FAIL,
    # With a violated constraint, from which the sampler learns; from a failed trial it would not.
    Status.INFEASIBLE: TrialState.PRUNED,
}
STUDY_NAME = "search"
# The sampler models from the first trials after the six reference points.
STARTUP_TRIALS = 6
SEED_STRIDE = 1_000_003


def open_storage(folder: Path) -> BaseStorage:
    """The storage of a search's study."""
    return JournalStorage(JournalFileBackend(str(folder / STUDY)))


def sampler(seed: int, number: int) -> BaseSampler:
    """The sampler of trial `number`: what it draws depends on the number and the trials before.

    So a resumed search proposes what an undisturbed one would, and no point is drawn twice.
    """
    own_seed = seed * SEED_STRIDE + number
    with warnings.catch_warnings():  # `multivariate` and `group` are called experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(
            seed=own_seed,
            multivariate=True,
            group=True,
            constant_liar=True,
            n_startup_trials=STARTUP_TRIALS,
        )


class _HeldJournal(JournalFileBackend):
    """Writes its first logs all at once. One by one, those of 1,000 trials would take seconds."""

    def __init__(self, file_path: str) -> None:
        super().__init__(file_path)
        self._held: list[dict[str, Any]] | None = []

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write logs, or hold them back."""
        if self._held is None:
            super().append_logs(logs)
        else:
            self._held += logs

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any]]:
        """All logs from that number on."""
        if self._held is None:
            yield from super().read_logs(log_number_from)
        else:
            yield from self._held[log_number_from:]

    def write(self) -> None:
        """Write what was held back; from now on every log is written at once."""
        held, self._held = self._held, None
        if held:
            self.append_logs(held)


class LedgerStudy:
    """Optuna's picture of a search's trial folders: rebuilt from them, then told how each ends.

    Trials from before are taken up first and written to the journal together.
    """

    def __init__(self, search: Search) -> None:
        self._search = search
        journal = search.folder / STUDY
        for path in (journal, Path(f"{journal}.lock")):
            path.unlink(missing_ok=True)
        self._journal = _HeldJournal(str(journal))
        self._study = optuna.create_study(
            storage=JournalStorage(self._journal),
            study_name=STUDY_NAME,
            directions=[OBJECTIVES[name] for name in search.objectives],
        )

    def write(self) -> None:
        """Write what was taken up; from then on everything is written as it happens."""
        self._journal.write()

    def take_up(self, spec: TrialSpec) -> optuna.Trial | None:
        """Take in a trial from before. One that has not ended runs again: its Optuna trial.

        Raises ValueError if the space, which is a user's code, lacks it by now.
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
        ended = optuna.create_trial(
            state=STATES[result.status],
            params=point.params,
            distributions=point.distributions,
            values=self._values(result),
            intermediate_values=self._intermediate_values(spec),
            constraints=_constraints(result),
        )
        self._study.add_trial(ended)
        return None

    def ask_at(self, number: int, config: TrialConfig) -> optuna.Trial:
        """A running trial at a given configuration. Raises ValueError if the space lacks it."""
        return self._ask_at(number, locate(self._search.space, self._search.baseline, config))

    def propose(self, number: int) -> tuple[optuna.Trial, Mapping[str, Any]]:
        """A running trial where the sampler wants it, and its point of the space."""
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
        """End a trial as its folder says."""
        for tokens, value in self._intermediate_values(spec).items():
            trial.report(value, tokens)
        for name, value in _constraints(result).items():
            trial.set_constraint(name, value)
        self._study.tell(trial, self._values(result), STATES[result.status])

    def best(self) -> list[int]:
        """Numbers of the best trials in Optuna: one, or the Pareto front of several objectives."""
        return [trial.number for trial in self._study.best_trials]

    def _values(self, result: Result) -> list[float] | None:
        complete = result.status is Status.COMPLETE
        return objective_values(result.metrics, self._search.objectives) if complete else None

    def _intermediate_values(self, spec: TrialSpec) -> dict[int, float]:
        """A single objective's values by tokens; Optuna has none for several objectives."""
        objectives = self._search.objectives
        if len(objectives) != 1:
            return {}
        rows = read_rows(spec.folder, having=objectives[0])
        values = {row["tokens"]: objective_values(row, objectives) for row in rows}
        return {tokens: value[0] for tokens, value in values.items() if value}


def _constraints(result: Result) -> dict[str, float]:
    """Above 0 where it is violated: by a point that does not fit in memory."""
    return {"memory": 1.0} if result.status is Status.INFEASIBLE else {}
