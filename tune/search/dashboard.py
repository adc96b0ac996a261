"""optuna-dashboard on a search: it shows, to this machine alone, and changes nothing."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from wsgiref.simple_server import make_server

import optuna
from optuna.storages import BaseStorage
from optuna_dashboard import save_note, wsgi

from quarterhour.tune.foreign import damage_told
from quarterhour.tune.ledger import read_result
from quarterhour.tune.run_folder import FRESH_SEEDS, STUDY
from quarterhour.tune.run_reader import trial_folders
from quarterhour.tune.search.journal import open_storage, published_lines
from quarterhour.tune.search.objectives import objectives_text
from quarterhour.tune.search.settings import Search
from quarterhour.tune.search.study import STUDY_NAME, LedgerStudy

HOSTS = ("127.0.0.1", "localhost")
Respond = Callable[..., Any]


class Dashboard:
    """The pages as a WSGI application. They show a storage until a search publishes a new journal.

    A request for another host's name is refused, for a web page may have pointed that name here
    (DNS rebinding), and so is every method that could change the study.
    """

    def __init__(self, folder: Path, storage: BaseStorage) -> None:
        self._folder = folder
        self._begins = self._first_log()
        self._pages = wsgi(storage)

    def __call__(self, environ: dict[str, Any], respond: Respond) -> Iterable[bytes]:
        """Answer a request."""
        host = environ.get("HTTP_HOST", "").rsplit(":", 1)[0]
        if host not in HOSTS:
            return _refuse(respond, "403 Forbidden", f"open it as http://{HOSTS[0]}")
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _refuse(respond, "405 Method Not Allowed", "this dashboard only shows")
        begins = self._first_log()
        if begins and begins != self._begins:
            self._begins, self._pages = begins, wsgi(open_storage(self._folder))
        return self._pages(environ, respond)

    def _first_log(self) -> bytes:
        """The journal's first line: every start of a search has an id of its own there."""
        return next(published_lines(self._folder / STUDY), b"")


def _refuse(respond: Respond, status: str, reason: str) -> Iterable[bytes]:
    respond(status, [("Content-Type", "text/plain")])
    return [f"{reason}\n".encode()]


def study_of(search: Search) -> BaseStorage:
    """The study of a search that no process runs. Trials with fresh seeds are notes on theirs.

    Raises ValueError where the space lacks a trial by now.
    """
    made = LedgerStudy(search)
    for spec in search.trials():
        with damage_told():
            made.take_up(spec)
    study = optuna.load_study(study_name=STUDY_NAME, storage=made.storage)
    for trial in study.get_trials(deepcopy=False):
        if note := _fresh_seeds(search, f"{trial.number:04d}"):
            of_study = optuna.Trial(study, trial._trial_id)  # pyright: ignore[reportPrivateUsage]
            save_note(of_study, note)
    return made.storage


def _fresh_seeds(search: Search, trial: str) -> str:
    """What a trial has come to with each fresh seed, as a list in markdown; "" without any."""
    lines: list[str] = []
    for folder in trial_folders(search.folder / FRESH_SEEDS / trial):
        with damage_told():
            result = read_result(folder)
            values = objectives_text(result.metrics, search.objectives) if result else ""
            lines.append(f"- fresh {folder.name.replace('seed', 'seed ')}: {values or 'no result'}")
    return "\n".join(lines)


def serve(dashboard: Dashboard, port: int) -> None:
    """Answer until Ctrl-C. Raises ValueError where the port cannot be had."""
    try:
        server = make_server(HOSTS[0], port, dashboard)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"--port is {port}: {reason}; give another") from error
    with server, suppress(KeyboardInterrupt):
        server.serve_forever()
