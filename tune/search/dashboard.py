"""optuna-dashboard on a search: it shows, to this machine alone, and changes nothing."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from wsgiref.simple_server import make_server

from optuna.storages import BaseStorage
from optuna_dashboard import wsgi

from quarterhour.tune.run_folder import STUDY
from quarterhour.tune.search.journal import open_storage, published_lines

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


def serve(dashboard: Dashboard, port: int) -> None:
    """Answer until Ctrl-C. Raises ValueError where the port cannot be had."""
    try:
        server = make_server(HOSTS[0], port, dashboard)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"--port is {port}: {reason}; give another") from error
    with server, suppress(KeyboardInterrupt):
        server.serve_forever()
