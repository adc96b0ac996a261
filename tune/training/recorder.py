"""What a trial writes while it trains: `metrics.jsonl`, `samples.json` and its events."""

import json
import os
from collections.abc import Mapping, Sequence

from quarterhour.data.files import write_text
from quarterhour.tune.ledger import TrialSpec
from quarterhour.tune.run_folder import HELDOUT_LOSS, METRICS, SAMPLES, Row, Status
from quarterhour.tune.run_reader import read_rows, read_samples
from quarterhour.tune.training.events import TrialEvents


class Recorder:
    """Opens a trial's record as of `step`: what was written after that step is removed.

    Raises DamagedError where the rows of its folder are damaged; damaged samples are told and begun
    anew. Every method raises OSError where it cannot write.
    """

    def __init__(self, spec: TrialSpec, step: int) -> None:
        rows = [row for row in read_rows(spec.folder) if row["step"] <= step]
        write_text(spec.folder / METRICS, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = (spec.folder / METRICS).open("a")
        self._samples_path = spec.folder / SAMPLES
        samples = read_samples(spec.folder)
        self._samples = [sample for sample in samples if sample["step"] <= step]
        self._events = TrialEvents(spec)
        for row in rows:
            self._events.add_row(row)
            if of_row := [s for s in self._samples if s["step"] == row["step"]]:
                self._events.add_samples(row["step"], of_row)
        self._events.flush()
        self.last_row: Row = rows[-1] if rows else {}

    def write(self, row: Row) -> None:
        """Append one row, which readers see at once.

        One with a held-out loss is seen from other machines too: a search judges by it.
        """
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if HELDOUT_LOSS in row:
            self.sync()
        self._events.add_row(row)
        self._events.flush()
        self.last_row = row

    def write_samples(self, samples: Sequence[Mapping[str, str]]) -> None:
        """Put the last row's samples, each a prompt and its continuation, before earlier ones."""
        step = self.last_row["step"]
        self._samples = [{"step": step, **sample} for sample in samples] + self._samples
        write_text(self._samples_path, json.dumps(self._samples, indent=2))
        self._events.add_samples(step, samples)
        self._events.flush()

    def write_ending(self, status: Status) -> None:
        """Show how the trial ended; the caller writes its `result.json`."""
        self._events.add_ending(status, self.last_row["step"])

    def sync(self) -> None:
        """Make the rows so far survive a loss of power, and leave this machine."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        self._events.close()
