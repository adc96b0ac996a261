"""Trials under Ray Tune: a local cluster for as long as they run, and what became of them."""

import logging
import os
import signal
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

# Before Ray is imported, since it reads these then: no statistics, no token file in the home
# folder, no log files of its own beside ours, no change of the working directory.
os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}

import ray
from ray import tune as ray_tune

from data.tokens import TokenData
from tune.events import record_ending
from tune.ledger import Status, TrialSpec, read_rows
from tune.progress import TrialsProgress
from tune.resources import Resources
from tune.trainable import TrialTrainable, from_param_space, to_param_space

OBJECT_STORE_BYTES = 128 * 2**20
MAX_FAILURES = 2


class ProgressCallback(ray_tune.Callback):
    """Passes rows on to the display. Tune pickles callbacks, and a display cannot be."""

    def __init__(self, progress: TrialsProgress) -> None:
        self._progress: TrialsProgress | None = progress

    def __getstate__(self) -> dict[str, Any]:
        return {"_progress": None}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Show the row of a trial that goes on or ends."""
        if self._progress:
            label = from_param_space(trial.config["trial"]).label
            self._progress.update(label, result)
            if result["done"]:
                self._progress.end(label)


def run_trials(
    todo: list[TrialSpec], tokens: TokenData, resources: Resources, progress: TrialsProgress
) -> None:
    """Run trials to their results. Those stopped by Ctrl-C or SIGTERM have none, and can go on.

    A trial that raises or whose process dies is tried again from its checkpoint, MAX_FAILURES
    times; then its result is FAILED with the reason.
    """
    # A failed trial's traceback is in its folder; its reason is shown.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    at_once = min(resources.concurrency, len(todo))
    with _local_cluster(resources) as storage:
        trainable = ray_tune.with_resources(
            ray_tune.with_parameters(
                TrialTrainable, tokens_folder=str(tokens.folder.absolute()), resources=resources
            ),
            {"cpu": resources.cpus_per_trial, "gpu": resources.gpus_per_trial},
        )
        tuner = ray_tune.Tuner(
            trainable,
            param_space={
                "trial": ray_tune.grid_search([to_param_space(spec) for spec in todo]),
                "trials_on_device": at_once,
            },
            tune_config=ray_tune.TuneConfig(reuse_actors=True),
            run_config=ray_tune.RunConfig(
                storage_path=storage,
                verbose=0,
                callbacks=[ProgressCallback(progress)],
                # Class trainables are saved by Ray at their end unless told otherwise.
                checkpoint_config=ray_tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=ray_tune.FailureConfig(max_failures=MAX_FAILURES),
            ),
        )
        for result in tuner.fit():
            if result.error and result.config:
                spec = from_param_space(result.config["trial"])
                if not spec.result():
                    _write_failure(spec, result.error)


def _write_failure(spec: TrialSpec, error: Exception) -> None:
    """The last line of Ray's message is the error that the trial raised."""
    rows = read_rows(spec.folder)
    reason = str(error).strip().splitlines()[-1].strip()
    record_ending(spec.folder, Status.FAILED)
    spec.write_result(Status.FAILED, rows[-1] if rows else {}, reason=reason)


@contextmanager
def _local_cluster(resources: Resources) -> Generator[str]:
    """A cluster of this machine alone, gone at the end with its files; gives Tune's folder."""
    with tempfile.TemporaryDirectory(prefix="qh") as folder:
        before = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(
                address="local",
                num_cpus=int(resources.cpus),
                num_gpus=int(resources.gpus),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=folder,
            )
            # Tune saves and returns on SIGUSR1 and on SIGINT, but not on SIGTERM.
            signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
            yield f"{folder}/tune"
        finally:
            ray.shutdown()
            signal.signal(signal.SIGTERM, before)
