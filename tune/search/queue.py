"""Points that a user adds to a search, also while it runs: one file each in its folder."""

import json
import re
import uuid
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from quarterhour.data.files import write_text
from quarterhour.search_spaces.point import TrialConfig
from quarterhour.tune.foreign import damage_told, read_json, tell
from quarterhour.tune.ledger import config_in
from quarterhour.tune.run_folder import QUEUE


def add_point(folder: Path, config: TrialConfig) -> None:
    """Let a point wait in a search's folder, behind those that wait there."""
    queue = folder / QUEUE
    queue.mkdir(exist_ok=True)
    numbers = [int(path.name.split("-")[0]) for path in _files(folder)]
    name = f"{max(numbers, default=-1) + 1:06d}-{uuid.uuid4().hex[:8]}.json"
    write_text(queue / name, json.dumps(asdict(config), indent=2))


def waiting_points(folder: Path) -> list[tuple[Path, TrialConfig]]:
    """The points that wait in a search's folder, in their order, with their files.

    The user is told of files that are damaged, and they wait on.
    """
    points: list[tuple[Path, TrialConfig]] = []
    for path in _files(folder):
        with suppress(FileNotFoundError), damage_told():
            points.append((path, config_in(path, read_json(path))))
    return points


def refuse(file: Path, reason: str) -> None:
    """Let a point wait no more that cannot be trained; its file stays, under another name."""
    tell(f"{file} is not trained: {reason}")
    file.rename(f"{file}.refused")


def _files(folder: Path) -> list[Path]:
    """The files of waiting points; other files there are somebody else's."""
    paths = sorted((folder / QUEUE).glob("*.json"))
    return [path for path in paths if re.fullmatch(r"[0-9]{6,}-.*", path.name)]
