"""TensorBoard on run folders, for as long as a person looks at them."""

import json
import shlex
import signal
import sys
import tempfile
import time
import webbrowser
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tensorboard import default
from tensorboard.plugins.core.core_plugin import DEFAULT_PORT
from tensorboard.plugins.hparams import backend_context, metadata
from tensorboard.plugins.hparams.hparams_plugin import HParamsPlugin
from tensorboard.program import (
    TensorBoard,
    TensorBoardPortInUseError,
    TensorBoardServerException,
    WerkzeugServer,
)

from quarterhour.search_spaces.reference import SIX
from quarterhour.tune.foreign import damage_told
from quarterhour.tune.run_folder import HELDOUT_LOSS, trial_label
from quarterhour.tune.run_reader import read_config, read_ending, run_of, trial_folders
from quarterhour.tune.training.events import TAGS, arranged, by_tokens

# A new trial must show within 5 s; that is the default interval, and reading takes time too.
RELOAD_INTERVAL = ("--reload_interval", "2")
PINNED = (by_tokens(TAGS[HELDOUT_LOSS]), TAGS[HELDOUT_LOSS])
_VIEW = {
    "pinnedCards": json.dumps([{"plugin": "scalars", "tag": tag} for tag in PINNED]),
    # The six have their colours wherever they are; what else a search has trained, one each.
    "runColorGroup": rf"regex:/(?:\d+ )?(?:({'|'.join(SIX)})\b|(\d+))",
    "smoothing": 0,
}
# Evaluated points stay where they are: each of the two kinds of pages has its own smoothing.
FIRST_VIEW = f"?{urlencode(_VIEW)}#timeseries&_smoothingWeight=0"
PORTS_TRIED = 100
LAST_PORT = 65_535


def serve(
    folders: Sequence[Path], runs: Path, *, port: int | None, browser: bool, bind_all: bool
) -> None:
    """Show run folders, all of `runs` where none is given, until Ctrl-C or SIGTERM.

    Prints the address, on `port` or the next free one, and the `tensorboard` command that does the
    same. Raises ValueError for a folder that is not there and where no port is free.
    """
    for folder in folders or [runs]:
        if not folder.is_dir():
            raise ValueError(f"run folder {folder} does not exist: give one such as runs/grid")
    named, plain = _logdir(folders, runs)
    options = [*RELOAD_INTERVAL, *(["--bind_all"] if bind_all else [])]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="quarterhour") as links, suppress(KeyboardInterrupt):
        trials = TrialLinks(Path(links), named)
        trials.follow()
        url = _launch(["--logdir", links, *options], DEFAULT_PORT if port is None else port)
        url += FIRST_VIEW
        print(f"TensorBoard at {url} until Ctrl-C")
        print(f"the same without quarterhour: {shlex.join(['tensorboard', *plain, *options])}")
        if bind_all:
            print("every machine that reaches this one can read it: there is no login")
        sys.stdout.flush()
        if browser:
            webbrowser.open(url)
        while True:  # signal.pause() would miss a signal that comes just before it
            time.sleep(1)
            trials.follow()


def _logdir(folders: Sequence[Path], runs: Path) -> tuple[dict[str, Path], list[str]]:
    """The folders to show, by name, and TensorBoard's arguments for the same.

    Raises ValueError where two have one name.
    """
    if not folders:
        return {"": runs}, ["--logdir", str(runs)]
    named = {folder.resolve().name: folder.resolve() for folder in folders}
    if len(named) < len(folders):
        raise ValueError("two run folders have the same name: give a link to one of them")
    # TensorBoard takes what is before the first colon for the name.
    spec = ",".join(f"{name.replace(':', '-')}:{path}" for name, path in named.items())
    return named, ["--logdir_spec", spec]


class TrialLinks:
    """A folder of links to the trials of `named` folders. TensorBoard calls a trial by its path.

    With `--logdir_spec`, which is meant for several folders, TensorBoard does without its fast
    reader and needs a minute for 500 trials.
    """

    def __init__(self, links: Path, named: Mapping[str, Path]) -> None:
        self._links = links
        self._named = named
        self._seen = set[Path]()

    def follow(self) -> None:
        """Link the trials that have begun since."""
        for name, folder in self._named.items():
            for trial in trial_folders(folder):
                if trial not in self._seen:
                    self._seen.add(trial)
                    with damage_told(), suppress(FileExistsError):
                        link = self._links / name / _shown(trial, folder)
                        link.parent.mkdir(parents=True, exist_ok=True)
                        link.symlink_to(trial.absolute())


def _shown(trial: Path, folder: Path) -> Path:
    """What a trial below a folder is called there. Raises DamagedError."""
    config, ending = read_config(trial), read_ending(trial) or {}
    label = trial_label(config["name"], trial, config.get("origin"))
    label += " (adopted)" * bool(ending.get("adopted_from"))
    run = run_of(trial)
    return run.relative_to(folder) / label if run and run.is_relative_to(folder) else Path(label)


class _Settings(backend_context.Context):
    """What the table of hyperparameters knows of all trials: TensorBoard asks a single one."""

    def experiment_from_metadata(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, context: Any, experiment_id: Any, metrics: bool, tags_of: Any, *others: Any
    ) -> Any:
        """The table's columns, in our order and with the values that the trials have."""
        start = metadata.SESSION_START_INFO_TAG
        values = {run: {start: tags[start]} for run, tags in tags_of.items() if start in tags}
        ask = super().experiment_from_metadata
        experiment = ask(context, experiment_id, metrics, tags_of, *others)
        columns = arranged(ask(context, experiment_id, False, values, *others).hparam_infos)
        experiment.ClearField("hparam_infos")
        experiment.hparam_infos.extend(columns)
        return experiment


class _SettingsPlugin(HParamsPlugin):
    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._context = _Settings(context)


def _launch(arguments: Sequence[str], port: int) -> str:
    """Start serving in a thread; the address."""
    plugins = [_SettingsPlugin if p is HParamsPlugin else p for p in default.get_plugins()]
    board = TensorBoard(plugins, server_class=_at_next_free_port)
    board.configure(["", *arguments, "--port", str(port)])
    try:
        return board.launch()
    except TensorBoardServerException as error:
        raise ValueError(error.msg) from error


def _at_next_free_port(app: Any, flags: Any) -> WerkzeugServer:
    first = flags.port
    for port in range(first, min(first + PORTS_TRIED, LAST_PORT + 1)):
        flags.port = port
        try:
            return WerkzeugServer(app, flags)
        except TensorBoardPortInUseError:
            continue
    raise TensorBoardServerException(f"ports {first} to {flags.port} are taken: pass another")
