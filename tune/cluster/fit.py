"""Tune on a Ray that is started or joined for it, and what it does where trials fail."""

import errno
import logging
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

from ray import tune as ray_tune
from ray._private.worker import global_worker
from ray.air.execution._internal import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.execution import tune_controller

from quarterhour.data.files import write_folder
from quarterhour.data.tokens import TokenData
from quarterhour.tune.cluster.connection import connected
from quarterhour.tune.cluster.trainable import (
    PAUSE,
    TrialTrainable,
    end_as_failed,
    from_param_space,
    write_error,
)
from quarterhour.tune.places import Cluster, ClusterError, Resources
from quarterhour.tune.progress import RowDisplay
from quarterhour.tune.run_folder import ERROR

TOKENS = ".tokens"  # beside the runs of a cluster, whose machines may have no cache in common
MAX_FAILURES = 2
PAUSES = (5.0, 30.0)  # seconds before a trial that lacked memory or disk is tried again
DISK_IS_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))


class NoTrialStartsError(RuntimeError):
    """No trial can start, whichever it is; says why."""


class ProgressCallback(ray_tune.Callback):
    """Passes rows on to the display.

    Tune pickles callbacks, so the display, which cannot be pickled, is left out.
    """

    def __init__(self, progress: RowDisplay) -> None:
        self._progress: RowDisplay | None = progress

    def __getstate__(self) -> dict[str, Any]:
        return {"_progress": None}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Show the row of a trial that goes on or ends."""
        if self._progress and "step" in result:  # a trial out of memory ends without a row
            self._progress.update(from_param_space(trial.config["trial"]), result)


class ActorManager(RayActorManager):
    """Takes a process that Ray has killed for want of memory as one that died: Tune would end."""

    def _actor_task_failed(self, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = RayActorError(error_msg=str(exception))
        super()._actor_task_failed(tracked_actor_task, exception)


tune_controller.RayActorManager = ActorManager  # pyright: ignore[reportPrivateImportUsage]


class FailureCallback(ray_tune.Callback):
    """Sees to it that a failure has a reason and an end.

    Raises NoTrialStartsError where what fails are the processes and not their trials, and
    ClusterError where Ray has died.
    """

    def __init__(self) -> None:
        self._started = False
        self._deaths = 0

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Take it that others can start, too."""
        self._started = True

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Keep what a trial could not write itself; let it wait where memory or disk was short."""
        spec, error = from_param_space(trial.config["trial"]), _last_error(trial)
        died = isinstance(error, RayActorError) and not error.actor_init_failed
        disk_is_full = any(text in str(error) for text in DISK_IS_FULL)
        if died or disk_is_full:
            trial.config[PAUSE] = PAUSES[trial.run_metadata.num_failures - 1]
        if died:
            self._deaths += 1
            if not self._started and self._deaths > MAX_FAILURES:
                raise NoTrialStartsError("its process died before it began")
        elif not disk_is_full and not (spec.folder / ERROR).exists():
            write_error(spec, str(error))
            if not self._started:  # no code of ours was reached
                raise NoTrialStartsError(str(error).strip().splitlines()[-1])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """End a trial that is not tried again."""
        end_as_failed(from_param_space(trial.config["trial"]))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Check that Ray is alive; Tune does not."""
        node = global_worker.node
        dead = node.dead_processes() if node else []
        if dead:
            raise ClusterError(f"Ray's process {dead[0][0]} has died")


def fit(
    tokens: TokenData,
    resources: Resources,
    progress: RowDisplay,
    tune_config: ray_tune.TuneConfig,
    param_space: dict[str, Any] | None = None,
) -> None:
    """Let Tune run trials until all have ended or it is stopped.

    Raises NoTrialStartsError, ClusterError where Ray cannot start or has died, and OSError where a
    result cannot be written.
    """
    # A failed trial's traceback is in its folder; its reason is shown.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with connected(resources) as storage:
        trainable = ray_tune.with_resources(
            ray_tune.with_parameters(
                TrialTrainable,
                tokens_folder=str(_tokens_folder(tokens, resources.cluster)),
                resources=resources,
            ),
            lambda config: _placement(resources, config),
        )
        tuner = ray_tune.Tuner(
            trainable,
            param_space=param_space,
            tune_config=tune_config,
            run_config=ray_tune.RunConfig(
                storage_path=storage,
                verbose=0,
                # In a notebook Tune's own clears what was printed before.
                progress_reporter=ray_tune.CLIReporter(),
                callbacks=[ProgressCallback(progress), FailureCallback()],
                # Ray would save a class trainable at its end.
                checkpoint_config=ray_tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=ray_tune.FailureConfig(max_failures=MAX_FAILURES),
            ),
        )
        try:
            tuner.fit()
        except ray_tune.TuneError as error:
            raise error.__context__ or error from None  # Tune has put it into words


def _last_error(trial: Any) -> Exception:
    """Why the last attempt at a trial failed."""
    return pickle.loads(Path(trial.pickled_error_file).read_bytes())


def _placement(resources: Resources, config: dict[str, Any]) -> ray_tune.PlacementGroupFactory:
    """What a trial of Tune asks of the cluster, by its own needs; and only of known machines."""
    asked = resources.for_trial(from_param_space(config["trial"]).config)
    bundle = {{"cpu": "CPU", "gpu": "GPU"}.get(name, name): much for name, much in asked.items()}
    if not resources.cluster:
        return ray_tune.PlacementGroupFactory([bundle])
    known = {"ray.io/node-id": f"in({','.join(resources.cluster.machines)})"}
    return ray_tune.PlacementGroupFactory([bundle], bundle_label_selector=[known])


def _tokens_folder(tokens: TokenData, cluster: Cluster | None) -> Path:
    """The tokens where every machine finds them."""
    folder = tokens.folder.absolute()
    if not cluster:
        return folder
    shared = Path(cluster.shared_folder) / TOKENS / folder.name
    if not shared.exists():
        write_folder(shared, lambda new: shutil.copytree(folder, new, dirs_exist_ok=True))
    return shared
