"""How far a search is: what it trains next, how its trials ended, what of them is kept."""

from collections import deque
from collections.abc import Iterable, Sequence

import optuna

from quarterhour.tune.experiment import checkpoint_bytes
from quarterhour.tune.foreign import damage_told
from quarterhour.tune.ledger import Result, TrialSpec, finished_folders, try_adopt
from quarterhour.tune.places import Resources
from quarterhour.tune.progress import SearchProgress
from quarterhour.tune.run_folder import SAMPLER, Status
from quarterhour.tune.run_reader import read_rows
from quarterhour.tune.search.first_points import FirstPoint
from quarterhour.tune.search.limits import Limits, Obstacles, SearchClock
from quarterhour.tune.search.objectives import objectives_text
from quarterhour.tune.search.proposals import Proposals
from quarterhour.tune.search.pruning import Pruner
from quarterhour.tune.search.settings import Search
from quarterhour.tune.search.study import LedgerStudy
from quarterhour.tune.training.events import record_ending


class SearchState:
    """What a search has done and does next; made anew from the trial folders at every start.

    Every trial has its folder before it begins, and Optuna is told what its folder holds. So a kill
    at any moment loses nothing. `pruner` is None without early stopping; `stopped_because` tells
    what other than a limit has ended the search.
    """

    def __init__(
        self,
        search: Search,
        resources: Resources,
        first_points: Sequence[FirstPoint],
        limits: Limits,
        progress: SearchProgress,
    ) -> None:
        self._search = search
        self._resources = resources
        self._limits = limits
        self._progress = progress
        needed = 2 * checkpoint_bytes(search.baseline)
        self._obstacles = Obstacles(folder=search.folder, bytes_needed=needed)
        self._clock = SearchClock(search.folder)
        self._study = LedgerStudy(search)
        self.pruner = Pruner(search.objectives[0]) if search.scheduler == "asha" else None
        self._finished = finished_folders(search.folder.parent)
        self._specs: list[TrialSpec] = []
        self._open: dict[str, optuna.Trial] = {}
        self._interrupted = deque[TrialSpec]()
        self._best: list[TrialSpec] = []
        self.stopped_because: str | None = None
        begun = search.trials()
        for spec in begun:
            with damage_told():
                self._take_up(spec)
        self._study.write()
        self._keep_best(spec for spec in self._specs if spec.name not in self._open)
        self._proposals = Proposals(search, self._study, first_points, begun)

    @property
    def ended(self) -> bool:
        """Whether no trial is open and none will begin."""
        return not self._open and (self._at_limit or self.stopped_because is not None)

    @property
    def is_full(self) -> bool:
        """Whether all places are taken; a trial that needs much memory takes several."""
        waiting = {spec.name for spec in self._interrupted}
        running = (spec for spec in self._specs if spec.name in self._open.keys() - waiting)
        taken = sum(self._resources.places_of(spec.config) for spec in running)
        return taken >= self._resources.concurrency

    @property
    def _at_limit(self) -> bool:
        return self._limits.reached(len(self._specs), self._clock.seconds)

    def begin(self) -> TrialSpec | None:
        """Begin the next trial that has to be trained. None where the search ends.

        An interrupted one comes first, then a given point, then what the sampler proposes.
        """
        spec = self._interrupted.popleft() if self._interrupted else self._begin_new()
        self._clock.save()
        return spec

    def end(self, spec: TrialSpec) -> None:
        """Take in how a trial that has begun ended. One that is damaged is left alone."""
        with damage_told():
            result = spec.result()
            if result and (result.crashed or result.status is Status.INFEASIBLE):
                record_ending(spec.folder, result.status)
            self._close(spec)
        if lost := self._open.pop(spec.name, None):
            self._study.give_up(lost)
            self._progress.hide(spec)
        self._clock.save()

    def _take_up(self, spec: TrialSpec) -> None:
        """Take in a trial from before. One that has not ended, or has crashed, goes on.

        Raises DamagedError, and leaves the trial alone.
        """
        if not spec.result():
            read_rows(spec.folder)
        if self.pruner:
            # A kill may have come between its last row and its judgement.
            self.pruner.prune_if_worse(spec)
        if (result := spec.result()) and result.crashed:
            spec.clear_result()
        if not spec.result():
            self._end_if_too_large(spec)  # this machine may have less memory than the last
        running = self._study.take_up(spec)
        if result := spec.result():
            self._remember(spec, result)
        self._specs.append(spec)
        if running:
            self._open[spec.name] = running
            self._interrupted.append(spec)

    def _begin_new(self) -> TrialSpec | None:
        """A new trial that has to be trained, after those that end at once."""
        while not self._at_limit:
            self.stopped_because = self._obstacles.worst()
            if self.stopped_because:
                return None
            try:
                spec, trial = self._proposals.next()
            except ValueError as error:
                self.stopped_because = f"the space gave a point that cannot be built: {error}"
                return None
            self._specs.append(spec)
            self._open[spec.name] = trial
            self._end_untrained(spec)
            if not spec.result():
                self._obstacles.untrained_in_a_row = 0
                return spec
            self._obstacles.untrained_in_a_row += spec.origin == SAMPLER
            self._close(spec)
        return None

    def _end_untrained(self, spec: TrialSpec) -> None:
        """Give a trial its result if it needs no training, or can have none."""
        source = self._finished.get(spec.key)
        if not spec.result() and not (source and try_adopt(spec, source)):
            self._end_if_too_large(spec)

    def _end_if_too_large(self, spec: TrialSpec) -> None:
        if reason := self._resources.why_too_large(spec.config):
            spec.write_result(Status.INFEASIBLE, {}, reason=reason)

    def _close(self, spec: TrialSpec) -> None:
        """Tell Optuna and the user how a trial ended."""
        result = spec.result()
        assert result
        if self.pruner:
            self.pruner.record(spec)
        self._study.tell(self._open[spec.name], result, spec)
        del self._open[spec.name]
        failures = self._obstacles.failures_in_a_row
        self._obstacles.failures_in_a_row = failures + 1 if result.crashed else 0
        self._remember(spec, result)
        self._keep_best([] if result.crashed else [spec])  # a crashed one is tried again from there
        self._progress.end(spec, result, self._text(spec), self._best_text())

    def _remember(self, spec: TrialSpec, result: Result) -> None:
        """Count a trial that has ended. No other trial of this search trains its key again."""
        self._progress.count(result)
        if not result.crashed:
            self._finished.setdefault(spec.key, spec.folder)

    def _keep_best(self, ended: Iterable[TrialSpec]) -> None:
        """Drop the checkpoints of all but the best, since they would fill the disk."""
        numbers = self._study.best()
        best = [spec for spec in self._specs if int(spec.name) in numbers]
        for spec in (*self._best, *ended):
            if spec not in best:
                for path in spec.folder.glob("checkpoint*.pt"):
                    path.unlink()
        self._best = best

    def _best_text(self) -> str:
        return ", ".join(f"{spec.name} {self._text(spec)}" for spec in self._best)

    def _text(self, spec: TrialSpec) -> str:
        result = spec.ending()
        return objectives_text(result.metrics, self._search.objectives) if result else ""
