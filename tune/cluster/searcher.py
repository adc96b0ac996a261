"""A search under Ray Tune: what Tune asks is answered by the search's state."""

from typing import Any

from ray import tune as ray_tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from quarterhour.tune.cluster.fit import NoTrialStartsError, fit
from quarterhour.tune.cluster.trainable import end_as_failed, from_param_space, to_param_space
from quarterhour.tune.experiment import Experiment
from quarterhour.tune.foreign import damage_told
from quarterhour.tune.ledger import TrialSpec
from quarterhour.tune.progress import SearchProgress
from quarterhour.tune.run_folder import Row
from quarterhour.tune.search.pruning import Pruner
from quarterhour.tune.search.state import SearchState


class StateSearcher(Searcher):
    """Gives Tune the next trial of a search, and tells the search how it ended."""

    def __init__(self, state: SearchState) -> None:
        super().__init__()
        self._state = state
        self._running: dict[str, TrialSpec] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles searchers, and a search's state is in its trial folders."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save."""

    def suggest(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, trial_id: str
    ) -> dict[str, Any] | str | None:
        """The next trial as Tune's configuration; None while all places are taken."""
        if self._state.is_full:
            return None
        spec = self._state.begin()
        if not spec:
            return Searcher.FINISHED
        self._running[trial_id] = spec
        return {"trial": to_param_space(spec)}

    def on_trial_result(self, trial_id: str, result: Row) -> None:
        """Nothing: a trial's rows are read from its folder."""

    def on_trial_complete(
        self, trial_id: str, result: Row | None = None, error: bool = False
    ) -> None:
        """End a trial. One without a result was stopped with the search, and stays open."""
        spec = self._running[trial_id]
        if error and not spec.ending():
            spec.write_failure()
        if spec.ending():
            self._state.end(self._running.pop(trial_id))

    def fail_all(self, reason: str) -> None:
        """End the trials that have begun as failed, and those that would be next."""
        while self._running:
            trial_id, spec = next(iter(self._running.items()))
            end_as_failed(spec, reason)
            self.on_trial_complete(trial_id)
            self.suggest(trial_id)


class PruningScheduler(FIFOScheduler):
    """Has Tune stop a trial that is pruned."""

    def __init__(self, pruner: Pruner) -> None:
        super().__init__()
        self._pruner = pruner

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Row) -> str:
        """Judge a trial by its new row; stop it if that gave it a result, or it is damaged."""
        spec = from_param_space(trial.config["trial"])
        with damage_told():
            self._pruner.prune_if_worse(spec)
        return TrialScheduler.STOP if spec.ending() else TrialScheduler.CONTINUE


def run_search(state: SearchState, experiment: Experiment, progress: SearchProgress) -> None:
    """Search until a limit, or until Ctrl-C or SIGTERM; what is running then can go on.

    The state says whether the search has ended, and why if it was not for a limit.
    """
    searcher = StateSearcher(state)
    tune_config = ray_tune.TuneConfig(
        search_alg=searcher,
        scheduler=PruningScheduler(state.pruner) if state.pruner else None,
        num_samples=-1,
        reuse_actors=True,
        # Otherwise Tune starts one process after the other, on a GPU some 8 seconds each.
        max_concurrent_trials=experiment.resources.concurrency,
    )
    try:
        if not state.ended:
            fit(experiment.tokens, experiment.resources, progress, tune_config)
    except NoTrialStartsError as error:
        searcher.fail_all(str(error))
