"""Cross-entropy and token metrics in blocks of tokens: no tensor is ever tokens x vocabulary.

Shapes: N tokens (batch x time), D d_model, V vocabulary; R tokens of one block, C entries of V;
K bins.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from quarterhour.model.precision import compute_dtype

addmm_into = torch.ops.aten.addmm.dtype_out
BLOCK_ROWS = 512
GPU_BLOCK_ROWS = 2_048  # of the loss: with fewer, a GPU waits for the launches of its kernels
BLOCK_ENTRIES = 8_192  # of the vocabulary, for the embedding's gradient of a block of rows
METRIC_ELEMENTS = 2**20  # of a block of logits: 4 MB, which fit into a CPU's cache
CALIBRATION_BINS = 15  # as in Guo et al. (2017)
# Keeps small gradients above fp16's subnormals on a CPU: the reference's initial loss scale of
# 65,536 over its 4,096 tokens. On a GPU it changed no digit of the gradients' errors.
FP16_GRAD_SCALE = 16.0


def block_rows(device: str) -> int:
    """Tokens whose logits the loss holds at once, on a device of that type."""
    return BLOCK_ROWS if device == "cpu" else GPU_BLOCK_ROWS


class _MeanCrossEntropy(torch.autograd.Function):
    """Computes the gradients in the forward pass, while a block's logits are there.

    All blocks share one buffer: on a CPU, fresh memory costs as much as the arithmetic.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, embedding_VD: Tensor, targets_N: Tensor, z_loss: float
    ) -> Tensor:
        h_ND, e_VD = (x.to(compute_dtype(x)) for x in (hidden_ND, embedding_VD))
        grad_h_ND, grad_e_VD = torch.empty_like(h_ND), torch.zeros_like(embedding_VD)
        device = h_ND.device.type
        rows = block_rows(device)
        buffer_RV = h_ND.new_empty(min(rows, len(h_ND)), len(e_VD))
        rows_R = torch.arange(len(buffer_RV), device=buffer_RV.device)
        is_scaled = device == "cpu" and h_ND.dtype == torch.float16
        grad_scale = FP16_GRAD_SCALE if is_scaled else 1.0
        loss_sum = hidden_ND.new_zeros((), dtype=torch.float32)
        blocks = zip(*(x.split(rows) for x in (h_ND, grad_h_ND, targets_N)), strict=True)
        for h_RD, grad_h_RD, target_R in blocks:
            block_RV = buffer_RV[: len(h_RD)]
            block_sum, logsumexp_R1 = _softmax_(block_RV, h_RD, e_VD, target_R.unsqueeze(1))
            loss_sum += block_sum
            if z_loss:
                block_RV.mul_((1 + 2 * z_loss * logsumexp_R1).to(block_RV.dtype))
            if grad_scale != 1:
                block_RV.mul_(grad_scale)
            block_RV[rows_R[: len(h_RD)], target_R] -= grad_scale  # scatter_add_ copies the block
            torch.mm(block_RV, e_VD, out=grad_h_RD)
            _add_product_(grad_e_VD, block_RV, h_RD)
        ctx.save_for_backward(grad_h_ND, grad_e_VD)
        ctx.hidden_dtype, ctx.grad_scale = hidden_ND.dtype, grad_scale
        return loss_sum / len(h_ND)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad_h_ND, grad_e_VD = ctx.saved_tensors
        scale = grad_outputs[0] / (ctx.grad_scale * len(grad_h_ND))
        return grad_h_ND.to(ctx.hidden_dtype) * scale, grad_e_VD.mul_(scale), None, None


def _add_product_(sum_VD: Tensor, block_RV: Tensor, h_RD: Tensor) -> None:
    """Add block.T @ h to an fp32 sum: on a GPU in fp32, elsewhere by pieces in `h`'s dtype."""
    if sum_VD.device.type != "cuda":
        pieces = zip(sum_VD.split(BLOCK_ENTRIES), block_RV.split(BLOCK_ENTRIES, 1), strict=True)
        for sum_CD, block_RC in pieces:
            sum_CD += block_RC.T @ h_RD
    elif h_RD.dtype == torch.float32:
        sum_VD.addmm_(block_RV.T, h_RD)
    else:
        addmm_into(sum_VD, block_RV.T, h_RD, torch.float32, out=sum_VD)


def _softmax_(
    out_RV: Tensor, h_RD: Tensor, e_VD: Tensor, target_R1: Tensor
) -> tuple[Tensor, Tensor]:
    """Fill `out_RV` with the tokens' probabilities.

    Returns the block's summed loss in nats, and the logarithms of the sums of exponentials [R, 1].
    """
    torch.mm(h_RD, e_VD.T, out=out_RV)
    target_logit_R1, max_logit_R1 = out_RV.gather(1, target_R1), out_RV.amax(1, keepdim=True)
    torch.softmax(out_RV, 1, out=out_RV)
    # logsumexp by way of the likeliest token: its probability is at least 1 / V, in fp16 too.
    logsumexp_R1 = max_logit_R1.float() - out_RV.amax(1, keepdim=True).float().log()
    return (logsumexp_R1 - target_logit_R1.float()).sum(), logsumexp_R1


def mean_cross_entropy(
    hidden_ND: Tensor, embedding_VD: Tensor, targets_N: Tensor, z_loss: float = 0.0
) -> Tensor:
    """Mean next-token loss in nats, differentiable in hidden states and embedding.

    The same value and gradients as `F.cross_entropy(hidden @ embedding.T, targets)`, computed in
    the autocast dtype with the loss and the embedding's gradient summed in fp32. The gradients are
    those of the loss and `z_loss` · logsumexp² (Chowdhery et al. 2022, PaLM).
    """
    loss: Tensor = _MeanCrossEntropy.apply(  # pyright: ignore
        hidden_ND, embedding_VD, targets_N, z_loss
    )
    return loss


@torch.no_grad()
def token_loss(hidden_ND: Tensor, embedding_VD: Tensor, targets_N: Tensor) -> Tensor:
    """`mean_cross_entropy` without gradients, as a 0-d fp32 tensor."""
    h_ND, e_VD = (x.to(compute_dtype(x)) for x in (hidden_ND, embedding_VD))
    rows = block_rows(h_ND.device.type)
    buffer_RV = h_ND.new_empty(min(rows, len(h_ND)), len(e_VD))
    losses = [
        _softmax_(buffer_RV[: len(h_RD)], h_RD, e_VD, target_R.unsqueeze(1))[0]
        for h_RD, target_R in zip(h_ND.split(rows), targets_N.split(rows), strict=True)
    ]
    return torch.stack(losses).sum() / len(h_ND)


def _logits(h_ND: Tensor, e_VD: Tensor, targets_N: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The tokens' logits in fp32 and their targets, on a CPU in blocks of METRIC_ELEMENTS.

    They are computed in blocks of BLOCK_ROWS, which a GPU takes whole: products of a few rows take
    twice as long.
    """
    on_cpu = h_ND.device.type == "cpu"
    rows = max(1, METRIC_ELEMENTS // len(e_VD)) if on_cpu else BLOCK_ROWS
    buffer_RV = h_ND.new_empty(min(BLOCK_ROWS, len(h_ND)), len(e_VD))
    for h_RD, target_R in zip(h_ND.split(BLOCK_ROWS), targets_N.split(BLOCK_ROWS), strict=True):
        block_RV = torch.mm(h_RD, e_VD.T, out=buffer_RV[: len(h_RD)])
        for logits_RV, part_R in zip(block_RV.split(rows), target_R.split(rows), strict=True):
            yield logits_RV.float(), part_R


@torch.no_grad()
def token_metrics(
    hidden_ND: Tensor, embedding_VD: Tensor, targets_N: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Means over tokens of the reference's measures, as 0-d fp32 tensors, and calibration bins.

    loss (nats) · accuracy · top5_accuracy · confidence (mean of the largest probability) ·
    entropy (nats, finite in fp16, since it is taken from fp32 probabilities).
    Bins [3, K]: number of tokens, sum of their confidences, number predicted correctly, by
    confidence in K intervals of equal width from 0 to 1.
    """
    h_ND, e_VD = (x.to(compute_dtype(x)) for x in (hidden_ND, embedding_VD))
    sums = torch.zeros(5, device=h_ND.device)
    bins_3K = torch.zeros(3, CALIBRATION_BINS, device=h_ND.device)
    bins_K = torch.arange(CALIBRATION_BINS, device=h_ND.device)
    for logits_RV, target_R in _logits(h_ND, e_VD, targets_N):
        block_sums, counted_3K = _block_metrics(logits_RV, target_R, bins_K)
        sums += block_sums
        bins_3K += counted_3K
    names = ("loss", "accuracy", "top5_accuracy", "confidence", "entropy")
    return dict(zip(names, (sums / len(h_ND)).unbind(), strict=True)), bins_3K


def _block_metrics(logits_RV: Tensor, target_R: Tensor, bins_K: Tensor) -> tuple[Tensor, Tensor]:
    """A block's sums of the five measures [5], and its bins [3, K].

    Its probabilities are freed before those of the next block are made.
    """
    p_RV = logits_RV.softmax(1)
    confidence_R = p_RV.amax(1)
    logsumexp_R = logits_RV.amax(1) - confidence_R.log()
    hits_R5 = logits_RV.topk(min(5, logits_RV.shape[1]), 1).indices == target_R.unsqueeze(1)
    measures_5R = [
        logsumexp_R - logits_RV.gather(1, target_R.unsqueeze(1)).squeeze(1),
        hits_R5[:, 0],
        hits_R5.any(1),
        confidence_R,
        # Not a matrix product, which autocast rounds; in place, since a GPU's block is large.
        logsumexp_R - p_RV.mul_(logits_RV).sum(1),
    ]
    bin_R = (confidence_R * CALIBRATION_BINS).long().clamp_(0, CALIBRATION_BINS - 1)
    counted_3R = torch.stack([torch.ones_like(confidence_R), confidence_R, hits_R5[:, 0]])
    counted_3K = (counted_3R.unsqueeze(2) * (bin_R.unsqueeze(1) == bins_K)).sum(1)
    return torch.stack([measure_R.sum() for measure_R in measures_5R]), counted_3K
