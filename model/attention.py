"""Causal attention: torch's own kernel, and on a CPU in blocks of matrix products.

torch's CPU kernel reaches a sixth of the machine's matrix-multiply rate, and its backward pass
computes the masked half too. Matrix products for one block of queries at a time avoid both.

Shapes: B batch, H heads, N = B · H, T time, K d_head; of one block: M of N, Q queries, S keys.
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


def causal_attention(qkv_3BHTK: Tensor) -> Tensor:
    """Scaled dot-product attention of each token to itself and earlier ones: [B, H, T, K].

    `qkv_3BHTK` holds queries, keys and values of H heads: [3, B, H, T, K].
    """
    if qkv_3BHTK.device.type != "cpu":
        q_BHTK, k_BHTK, v_BHTK = qkv_3BHTK.unbind(0)
        return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
    mixed_NTK: Tensor = _BlockwiseAttention.apply(qkv_3BHTK.flatten(1, 2))  # pyright: ignore
    return mixed_NTK.unflatten(0, qkv_3BHTK.shape[1:3])


class Past:
    """The keys and values of a layer's earlier tokens: later ones attend to them too.

    Several tokens at once can only be the first.
    """

    def __init__(self) -> None:
        self._keys_and_values: Tensor | None = None

    @property
    def tokens(self) -> int:
        """How many tokens there have been."""
        return 0 if self._keys_and_values is None else self._keys_and_values.shape[-2]

    def attention(self, qkv_3BHTK: Tensor) -> Tensor:
        """As `causal_attention`, of tokens that come after those of the past, and become past."""
        first, kv_2BHSK = self._keys_and_values is None, qkv_3BHTK[1:]
        if self._keys_and_values is not None:
            kv_2BHSK = torch.cat([self._keys_and_values, kv_2BHSK], dim=-2)
        self._keys_and_values = kv_2BHSK
        k_BHSK, v_BHSK = kv_2BHSK
        return F.scaled_dot_product_attention(qkv_3BHTK[0], k_BHSK, v_BHSK, is_causal=first)


class _BlockwiseAttention(torch.autograd.Function):
    """Keeps only its inputs: the backward pass computes the probabilities again."""

    @staticmethod
    def forward(ctx: Any, qkv_3NTK: Tensor) -> Tensor:
        ctx.save_for_backward(qkv_3NTK)
        q_NTK, k_NTK, v_NTK = qkv_3NTK
        q_NTK = q_NTK * _scale(q_NTK)
        mixed_NTK = torch.empty_like(q_NTK)
        for queries, keys, future_QQ in _blocks(q_NTK):
            p_MQS = _probabilities(q_NTK[queries], k_NTK[keys], future_QQ)
            torch.bmm(p_MQS, v_NTK[keys], out=mixed_NTK[queries])
        return mixed_NTK

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (qkv_3NTK,) = ctx.saved_tensors
        q_NTK, k_NTK, v_NTK = qkv_3NTK
        q_NTK = q_NTK * _scale(q_NTK)
        grad_mixed_NTK = grad_outputs[0].contiguous()
        grad_qkv_3NTK = torch.zeros_like(qkv_3NTK)
        grad_q_NTK, grad_k_NTK, grad_v_NTK = grad_qkv_3NTK
        for queries, keys, future_QQ in _blocks(q_NTK):
            q_MQK, k_MSK, grad_mixed_MQK = q_NTK[queries], k_NTK[keys], grad_mixed_NTK[queries]
            p_MQS = _probabilities(q_MQK, k_MSK, future_QQ)
            grad_v_NTK[keys].baddbmm_(p_MQS.mT, grad_mixed_MQK)
            grad_p_MQS = grad_mixed_MQK @ v_NTK[keys].mT
            grad_s_MQS = softmax_backward(grad_p_MQS, p_MQS, -1, p_MQS.dtype)
            torch.bmm(grad_s_MQS, k_MSK, out=grad_q_NTK[queries])
            grad_k_NTK[keys].baddbmm_(grad_s_MQS.mT, q_MQK)
        grad_q_NTK *= _scale(q_NTK)
        return grad_qkv_3NTK


def _blocks(q_NTK: Tensor) -> Iterator[tuple[Place, Place, Tensor]]:
    """For each block: places in N and T of its queries and of the keys they see, and a mask.

    The mask [Q, Q] is for the block's own tokens: minus infinity for later ones, else zero.
    """
    n, seq_len = q_NTK.shape[:2]
    rows = min(BLOCK_QUERIES, seq_len)
    size = max(1, BLOCK_SCORES // (rows * seq_len))
    future_QQ = q_NTK.new_full((rows, rows), -math.inf).triu(1)
    for first in range(0, n, size):
        for begin in range(0, seq_len, rows):
            some, end = slice(first, first + size), min(begin + rows, seq_len)
            mask_QQ = future_QQ[: end - begin, : end - begin]
            yield (some, slice(begin, end)), (some, slice(end)), mask_QQ


def _probabilities(q_MQK: Tensor, k_MSK: Tensor, future_QQ: Tensor) -> Tensor:
    """Softmax [M, Q, S] of the scores of scaled queries that are the last Q of S tokens."""
    s_MQS = q_MQK @ k_MSK.mT
    s_MQS[..., -len(future_QQ) :] += future_QQ
    return s_MQS.softmax(-1)


def _scale(q: Tensor) -> float:
    return q.shape[-1] ** -0.5
