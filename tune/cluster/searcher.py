"""A search under Ray Tune: what it trains next, what it stops early, and when it ends."""

import shutil
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
from ray import tune as ray_tune
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import Searcher

from quarterhour.search_spaces.budget import BudgetTooSmallError
from quarterhour.search_spaces.point import QUARTERS, TrialConfig
from quarterhour.tune.cluster.fit import fit, is_too_large
from quarterhour.tune.cluster.trainable import from_param_space, to_param_space
from quarterhour.tune.experiment import BYTES_PER_PARAMETER, Experiment
from quarterhour.tune.ledger import Result, TrialSpec, adopt, finished_folders, read_spec
from quarterhour.tune.places import Resources
from quarterhour.tune.progress import SearchProgress
from quarterhour.tune.run_folder import OBJECTIVES, Row, Status, read_rows
from quarterhour.tune.search.objectives import objective_values
from quarterhour.tune.search.queue import waiting_points
from quarterhour.tune.search.settings import FirstPoint, Search, SearchClock
from quarterhour.tune.search.study import LedgerStudy
from quarterhour.tune.training.events import record_ending

SAMPLER = "sampler"
ENQUEUED = "enqueued"
FAILURES_IN_A_ROW = 5
UNTRAINED_IN_A_ROW = 50


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Where a search ends: after so many trials, or hours over all its starts. None is never.

    Raises ValueError for limits that let nothing begin.
    """

    trials: int | None
    hours: float | None

    def __post_init__(self) -> None:
        if self.trials is not None and self.trials < 1:
            raise ValueError(f"--trials is {self.trials}: it must be at least 1")
        if self.hours is not None and not self.hours > 0:
            raise ValueError(f"--hours is {self.hours}: it must be above 0")


class LedgerAsha(ASHAScheduler):
    """ASHA on the quarters of the equal budget, with rungs filled from the trial folders.

    Of the trials that the sampler proposes, those that are not in the better half at a quarter or
    at a half of their budget are stopped, and PRUNED. Others count in the rungs and go on.
    """

    def __init__(self, objective: str) -> None:
        super().__init__(
            time_attr="quarters",
            metric=objective,
            mode=OBJECTIVES[objective][:3],
            max_t=QUARTERS,
            grace_period=1,
            reduction_factor=2,
            stop_last_trials=False,
        )
        self.objective = objective

    def record(self, spec: TrialSpec) -> None:
        """Take the rows that a trial has written into the rungs.

        Killed between a row and its judgement, a trial is judged now.
        """
        trial: Any = SimpleNamespace(trial_id=spec.label)
        super().on_trial_add(None, trial)  # pyright: ignore[reportArgumentType]
        budget = read_spec(spec.folder).config.budget  # with its steps measured
        for row in read_rows(spec.folder, having=self.objective):
            result = row | {"quarters": budget.quarters_done(row["step"])}
            decision = super().on_trial_result(None, trial, result)  # pyright: ignore[reportArgumentType]
            if decision == TrialScheduler.STOP and not spec.result() and spec.origin == SAMPLER:
                last = read_rows(spec.folder)[-1]
                if last["step"] == row["step"] < budget.trained_steps:
                    self._prune(spec, result)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Know a trial by its name, which outlives this start of the search."""
        super().on_trial_add(tune_controller, _named(trial))

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Forget a trial that has not begun."""
        super().on_trial_remove(tune_controller, _named(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Stop a trial that the sampler proposed and that is worse than half of the others."""
        decision = super().on_trial_result(tune_controller, _named(trial), result)
        spec = from_param_space(trial.config["trial"])
        if decision == TrialScheduler.CONTINUE or spec.origin != SAMPLER:
            return TrialScheduler.CONTINUE
        self._prune(spec, result)
        return decision

    def _prune(self, spec: TrialSpec, result: dict[str, Any]) -> None:
        reason = (
            f"{self.objective} {result[self.objective]:.4g} after {result['quarters']} quarters of"
            " the budget is in the worse half"
        )
        spec.write_result(Status.PRUNED, read_rows(spec.folder)[-1], reason=reason)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Take in the last result of a trial."""
        super().on_trial_complete(tune_controller, _named(trial), result)


def _named(trial: Any) -> Any:
    return SimpleNamespace(trial_id=from_param_space(trial.config["trial"]).label)


class StudySearcher(Searcher):
    """Gives Tune the next trial: one that was interrupted, a first point, one enqueued, a new one.

    Every trial has its folder before it is handed out, and Optuna is told what its folder holds.
    """

    def __init__(
        self,
        search: Search,
        resources: Resources,
        first_points: Sequence[FirstPoint],
        limits: Limits,
        scheduler: LedgerAsha | None,
        progress: SearchProgress,
    ) -> None:
        super().__init__()
        self._search = search
        self._resources = resources
        self._limits = limits
        self._scheduler = scheduler
        self._progress = progress
        self._clock = SearchClock(search.folder)
        self._study = LedgerStudy(search)
        self._finished = finished_folders(search.folder.parent)
        self._specs: list[TrialSpec] = []
        self._interrupted: deque[tuple[TrialSpec, optuna.Trial]] = deque()
        self._running: dict[str, tuple[TrialSpec, optuna.Trial]] = {}
        self._best: set[int] = set()
        self._failures = self._untrained = 0
        self.stopped_because: str | None = None
        for spec in search.trials():
            self._take_up(spec)
        self._study.write()
        self._keep_best([n for n, spec in enumerate(self._specs) if spec.result()])
        self._keys = {spec.key for spec in self._specs}
        self._first_points = deque(p for p in first_points if self._key(p[1]) not in self._keys)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles searchers, and this one's state is in the trial folders."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save."""

    @property
    def ended(self) -> bool:
        """Whether the search has come to its limit, with no trial left open."""
        return not self._interrupted and not self._running and not self._may_begin()

    def _key(self, config: TrialConfig) -> str:
        return config.key(self._search.data_fingerprint)

    def _take_up(self, spec: TrialSpec) -> None:
        """Tell Optuna of a trial from before; one that has not ended goes on."""
        self._specs.append(spec)
        ended_before = spec.result() is not None
        if self._scheduler:
            self._scheduler.record(spec)
        result = spec.result()
        if result and not ended_before:
            record_ending(spec.folder, result.status)
        if result and result.crashed:
            spec.clear_result()
        if not spec.result():
            is_too_large(spec, self._resources)  # this machine may have less memory than the last
        if result := spec.result():
            self._remember(spec, result)
        running = self._study.take_up(spec)
        if running:
            self._interrupted.append((spec, running))

    def suggest(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, trial_id: str
    ) -> dict[str, Any] | str | None:
        """The next trial as Tune's configuration; None while all places are taken."""
        if len(self._running) >= self._resources.concurrency:
            return None
        begun = self._interrupted.popleft() if self._interrupted else self._begin()
        self._clock.save()
        if not begun:
            return Searcher.FINISHED
        self._running[trial_id] = begun
        return {"trial": to_param_space(begun[0])}

    def _begin(self) -> tuple[TrialSpec, optuna.Trial] | None:
        """A new trial that has to be trained; None where the search ends."""
        while self._may_begin():
            try:
                spec, trial = self._propose()
            except ValueError as error:
                self.stopped_because = f"the space gave a point that cannot be built: {error}"
                return None
            if not self._ends_untrained(spec):
                self._untrained = 0
                return spec, trial
            self._untrained += spec.origin == SAMPLER
            if self._scheduler:
                self._scheduler.record(spec)
            self._tell(spec, trial)
        return None

    def _may_begin(self) -> bool:
        hours, trials = self._limits.hours, self._limits.trials
        if trials is not None and len(self._specs) >= trials:
            return False
        if hours is not None and self._clock.seconds >= hours * 3600:
            return False
        needed = 2 * self._search.baseline.model.parameters * BYTES_PER_PARAMETER
        if shutil.disk_usage(self._search.folder).free < needed:
            self.stopped_because = f"its disk has less than {needed / 1e6:,.0f} MB free"
        if self._failures >= FAILURES_IN_A_ROW:
            self.stopped_because = f"the last {self._failures} trials failed"
        if self._untrained >= UNTRAINED_IN_A_ROW:
            self.stopped_because = (
                f"the last {self._untrained} points were known already or do not fit in memory"
            )
        return not self.stopped_because

    def _propose(self) -> tuple[TrialSpec, optuna.Trial]:
        """The next point, with its folder made."""
        number = int(self._specs[-1].name) + 1 if self._specs else 0
        origin, config, file = self._asked_for()
        trial = self._study.ask(number, config)
        point = self._search.space(trial)
        too_large = None
        try:
            config = config or self._search.config_of(point)
        except BudgetTooSmallError as error:
            config, too_large = self._search.baseline.with_values(point), str(error)
        spec = self._search.trial(number, config, origin)
        if too_large:  # first, since without it the trial would be one to train
            spec.folder.mkdir(parents=True, exist_ok=True)
            spec.write_result(Status.INFEASIBLE, {}, reason=too_large)
        spec.write_config()
        self._specs.append(spec)
        self._keys.add(spec.key)
        if file:
            file.unlink()
        return spec, trial

    def _asked_for(self) -> tuple[str, TrialConfig | None, Path | None]:
        """Whose turn it is: origin, configuration if it is a given one, and its file if queued."""
        if self._first_points:
            return *self._first_points.popleft(), None
        for file, config in waiting_points(self._search.folder):
            if self._key(config) not in self._keys:
                return ENQUEUED, config, file
            file.unlink()
        return SAMPLER, None, None

    def _ends_untrained(self, spec: TrialSpec) -> bool:
        """Whether a trial needs no training, or can have none; its folder then has the result."""
        source = self._finished.get(spec.key)
        if spec.result():
            return True
        if source and not spec.is_timed:
            adopt(spec, source)
            return True
        return is_too_large(spec, self._resources)

    def on_trial_result(self, trial_id: str, result: Row) -> None:
        """Nothing: a trial's rows are told from its folder when it has ended."""

    def on_trial_complete(
        self, trial_id: str, result: Row | None = None, error: bool = False
    ) -> None:
        """Tell Optuna how a trial ended; one without a result was stopped with the search."""
        spec, trial = self._running[trial_id]
        if error and not spec.result():
            spec.write_failure()
        ending = spec.result()
        if ending:
            if ending.status is not Status.COMPLETE and not ending.diverged:
                record_ending(spec.folder, ending.status)
            del self._running[trial_id]
            self._tell(spec, trial)
            self._clock.save()

    def _tell(self, spec: TrialSpec, trial: optuna.Trial) -> None:
        """Take in how a trial ended."""
        result = spec.result()
        assert result
        self._study.tell(trial, result, spec)
        self._failures = self._failures + 1 if result.crashed else 0
        self._remember(spec, result)
        self._progress.end(spec, result, self._shown(result), self._keep_best([trial.number]))

    def _remember(self, spec: TrialSpec, result: Result) -> None:
        """Count a trial that has ended; no other trial of this search trains its key again."""
        self._progress.count(result)
        if not result.crashed:
            self._finished.setdefault(spec.key, spec.folder)

    def _keep_best(self, ended: Sequence[int]) -> str:
        """Drop the checkpoints of all but the best, which would fill the disk; the best as text."""
        best = set(self._study.best())
        for number in {*self._best, *ended} - best:
            for path in self._specs[number].folder.glob("checkpoint*.pt"):
                path.unlink()
        self._best = best
        results = [(self._specs[n].name, self._specs[n].result()) for n in sorted(best)]
        return ", ".join(f"{name} {self._shown(result)}" for name, result in results if result)

    def _shown(self, result: Result) -> str:
        names = self._search.objectives
        values = objective_values(result.metrics, names) or []
        return "  ".join(f"{name} {v:.4g}" for name, v in zip(names, values, strict=False))


def run_search(
    experiment: Experiment,
    search: Search,
    first_points: Sequence[FirstPoint],
    limits: Limits,
    progress: SearchProgress,
) -> StudySearcher:
    """Search until a limit, or until Ctrl-C or SIGTERM; what is running then can go on.

    The searcher says whether the search has ended, and why if not for a limit.
    """
    scheduler = LedgerAsha(search.objectives[0]) if search.scheduler == "asha" else None
    resources = experiment.resources
    searcher = StudySearcher(search, resources, first_points, limits, scheduler, progress)
    if not searcher.ended:
        fit(
            experiment.tokens,
            resources,
            progress,
            ray_tune.TuneConfig(
                search_alg=searcher, scheduler=scheduler, num_samples=-1, reuse_actors=True
            ),
        )
    return searcher
