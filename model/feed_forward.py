"""The feed-forward parts that a layer can have.

Shapes: F d_ff.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor

FeedForwardName = Literal["silu", "relu2", "swiglu", "moe"]


class FeedForward(NamedTuple):
    """A token's hidden numbers [..., F] as a function of one product with its vector, or of two.

    `kept` is what the backward pass needs of them, in F a token.
    """

    hidden: Callable[..., Tensor]
    kept: int = 2
    gated: bool = False

    @property
    def matrices(self) -> int:
        """How many there are, with the one that leads back."""
        return 3 if self.gated else 2


def _relu2(up: Tensor) -> Tensor:
    """So et al. 2021 (Primer)."""
    above = F.relu(up)
    return above * above  # a power is taken in fp32 under a GPU's autocast, and kept for backward


def _swiglu(up: Tensor, gate: Tensor) -> Tensor:
    """Shazeer 2020."""
    return F.silu(gate) * up


FEED_FORWARDS: dict[FeedForwardName, FeedForward] = {
    "silu": FeedForward(F.silu),
    "relu2": FeedForward(_relu2),
    "swiglu": FeedForward(_swiglu, kept=4, gated=True),
    "moe": FeedForward(_swiglu, kept=4, gated=True),  # of each expert
}
