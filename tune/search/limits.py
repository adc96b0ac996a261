"""When a search begins no more trials: its limits, its clock, and what gets in its way."""

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from quarterhour.data.files import write_text
from quarterhour.tune.run_folder import ELAPSED
from quarterhour.tune.run_reader import elapsed_seconds

# In a row; after them a search stops.
MOST_FAILURES = 5
MOST_UNTRAINED = 50


@dataclass(frozen=True, kw_only=True)
class Limits:
    """A search ends after so many trials, or so many hours over all its starts. None is never.

    Raises ValueError for limits that let nothing begin.
    """

    trials: int | None
    hours: float | None

    def __post_init__(self) -> None:
        if self.trials is not None and self.trials < 1:
            raise ValueError(f"--trials is {self.trials}: it must be at least 1")
        if self.hours is not None and not self.hours > 0:
            raise ValueError(f"--hours is {self.hours}: it must be above 0")

    def reached(self, trials: int, seconds: float) -> bool:
        """Whether a search with so many trials, after so many seconds, is at its end."""
        if self.trials is not None and trials >= self.trials:
            return True
        return self.hours is not None and seconds >= self.hours * 3600


class SearchClock:
    """Seconds that a search has run, over all its starts; kept in its folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / ELAPSED
        self._began = time.monotonic() - elapsed_seconds(folder)

    @property
    def seconds(self) -> float:
        """Seconds until now."""
        return time.monotonic() - self._began

    def save(self) -> None:
        """Remember them for the next start."""
        write_text(self._path, json.dumps({"seconds": self.seconds}))


@dataclass(kw_only=True)
class Obstacles:
    """What gets in a search's way: a full disk, failures in a row, nothing left to train."""

    folder: Path
    bytes_needed: float
    failures_in_a_row: int = 0
    untrained_in_a_row: int = 0

    def worst(self) -> str | None:
        """Why no trial may begin, or None."""
        if self.untrained_in_a_row >= MOST_UNTRAINED:
            return (
                f"the last {self.untrained_in_a_row} points were known already or do not fit in"
                " memory or budget"
            )
        if self.failures_in_a_row >= MOST_FAILURES:
            return f"the last {self.failures_in_a_row} trials failed"
        if shutil.disk_usage(self.folder).free < self.bytes_needed:
            return f"its disk has less than {self.bytes_needed / 1e6:,.0f} MB free"
        return None
