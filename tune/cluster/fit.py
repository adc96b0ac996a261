"""Ray for as long as trials run, started here or joined, and Tune on it."""

import logging
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Ray reads these when it is imported: no statistics, no log files of its own beside ours, no change
# of the working directory. Tune's own state is not saved, since nobody reads it here.
os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # Rows without an evaluation lack the objective.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}

import ray
from ray import tune as ray_tune
from ray._private.worker import global_worker

from quarterhour.data.files import write_folder
from quarterhour.data.tokens import TokenData
from quarterhour.tune.cluster.trainable import TrialTrainable, from_param_space
from quarterhour.tune.machine import device_memory_bytes
from quarterhour.tune.places import Cluster, ClusterDiedError, Resources
from quarterhour.tune.progress import RowDisplay

TOKENS = ".tokens"  # beside the runs of a cluster, whose machines may have no cache in common
OBJECT_STORE_BYTES = 128 * 2**20
MAX_FAILURES = 2
ANSWER_SECONDS = 10


class ProgressCallback(ray_tune.Callback):
    """Passes rows on to the display, and raises ClusterDiedError where Ray has died.

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

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Check that Ray is alive; Tune does not."""
        node = global_worker.node
        dead = node.dead_processes() if node else []
        if dead:
            raise ClusterDiedError(f"Ray's process {dead[0][0]} has died")


def fit(
    tokens: TokenData,
    resources: Resources,
    progress: RowDisplay,
    tune_config: ray_tune.TuneConfig,
    param_space: dict[str, Any] | None = None,
) -> ray_tune.ResultGrid:
    """Let Tune run trials until all have ended or it is stopped.

    Raises ClusterDiedError where a process of Ray's has died.
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
                callbacks=[ProgressCallback(progress)],
                # Ray would save a class trainable at its end.
                checkpoint_config=ray_tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=ray_tune.FailureConfig(max_failures=MAX_FAILURES),
            ),
        )
        return tuner.fit()


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


@contextmanager
def connected(resources: Resources) -> Generator[str]:
    """Run Ray as `resources` were planned for; gives a folder that all its machines see.

    A cluster of this machine alone ends with the context, and its files are deleted.
    """
    before = signal.getsignal(signal.SIGTERM)
    cluster = resources.cluster
    prefix, shared = (".ray", cluster.shared_folder) if cluster else ("qh", None)
    # A network's file system keeps files that a process still has open.
    with tempfile.TemporaryDirectory(
        prefix=prefix, dir=shared, ignore_cleanup_errors=True
    ) as folder:
        try:
            if cluster:
                join(cluster.address)
            else:
                _start(resources, folder)
            # Tune saves and returns on SIGUSR1 and on SIGINT, but not on SIGTERM.
            signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
            yield f"{folder}/tune"
        finally:
            ray.shutdown()
            signal.signal(signal.SIGTERM, before)


def join(address: str) -> None:
    """Connect to a running Ray cluster. Raises ValueError where none answers."""
    try:
        if address != "auto":  # Ray would look for minutes
            host, port = address.rsplit(":", 1)
            socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"--address {address}: no Ray cluster can be joined there ({error}); start one with"
            " `ray start --head` and give the host:port that it prints"
        ) from error


def _start(resources: Resources, folder: str) -> None:
    """Start a cluster of this machine alone, with its files in `folder`."""
    os.environ["RAY_AUTH_MODE"] = "disabled"  # or Ray writes a token into the home folder
    ray.init(
        address="local",
        num_cpus=int(resources.cpus),
        num_gpus=int(resources.gpus),
        _memory=device_memory_bytes("cpu"),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE_BYTES,
        _temp_dir=folder,
    )
