"""A step that a GPU replays as one CUDA graph, whose launches cost the host almost nothing.

A step launches some 840 kernels, and most of them are shorter than their launch. On an H200 a step
of the paper's baseline takes 6.7 ms replayed, and 17 to 31 ms launched kernel by kernel. Compiled
layers alone save nothing; beside the graph they save 1 ms a step and cost 10 s at the start.

A graph keeps the memory of its step for itself. Evaluations take theirs beside it.

Shapes: B batch, T time.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

Step = Callable[[Tensor], tuple[Tensor, ...]]


class CapturedStep:
    """`step` on batches [B, T + 1] of one shape: recorded once, replayed by each call.

    Recording computes nothing. A replay reads and writes the tensors that the recorded step did, so
    they must stay where they are; Python runs no more, so no number of it can change. `step` must
    have run before, see `on_side_stream`.
    Raises RuntimeError where it cannot be recorded: it waits for the device, or does not fit.
    """

    def __init__(self, step: Step, batch_BT: Tensor) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._batch_BT = batch_BT.clone()
        with _given_back(), torch.cuda.graph(self._graph):
            self._measured = step(self._batch_BT)

    def __call__(self, batch_BT: Tensor) -> tuple[Tensor, ...]:
        """One step; what it returns is a copy, since the next replay writes to the same place."""
        self._batch_BT.copy_(batch_BT)
        self._graph.replay()
        return tuple(measured.clone() for measured in self._measured)


@contextmanager
def _given_back() -> Generator[None]:
    """The stream and the random numbers, which a recording that fails leaves as if it went on."""
    random = torch.cuda.default_generators[torch.cuda.current_device()]
    fresh = random.clone_state()
    try:
        with torch.cuda.stream(torch.cuda.current_stream()):
            yield
    except RuntimeError:
        random.graphsafe_set_state(fresh)
        raise


@cache
def _side_stream() -> torch.cuda.Stream:
    """One for all trials of a process: cuBLAS keeps 67 MB for each stream that it has seen."""
    return torch.cuda.Stream()


def on_side_stream(step: Step, batch_BT: Tensor) -> tuple[Tensor, ...]:
    """One step as it is, away from the current stream, as torch wants the one before recording.

    It loads libraries and makes the optimizer's state, which a recording cannot.
    """
    current, side = torch.cuda.current_stream(), _side_stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        measured = step(batch_BT)
    current.wait_stream(side)
    return measured
