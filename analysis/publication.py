"""A run as anybody may read it: a report can be published as it is."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from quarterhour.analysis.runs import Run
from quarterhour.tune.foreign import plain

_FOLDERS = re.compile(r"(?<![\w.~/:-])(?:/[^/\s'\"]+)+/(?=[^/\s])")
_SENTENCE = re.compile(r"[:;,]\s")


def publishable(run: Run) -> Run:
    """The run without absolute paths, names of machines, and characters that steer a terminal.

    The last name of an absolute path stays. Where the trials' files are does not change.
    """
    experiment = _told(run.experiment)
    resources = experiment.get("resources") or {}
    if cluster := resources.pop("cluster", None):
        resources["machines"] = len(cluster["machines"])
    trials = run.trials.map(_told).assign(folder=run.trials["folder"])
    names = {name: run.rows[name].map(_told) for name in ("configuration",) if name in run.rows}
    folder = run.folder.with_name(plain(run.folder.name))
    rows = run.rows.assign(**names)
    return replace(run, experiment=experiment, trials=trials, rows=rows, folder=folder)


def _told(value: Any) -> Any:
    """A value of a run's files as a report tells it."""
    if isinstance(value, dict):
        return {_told(name): _told(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_told(part) for part in value]
    if type(value) is not str:  # a Status tells nothing
        return value
    if value.startswith("/") and not _SENTENCE.search(value):
        return Path(plain(value)).name
    return published_text(value)


def published_text(text: str) -> str:
    """A text without the folders of absolute paths, and without what steers a terminal."""
    text = plain(text)
    for known in (Path.home(), Path.cwd()):
        text = text.replace(f"{known}/", "")
    return _FOLDERS.sub("", text)
