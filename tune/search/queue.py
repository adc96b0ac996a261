"""Points that a user adds to a search, also while it runs: one file each in its folder."""

import json
import uuid
from dataclasses import asdict
from pathlib import Path

from quarterhour.data.files import write_text
from quarterhour.search_spaces.point import TrialConfig
from quarterhour.tune.run_folder import QUEUE


def add_point(folder: Path, config: TrialConfig) -> None:
    """Let a point wait in a search's folder, behind those that wait there."""
    queue = folder / QUEUE
    queue.mkdir(exist_ok=True)
    numbers = [int(path.name.split("-")[0]) for path in queue.glob("*.json")]
    name = f"{max(numbers, default=-1) + 1:06d}-{uuid.uuid4().hex[:8]}.json"
    write_text(queue / name, json.dumps(asdict(config), indent=2))


def waiting_points(folder: Path) -> list[tuple[Path, TrialConfig]]:
    """The points that wait in a search's folder, in their order, with their files."""
    paths = sorted((folder / QUEUE).glob("*.json"))
    return [(path, TrialConfig.from_dict(json.loads(path.read_text()))) for path in paths]
