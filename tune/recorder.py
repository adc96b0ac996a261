"""Rows of a trial, written live: to its `metrics.jsonl` and to its TensorBoard events."""

import json
import os
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from data.files import write_text
from tune.ledger import METRICS, Row, read_rows

TAGS = {
    "train_loss": "loss/train",
    "eval_loss": "loss/eval",
    "heldout_loss": "loss/heldout",
    "heldout_bits_per_byte": "loss/heldout_bits_per_byte",
    "train_batch_accuracy": "accuracy/train_batch",
    "eval_accuracy": "accuracy/eval",
    "train_batch_top5_accuracy": "accuracy/train_batch_top5",
    "eval_top5_accuracy": "accuracy/eval_top5",
    "eval_confidence": "calibration/eval_confidence",
    "eval_entropy": "calibration/eval_entropy",
    "learning_rate": "optimization/learning_rate",
    "grad_norm": "optimization/grad_norm",
    "tokens_per_second": "throughput/tokens_per_second",
    "step_seconds": "throughput/step_seconds",
    "peak_memory_bytes": "memory/peak_bytes",
}


class Recorder:
    """Opens a trial's record as of `step`: what was written after that is taken back."""

    def __init__(self, folder: Path, step: int) -> None:
        rows = [row for row in read_rows(folder) if row["step"] <= step]
        for events in folder.glob("events.out.tfevents.*"):
            events.unlink()
        write_text(folder / METRICS, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = (folder / METRICS).open("a")
        self._events = SummaryWriter(str(folder))
        self.last_row: Row = rows[-1] if rows else {}
        for row in rows:
            self._add_scalars(row)

    def write(self, row: Row) -> None:
        """Append one row, visible to readers at once."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        self._add_scalars(row)
        self._events.flush()
        self.last_row = row

    def write_sample(self, number: int, prompt: str, continuation: str) -> None:
        """Add a text sample to the events."""
        self._events.add_text(f"samples/{number}", f"**{prompt}**{continuation}")

    def sync(self) -> None:
        """Make the rows so far survive a loss of power."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        self._events.close()

    def _add_scalars(self, row: Row) -> None:
        for name, tag in TAGS.items():
            if row.get(name) is not None:
                self._events.add_scalar(tag, row[name], row["step"])
