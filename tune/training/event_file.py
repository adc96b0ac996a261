"""A file of TensorBoard's events."""

# The generated modules of protocol buffers get their names when they are imported.
# pyright: reportAttributeAccessIssue=false

import itertools
import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

_number_in_process = itertools.count()


class EventFile:
    """A new file of events in `folder`, named as TensorBoard's readers expect.

    TensorBoard's own writer has a thread, which prints a traceback where the disk is full. Here
    every method raises OSError where it cannot write.
    """

    def __init__(self, folder: Path) -> None:
        unique = f"{socket.gethostname()}.{os.getpid()}.{next(_number_in_process)}"
        path = folder / f"events.out.tfevents.{int(time.time()):010d}.{unique}"
        self._file = path.open("xb")
        self._records = RecordWriter(self._file)
        self.add_event(Event(file_version="brain.Event:2"))
        self.flush()

    def add_event(self, event: Event, step: int | None = None) -> None:
        """Add an event of now, after `step` updates."""
        event.wall_time = time.time()
        if step is not None:
            event.step = step
        self._records.write(event.SerializeToString())

    def add_summary(self, summary: Summary, step: int | None = None) -> None:
        """Add an event that consists of a summary."""
        self.add_event(Event(summary=summary), step)

    def flush(self) -> None:
        """Make all that was added visible to readers."""
        self._file.flush()

    def close(self) -> None:
        """Flush and close the file."""
        self._file.close()
