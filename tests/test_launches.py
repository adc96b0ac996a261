"""How many kernels a GPU launches at the paper's size: with many, it waits for their launches.

Counted on torch's meta device, which takes the same way through this code as a GPU. It splits
RMSNorm and attention into more operations than a GPU's kernels, and it has no autocast. On an H200
the same code launched 840 kernels in a step.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from quarterhour.model.decoder import Decoder
from quarterhour.model.loss import (
    BLOCK_ROWS,
    GPU_BLOCK_ROWS,
    mean_cross_entropy,
    token_loss,
    token_metrics,
)
from quarterhour.search_spaces.profiles import PAPER

BATCH, SEQ_LEN = PAPER.baseline.data.batch_size, PAPER.baseline.data.seq_len
MODEL = PAPER.baseline.model
Measure = Callable[[Tensor, Tensor, Tensor], Any]


class Launches(TorchDispatchMode):
    """Counts operations that compute something, and the elements of their largest result."""

    count = largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func is not torch.ops.aten._unsafe_view.default:
            self.count += 1
            if isinstance(result, Tensor):
                self.largest = max(self.largest, result.numel())
        return result


def meta_inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, embedding and targets of the paper's baseline, without memory."""
    hidden_ND = torch.empty(BATCH * SEQ_LEN, MODEL.d_model, device="meta", requires_grad=True)
    embedding_VD = torch.empty(MODEL.vocab_size, MODEL.d_model, device="meta", requires_grad=True)
    return hidden_ND, embedding_VD, torch.empty(BATCH * SEQ_LEN, dtype=torch.long, device="meta")


def trained(*inputs: Tensor) -> None:
    mean_cross_entropy(*inputs).backward()


@pytest.mark.parametrize(
    ("measure", "most", "rows"),
    [
        (trained, 65, GPU_BLOCK_ROWS),
        (token_loss, 25, GPU_BLOCK_ROWS),
        (token_metrics, 250, BLOCK_ROWS),
    ],
    ids=["loss", "loss without gradients", "metrics"],
)
def test_loss_and_metrics_launch_few_kernels_and_hold_one_block(
    measure: Measure, most: int, rows: int
):
    with Launches() as launches:
        measure(*meta_inputs())
    assert launches.count <= most
    assert launches.largest == rows * MODEL.vocab_size


def test_a_step_and_the_metrics_of_a_batch_launch_few_kernels():
    decoder = Decoder(MODEL, seed=0).to("meta")
    batch_BT = torch.empty(BATCH, SEQ_LEN + 1, dtype=torch.long, device="meta")

    def measured(measure: Measure) -> int:
        with Launches() as launches:
            hidden_ND = decoder(batch_BT[:, :-1]).flatten(0, 1)
            measure(hidden_ND, decoder.head_weight, batch_BT[:, 1:].flatten())
        return launches.count

    assert measured(trained) <= 1_200
    with torch.no_grad():
        assert measured(token_metrics) <= 700
