"""Muon for the matrices of a decoder's layers, AdamW for everything else.

Jordan et al. 2024. torch.optim.Muon gives the same numbers, but its step waits for a GPU.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS, ITERATIONS, EPS = (3.4445, -4.7750, 2.0315), 5, 1e-7


class MuonWithAdamW(torch.optim.AdamW):
    """Groups with a `momentum` have Muon's update, the others AdamW's.

    They are one optimizer, so that a loss scaler skips an update of all or of none. A group's
    `rows` are those of several matrices in one parameter; each has its own update.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore
        """Update everything; Muon's parameters have no gradient left, which AdamW passes over."""
        for group in self.param_groups:
            for parameter in group["params"] if "momentum" in group else ():
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
                    parameter.grad = None
        super().step()

    def _update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state, rate = self.state[parameter], group["lr"]
        if not state:  # torch's AdamW wants a step in every state
            state |= {"step": torch.zeros(()), "momentum": torch.zeros_like(parameter)}
        momentum = state["momentum"]
        skipped = getattr(self, "found_inf", None)  # of a loss scaler, whom the host must not ask
        if skipped is not None:
            grad = torch.where(skipped.bool(), momentum, grad)
            rate = torch.where(skipped.bool(), 0.0, rate)
        momentum.lerp_(grad, 1 - group["momentum"])
        nesterov = torch.lerp(grad, momentum, group["momentum"])
        parameter.mul_(1 - rate * group["weight_decay"])
        parameter.sub_(_orthogonal(nesterov, group["rows"]) * rate)


def _orthogonal(matrices: Tensor, rows: Sequence[int] | None) -> Tensor:
    """Each matrix with singular values near 1, times the root of its height by its width."""
    parts = matrices.split(rows) if rows else [matrices]
    return torch.cat([_zeroth_power(m) * max(1.0, len(m) / m.shape[1]) ** 0.5 for m in parts])


def _zeroth_power(matrix: Tensor) -> Tensor:
    """Newton and Schulz's iteration towards U V^T of U S V^T, in bf16 as published."""
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16()
    if is_tall := len(x) > x.shape[1]:
        x = x.T
    x = x / x.norm().clamp(min=EPS)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if is_tall else x).to(matrix.dtype)
