"""The norms that a decoder can have. None has a bias.

Shapes: D width.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quarterhour.model.precision import compute_dtype
from quarterhour.model.rms_norm import RMSNorm, widened

NormName = Literal["rms", "layer"]


class LayerNorm(nn.Module):
    """(x - mean(x)) / sqrt(var(x) + 1e-5) · weight over the last dimension, in `compute_dtype`.

    Ba et al. 2016.
    """

    EPS = 1e-5

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        return F.layer_norm(widened(x), self.weight.shape, self.weight, eps=self.EPS).to(
            compute_dtype(x)
        )


NORMS: dict[NormName, type[RMSNorm | LayerNorm]] = {"rms": RMSNorm, "layer": LayerNorm}
