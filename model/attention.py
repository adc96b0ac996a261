"""Causal attention: torch's own kernel, and on a CPU in blocks of matrix products.

torch's CPU kernel reaches a sixth of the machine's matrix-multiply rate, and its backward pass
computes the masked half too. Matrix products for one block of queries at a time avoid both.

Shapes: B batch, H heads of queries, G heads of keys and values, N = B · G, T time, K d_head;
R = T · H / G rows of queries, a token's beside one another; of one block: M of N, Q rows, S keys.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

softmax_backward = torch.ops.aten._softmax_backward_data
Place = tuple[slice, slice]
BLOCK_QUERIES = 128
BLOCK_SCORES = 2**20  # of a block: 2 MB in bf16, which fit into a CPU's cache
GPU_BLOCK_SCORES = 2**25  # with fewer, a GPU waits for the launches of its kernels


class Sight(NamedTuple):
    """How many tokens a token sees, itself included, or all; and a bound of the scores, or 0."""

    window: int | None = None
    soft_cap: float = 0.0

    def needs_blocks(self, device: str) -> bool:
        """Whether that is for our own kernel, which a CPU always has."""
        return device == "cpu" or self != EVERYTHING


EVERYTHING = Sight()


def causal_attention(
    q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, sight: Sight = EVERYTHING
) -> Tensor:
    """Scaled dot-product attention of each token to itself and earlier ones: [B, H, T, K].

    H / G neighbouring heads of queries share a head of keys and values (Ainslie et al. 2023, GQA).
    """
    shape, kv_heads = q_BHTK.shape, k_BGTK.shape[1]
    if not sight.needs_blocks(q_BHTK.device.type):
        # Not every kernel has shared heads.
        k_BHTK, v_BHTK = (x.repeat_interleave(shape[1] // kv_heads, 1) for x in (k_BGTK, v_BGTK))
        return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
    q_NRK = q_BHTK.unflatten(1, (kv_heads, -1)).transpose(2, 3).flatten(2, 3).flatten(0, 1)
    k_NTK, v_NTK = k_BGTK.flatten(0, 1), v_BGTK.flatten(0, 1)
    mixed_NRK: Tensor = _BlockwiseAttention.apply(q_NRK, k_NTK, v_NTK, sight)  # pyright: ignore
    mixed_BGTRK = mixed_NRK.unflatten(1, (shape[2], -1)).unflatten(0, (-1, kv_heads))
    return mixed_BGTRK.transpose(2, 3).flatten(1, 2)


class Past:
    """The keys and values of a layer's earlier tokens: later ones attend to them too.

    Several tokens at once can only be the first.
    """

    def __init__(self) -> None:
        self._kv_2BGSK: Tensor | None = None

    @property
    def tokens(self) -> int:
        """How many tokens there have been."""
        return 0 if self._kv_2BGSK is None else self._kv_2BGSK.shape[-2]

    def attention(self, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, sight: Sight) -> Tensor:
        """As `causal_attention`, of tokens that come after those of the past, and become past."""
        before, now_2BGTK = self._kv_2BGSK, torch.stack([k_BGTK, v_BGTK])
        self._kv_2BGSK = now_2BGTK if before is None else torch.cat([before, now_2BGTK], dim=-2)
        if before is None:
            return causal_attention(q_BHTK, k_BGTK, v_BGTK, sight)
        k_BGSK, v_BGSK = self._kv_2BGSK[..., -(sight.window or self.tokens) :, :]
        q_BGRK = q_BHTK.squeeze(2).unflatten(1, (k_BGSK.shape[1], -1))
        s_BGRS = q_BGRK @ k_BGSK.mT * _scale(q_BGRK)
        if sight.soft_cap:
            s_BGRS = sight.soft_cap * (s_BGRS / sight.soft_cap).tanh()
        return (s_BGRS.softmax(-1) @ v_BGSK).flatten(1, 2).unsqueeze(2)


class _BlockwiseAttention(torch.autograd.Function):
    """Keeps only its inputs: the backward pass computes the probabilities again."""

    @staticmethod
    def forward(ctx: Any, q_NRK: Tensor, k_NTK: Tensor, v_NTK: Tensor, sight: Sight) -> Tensor:
        ctx.save_for_backward(q_NRK, k_NTK, v_NTK)
        ctx.sight = sight
        q_NRK = q_NRK * _scale(q_NRK)
        mixed_NRK = torch.empty_like(q_NRK)
        for queries, keys, mask in _blocks(q_NRK, k_NTK, sight.window):
            p_MQS, _ = _probabilities(q_NRK[queries], k_NTK[keys], mask, sight.soft_cap)
            torch.bmm(p_MQS, v_NTK[keys], out=mixed_NRK[queries])
        return mixed_NRK

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        q_NRK, k_NTK, v_NTK = ctx.saved_tensors
        q_NRK = q_NRK * _scale(q_NRK)
        grad_mixed_NRK = grad_outputs[0].contiguous()
        grad_q_NRK, grad_k_NTK, grad_v_NTK = map(torch.zeros_like, (q_NRK, k_NTK, v_NTK))
        for queries, keys, mask in _blocks(q_NRK, k_NTK, ctx.sight.window):
            q_MQK, k_MSK, grad_mixed_MQK = q_NRK[queries], k_NTK[keys], grad_mixed_NRK[queries]
            p_MQS, slope_MQS = _probabilities(q_MQK, k_MSK, mask, ctx.sight.soft_cap)
            grad_v_NTK[keys].baddbmm_(p_MQS.mT, grad_mixed_MQK)
            grad_p_MQS = grad_mixed_MQK @ v_NTK[keys].mT
            grad_s_MQS = softmax_backward(grad_p_MQS, p_MQS, -1, p_MQS.dtype)
            if slope_MQS is not None:
                grad_s_MQS *= slope_MQS
            torch.bmm(grad_s_MQS, k_MSK, out=grad_q_NRK[queries])
            grad_k_NTK[keys].baddbmm_(grad_s_MQS.mT, q_MQK)
        grad_q_NRK *= _scale(q_NRK)
        return grad_q_NRK, grad_k_NTK, grad_v_NTK, None


def _blocks(
    q_NRK: Tensor, k_NTK: Tensor, window: int | None
) -> Iterator[tuple[Place, Place, Tensor]]:
    """For each block: where its queries are, where the keys they see, and a mask of the last keys.

    The mask is minus infinity for tokens that are later, or before the window, else zero.
    """
    n, seq_len = k_NTK.shape[:2]
    sharing = q_NRK.shape[1] // seq_len
    rows, earlier = min(BLOCK_QUERIES, seq_len), min(window, seq_len) - 1 if window else None
    scores = BLOCK_SCORES if k_NTK.device.type == "cpu" else GPU_BLOCK_SCORES
    size = max(1, scores // (rows * sharing * seq_len))
    whole_mask = _mask(q_NRK, rows, earlier).repeat_interleave(sharing, 0)
    for first in range(0, n, size):
        for begin in range(0, seq_len, rows):
            some, end = slice(first, first + size), min(begin + rows, seq_len)
            queries = slice(sharing * begin, sharing * end)
            seen = slice(0 if earlier is None else max(0, begin - earlier), end)
            n_masked = whole_mask.shape[1] - rows + end - begin
            mask = whole_mask[: sharing * (end - begin), :n_masked][:, -(end - seen.start) :]
            yield (some, queries), (some, seen), mask


def _mask(q: Tensor, rows: int, earlier: int | None) -> Tensor:
    """[rows, earlier + rows]: each row sees itself and `earlier` tokens, or with None all."""
    shut = q.new_full((rows, (earlier or 0) + rows), -math.inf)
    later = shut.triu(1 + (earlier or 0))
    return later if earlier is None else later + shut.tril(-1)


def _probabilities(
    q_MQK: Tensor, k_MSK: Tensor, mask: Tensor, soft_cap: float
) -> tuple[Tensor, Tensor | None]:
    """Softmax [M, Q, S] of the scores of scaled queries; the slope of a soft cap at these scores.

    The cap is Gemma 2's: cap · tanh(score / cap).
    """
    s_MQS, slope_MQS = q_MQK @ k_MSK.mT, None
    if soft_cap:
        unit_MQS = s_MQS.div_(soft_cap).tanh_()
        s_MQS, slope_MQS = unit_MQS * soft_cap, 1 - unit_MQS.square()
    s_MQS[..., -mask.shape[1] :] += mask
    return s_MQS.softmax(-1, dtype=s_MQS.dtype), slope_MQS  # autocast would have fp32 on a GPU


def _scale(q: Tensor) -> float:
    return q.shape[-1] ** -0.5
