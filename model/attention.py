"""Causal attention: torch's own kernel, and on a CPU in blocks of matrix products.

torch's CPU kernel reaches a sixth of the machine's matrix-multiply rate, and its backward pass
computes the masked half too. Matrix products for one block of queries at a time avoid both.

Shapes: B batch, H heads of queries, G heads of keys and values, N = B · G, T time, K d_head;
R = T · H / G rows of queries, a token's beside one another; of one block: M of N, Q rows, S keys.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

softmax_backward = torch.ops.aten._softmax_backward_data
Place = tuple[slice, slice]
BLOCK_QUERIES = 128
BLOCK_SCORES = 2**20  # of a block: 2 MB in bf16, which fit into a CPU's cache


def causal_attention(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor) -> Tensor:
    """Scaled dot-product attention of each token to itself and earlier ones: [B, H, T, K].

    H / G neighbouring heads of queries share a head of keys and values (Ainslie et al. 2023, GQA).
    """
    shape, kv_heads = q_BHTK.shape, k_BGTK.shape[1]
    if q_BHTK.device.type != "cpu":
        # Not every kernel has shared heads.
        k_BHTK, v_BHTK = (x.repeat_interleave(shape[1] // kv_heads, 1) for x in (k_BGTK, v_BGTK))
        return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
    q_NRK = q_BHTK.unflatten(1, (kv_heads, -1)).transpose(2, 3).flatten(2, 3).flatten(0, 1)
    k_NTK, v_NTK = k_BGTK.flatten(0, 1), v_BGTK.flatten(0, 1)
    mixed_NRK: Tensor = _BlockwiseAttention.apply(q_NRK, k_NTK, v_NTK)  # pyright: ignore
    mixed_BGTRK = mixed_NRK.unflatten(1, (shape[2], -1)).unflatten(0, (-1, kv_heads))
    return mixed_BGTRK.transpose(2, 3).flatten(1, 2)


class _BlockwiseAttention(torch.autograd.Function):
    """Keeps only its inputs: the backward pass computes the probabilities again."""

    @staticmethod
    def forward(ctx: Any, q_NRK: Tensor, k_NTK: Tensor, v_NTK: Tensor) -> Tensor:
        ctx.save_for_backward(q_NRK, k_NTK, v_NTK)
        q_NRK = q_NRK * _scale(q_NRK)
        mixed_NRK = torch.empty_like(q_NRK)
        for queries, keys, mask_QQ in _blocks(q_NRK, k_NTK):
            p_MQS = _probabilities(q_NRK[queries], k_NTK[keys], mask_QQ)
            torch.bmm(p_MQS, v_NTK[keys], out=mixed_NRK[queries])
        return mixed_NRK

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, ...]:
        q_NRK, k_NTK, v_NTK = ctx.saved_tensors
        q_NRK = q_NRK * _scale(q_NRK)
        grad_mixed_NRK = grad_outputs[0].contiguous()
        grad_q_NRK, grad_k_NTK, grad_v_NTK = map(torch.zeros_like, (q_NRK, k_NTK, v_NTK))
        for queries, keys, mask_QQ in _blocks(q_NRK, k_NTK):
            q_MQK, k_MSK, grad_mixed_MQK = q_NRK[queries], k_NTK[keys], grad_mixed_NRK[queries]
            p_MQS = _probabilities(q_MQK, k_MSK, mask_QQ)
            grad_v_NTK[keys].baddbmm_(p_MQS.mT, grad_mixed_MQK)
            grad_p_MQS = grad_mixed_MQK @ v_NTK[keys].mT
            grad_s_MQS = softmax_backward(grad_p_MQS, p_MQS, -1, p_MQS.dtype)
            torch.bmm(grad_s_MQS, k_MSK, out=grad_q_NRK[queries])
            grad_k_NTK[keys].baddbmm_(grad_s_MQS.mT, q_MQK)
        grad_q_NRK *= _scale(q_NRK)
        return grad_q_NRK, grad_k_NTK, grad_v_NTK


def _blocks(q_NRK: Tensor, k_NTK: Tensor) -> Iterator[tuple[Place, Place, Tensor]]:
    """For each block: where its queries are, where the keys they see, and a mask.

    The mask is for the block's own tokens: minus infinity for later ones, else zero.
    """
    n, seq_len = k_NTK.shape[:2]
    sharing = q_NRK.shape[1] // seq_len
    rows = min(BLOCK_QUERIES, seq_len)
    size = max(1, BLOCK_SCORES // (rows * sharing * seq_len))
    future_QQ = q_NRK.new_full((rows, rows), -math.inf).triu(1).repeat_interleave(sharing, 0)
    for first in range(0, n, size):
        for begin in range(0, seq_len, rows):
            some, end = slice(first, first + size), min(begin + rows, seq_len)
            mask_QQ = future_QQ[: sharing * (end - begin), : end - begin]
            yield (some, slice(sharing * begin, sharing * end)), (some, slice(end)), mask_QQ


def _probabilities(q_MQK: Tensor, k_MSK: Tensor, mask_QQ: Tensor) -> Tensor:
    """Softmax [M, Q, S] of the scores of scaled queries of the last of S tokens."""
    s_MQS = q_MQK @ k_MSK.mT
    s_MQS[..., -mask_QQ.shape[1] :] += mask_QQ
    return s_MQS.softmax(-1)


def _scale(q: Tensor) -> float:
    return q.shape[-1] ** -0.5
