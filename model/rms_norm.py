"""RMSNorm that keeps less than torch's and reads memory fewer times on a CPU.

Shapes: D width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quarterhour.model.precision import compute_dtype


def widened(x: Tensor) -> Tensor:
    """`x` in fp32 where it is in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight over the last dimension, in `compute_dtype`.

    Zhang and Sennrich 2019; eps is fp32's machine epsilon, as torch's own default.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        dtype = compute_dtype(x)
        if x.device.type != "cpu":
            return F.rms_norm(widened(x), self.weight.shape, self.weight).to(dtype)
        normed: Tensor = _RMSNorm.apply(x, self.weight, dtype)  # pyright: ignore
        return normed


class _RMSNorm(torch.autograd.Function):
    """Keeps its input, which the residual stream keeps anyway, and one number for each vector."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, dtype: torch.dtype) -> Tensor:
        kept, x = x, widened(x)
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        inverse_rms = mean_square.add_(torch.finfo(torch.float32).eps).rsqrt_()
        ctx.save_for_backward(kept, weight_D, inverse_rms)
        return (x * inverse_rms).mul_(weight_D).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        kept, weight_D, inverse_rms = ctx.saved_tensors
        x = widened(kept)
        grad = grad_outputs[0].to(x.dtype)
        unit = x * inverse_rms
        grad_times_unit = grad * unit
        projection = (grad_times_unit @ weight_D).unsqueeze(-1).div_(-x.shape[-1])
        grad_x = unit.mul_(projection).addcmul_(grad, weight_D).mul_(inverse_rms)
        return grad_x.to(kept.dtype), grad_times_unit.flatten(0, -2).sum(0), None
