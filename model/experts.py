"""A mixture of experts: each token goes through those that a router chooses. No token is dropped.

Shapes: N tokens, D d_model, F d_ff, E experts, A active experts, S = N · A places of tokens.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quarterhour.model.precision import compute_dtype
from quarterhour.model.rms_norm import widened


def route(x_ND: Tensor, router_ED: Tensor, active: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [N, A] and numbers [N, A] of each token's experts, and all probabilities [N, E].

    In fp32, or in the model's own precision where that is higher. A token's weights add up to 1
    (Jiang et al. 2024, Mixtral).
    """
    with torch.autocast(x_ND.device.type, enabled=False):
        p_NE = F.linear(widened(x_ND), widened(router_ED)).softmax(-1)
        w_NA, chosen_NA = p_NE.topk(active, dim=-1)
        return w_NA / w_NA.sum(-1, keepdim=True), chosen_NA, p_NE


def shares(chosen_NA: Tensor, p_NE: Tensor) -> Tensor:
    """Of each expert the share of tokens that it gets, and its mean probability: [2, E]."""
    chosen_NE = torch.zeros_like(p_NE).scatter(1, chosen_NA, 1.0)
    return torch.stack([chosen_NE.mean(0), p_NE.mean(0)])


def mix_sorted(
    x_ND: Tensor,
    w_NA: Tensor,
    chosen_NA: Tensor,
    matrices: tuple[Tensor, Tensor, Tensor],
) -> Tensor:
    """The weighted sum [N, D] of each token's experts: up and gate [E, F, D], down [E, D, F].

    Tokens are sorted by expert, and each expert has one product for all of its own. The host has to
    know how many those are, so this is for a CPU.
    """
    active, n_experts = chosen_NA.shape[1], len(matrices[0])
    order_S = chosen_NA.flatten().argsort(stable=True)
    counts = chosen_NA.flatten().bincount(minlength=n_experts).tolist()
    token_S = order_S // active
    up_EFD, gate_EFD, down_EDF = (matrix.to(compute_dtype(x_ND)) for matrix in matrices)
    x_SD = x_ND.index_select(0, token_S).to(up_EFD.dtype)
    hidden_SF = F.silu(_grouped(x_SD, gate_EFD, counts)) * _grouped(x_SD, up_EFD, counts)
    out_SD = _grouped(hidden_SF, down_EDF, counts)
    out_NAD = out_SD.index_select(0, order_S.argsort()).unflatten(0, (-1, active))
    return (w_NA.unsqueeze(1).to(out_NAD.dtype) @ out_NAD).squeeze(1)


def mix_all(
    x_ND: Tensor,
    w_NA: Tensor,
    chosen_NA: Tensor,
    matrices: tuple[Tensor, Tensor, Tensor],
) -> Tensor:
    """The same by all experts on all tokens, which takes E / A times the products.

    No shape depends on the data, so that a GPU waits for nothing and can replay it.
    """
    up_EFD, gate_EFD, down_EDF = (matrix.to(compute_dtype(x_ND)) for matrix in matrices)
    x_1ND = x_ND.to(up_EFD.dtype).unsqueeze(0)
    hidden_ENF = F.silu(x_1ND @ gate_EFD.mT) * (x_1ND @ up_EFD.mT)
    w_NE = w_NA.new_zeros(len(x_ND), len(up_EFD)).scatter(1, chosen_NA, w_NA)
    weighted_ENF = hidden_ENF * w_NE.T.unsqueeze(-1).to(hidden_ENF.dtype)
    return (weighted_ENF @ down_EDF.mT).sum(0)


def _grouped(x_SI: Tensor, matrices_EOI: Tensor, counts: list[int]) -> Tensor:
    product: Tensor = _GroupedProduct.apply(x_SI, matrices_EOI, counts)  # pyright: ignore
    return product


class _GroupedProduct(torch.autograd.Function):
    """Rows [S, I], sorted by expert, times the matrix [O, I] of theirs: [S, O].

    Slices of one tensor under autograd would each have a gradient as large as all matrices.
    """

    @staticmethod
    def forward(ctx: Any, x_SI: Tensor, matrices_EOI: Tensor, counts: list[int]) -> Tensor:
        ctx.save_for_backward(x_SI, matrices_EOI)
        ctx.counts = counts
        out_SO = x_SI.new_empty(len(x_SI), matrices_EOI.shape[1])
        parts = zip(x_SI.split(counts), matrices_EOI, out_SO.split(counts), strict=True)
        for x_MI, matrix_OI, out_MO in parts:
            torch.mm(x_MI, matrix_OI.T, out=out_MO)
        return out_SO

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x_SI, matrices_EOI = ctx.saved_tensors
        grad_x_SI, grad_EOI = torch.empty_like(x_SI), torch.empty_like(matrices_EOI)
        rows = (each.split(ctx.counts) for each in (x_SI, grad_outputs[0], grad_x_SI))
        for x_MI, grad_MO, grad_x_MI, matrix_OI, grad_OI in zip(
            *rows, matrices_EOI, grad_EOI, strict=True
        ):
            torch.mm(grad_MO, matrix_OI, out=grad_x_MI)
            torch.mm(grad_MO.T, x_MI, out=grad_OI)
        return grad_x_SI, grad_EOI, None
