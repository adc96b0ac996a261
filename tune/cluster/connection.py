"""Ray for as long as trials run: started here, for this user alone, or joined."""

import fcntl
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, chdir, contextmanager, suppress
from functools import partial
from pathlib import Path

import ray
from ray._private import services
from ray._raylet import (
    AuthenticationTokenLoader,  # pyright: ignore[reportAttributeAccessIssue]
    Config,  # pyright: ignore[reportAttributeAccessIssue]
)

from quarterhour.tune.machine import device_memory_bytes
from quarterhour.tune.places import ClusterError, Resources

LOCK = ".quarterhour"
LONGEST_BASE = 24  # bytes: Ray puts 79 below it, and a socket's path may have 107 (macOS: 103)
OBJECT_STORE_BYTES = 128 * 2**20
ANSWER_SECONDS = 10


@contextmanager
def connected(resources: Resources) -> Generator[str]:
    """Ray as `resources` were planned for; gives a folder that all its machines see.

    A cluster of this machine alone is gone at the end, and so are its files. Until Tune runs,
    SIGTERM is a KeyboardInterrupt. Raises ClusterError where Ray cannot start.
    """
    with ExitStack() as stack:
        stack.enter_context(_stopping())
        if cluster := resources.cluster:
            folder = stack.enter_context(own_folder(cluster.shared_folder, ".ray"))
            stack.enter_context(joined(cluster.address, folder))
        else:
            try:
                folder = stack.enter_context(own_folder(_short_base(), "qh"))
                stack.enter_context(_started(resources, folder))
            except (OSError, RuntimeError) as error:
                raise ClusterError(f"Ray cannot start: {error}") from error
        signal.signal(signal.SIGTERM, _stop)  # Ray has put its own there
        yield f"{folder}/tune"


@contextmanager
def joined(address: str, folder: str) -> Generator[None]:
    """A connection to a running Ray cluster, whose workers find no modules but those in `folder`.

    Raises ValueError where none answers.
    """
    with chdir(folder):
        join(address)
    try:
        yield
    finally:
        ray.shutdown()


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


@contextmanager
def own_folder(base: str, prefix: str) -> Generator[str]:
    """A folder in `base` that only this user can enter, and that is gone at the end.

    It is locked until then: those of its kind that no process has locked are removed.
    """
    for left in Path(base).glob(f"{prefix}*"):
        with suppress(OSError):  # another's, or gone meanwhile
            if left.lstat().st_uid == os.geteuid() and not _is_locked(left / LOCK):
                shutil.rmtree(left)
    new = Path(tempfile.mkdtemp(prefix=".new", dir=base))
    folder = new.with_name(prefix + new.name.removeprefix(".new"))
    with (new / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        new.rename(folder)  # by this name it is locked from the first
        try:
            yield str(folder)
        finally:
            # A network's file system keeps files that a process still has open.
            shutil.rmtree(folder, ignore_errors=True)


def _is_locked(lock: Path) -> bool:
    with lock.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _short_base() -> str:
    """The folder for temporary files, or /tmp where its path is too long for Ray's sockets."""
    base = tempfile.gettempdir()
    return base if len(os.fsencode(base)) <= LONGEST_BASE else "/tmp"


@contextmanager
def _stopping() -> Generator[None]:
    """SIGTERM is a KeyboardInterrupt, until Tune takes it; at the end all signals are as before."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGUSR1, signal.default_int_handler)
    try:
        yield
    except SystemExit as stopped:  # by a SIGTERM while Ray starts
        raise KeyboardInterrupt from stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(*_: object) -> None:
    """Take SIGTERM as SIGUSR1, on which Tune saves and returns."""
    signal.raise_signal(signal.SIGUSR1)


@contextmanager
def _started(resources: Resources, folder: str) -> Generator[None]:
    """A cluster of this machine and this user alone, with its files in `folder`."""
    paths = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    settings = {
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, paths)),  # they are in other folders
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # Tune ends at what this monitor does. The kernel takes a worker, too, and Tune goes on.
        "RAY_memory_monitor_refresh_ms": "0",
    }
    with _environment(settings):
        try:
            with chdir(folder), _own_process_groups():
                ray.init(
                    address="local",
                    num_cpus=int(resources.cpus),
                    num_gpus=int(resources.gpus),
                    _memory=device_memory_bytes("cpu"),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    object_store_memory=OBJECT_STORE_BYTES,
                    _temp_dir=f"{folder}/ray",  # Ray lets everyone write there
                )
            yield
        finally:
            ray.shutdown()


@contextmanager
def _environment(settings: dict[str, str]) -> Generator[None]:
    """Settings that Ray and its processes read from the environment."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ |= settings
    _read_authentication()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        _read_authentication()


def _read_authentication() -> None:
    """Let Ray read its mode and token again: it does so when it is imported, and once."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _own_process_groups() -> Generator[None]:
    """Start Ray's processes in groups of their own: a SIGTERM to ours is for us, who end them."""
    popen = services.ConsolePopen
    services.ConsolePopen = partial(popen, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = popen
