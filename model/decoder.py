"""The study's decoder: pre-norm, ungated feed-forward, tied embedding, no biases; and its variants.

Shapes: B batch, T time, D d_model, H heads, K d_head = D / H, F d_ff, V vocabulary.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quarterhour.model.attention import causal_attention
from quarterhour.model.choice import CHOICE
from quarterhour.model.feed_forward import FEED_FORWARDS, FeedForwardName
from quarterhour.model.norms import NORMS, NormName
from quarterhour.model.rms_norm import RMSNorm

INIT_STD = 0.02
ROPE_BASE = 1024


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes and parts of a decoder. Raises ValueError if they do not fit together.

    `heads_per_kv` heads of queries share a head of keys and values. `norm_place` is that of a norm
    before each branch, or one after it too; `qk_norm` is of each head's queries and keys.
    """

    vocab_size: int
    d_model: int
    n_heads: int
    n_layers: int
    d_ff: int
    positions: Literal["none", "rope"] = "none"
    dropout: float = 0.0
    heads_per_kv: int = field(default=1, metadata=CHOICE)
    norm: NormName = field(default="rms", metadata=CHOICE)
    norm_place: Literal["pre", "pre-and-post"] = field(default="pre", metadata=CHOICE)
    qk_norm: Literal["none", "rms"] = field(default="none", metadata=CHOICE)
    feed_forward: FeedForwardName = field(default="silu", metadata=CHOICE)

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "n_heads", "n_layers", "d_ff", "heads_per_kv"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}: it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout is {self.dropout}: it must be at least 0 and below 1")
        if self.d_model % self.n_heads:
            raise ValueError(
                f"model.n_heads is {self.n_heads}: it must divide model.d_model {self.d_model}"
            )
        if self.n_heads % self.heads_per_kv:
            raise ValueError(
                f"model.heads_per_kv is {self.heads_per_kv}: it must divide model.n_heads"
                f" {self.n_heads}"
            )
        if self.positions == "rope" and self.d_head % 4:
            raise ValueError(
                f"model.d_model / model.n_heads is {self.d_head}: positions 'rope' needs a multiple"
                " of 4; change either, or use positions 'none'"
            )

    @property
    def d_head(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads

    @property
    def kv_heads(self) -> int:
        """Heads of keys, and of values."""
        return self.n_heads // self.heads_per_kv

    @property
    def qkv_widths(self) -> list[int]:
        """Widths of queries, keys and values."""
        return [self.d_model, *2 * [self.kv_heads * self.d_head]]

    @property
    def d_qkv(self) -> int:
        """Their width together."""
        return sum(self.qkv_widths)

    @property
    def parameters(self) -> int:
        """Number of trained parameters; the tied embedding counts once."""
        norms = self.branch_norms * self.d_model + (2 * self.d_head if self.qk_norm == "rms" else 0)
        per_layer = self.layer_matrices + norms
        return self.vocab_size * self.d_model + self.n_layers * per_layer + self.d_model

    @property
    def branch_norms(self) -> int:
        """Norms of a layer as wide as the decoder."""
        return 4 if self.norm_place == "pre-and-post" else 2

    @property
    def layer_matrices(self) -> int:
        """Number of a layer's parameters that are in matrices."""
        widening = FEED_FORWARDS[self.feed_forward].matrices * self.d_ff
        return self.d_model * (self.d_qkv + self.d_model + widening)

    def flops_per_token(self, seq_len: int) -> int:
        """Training FLOPs a token: 6 a parameter, plus causal attention.

        Attention is half of the 12 · layers · d_model · seq_len of Chowdhery et al. 2022 (PaLM),
        appendix B, since a token attends to half of the window on average.
        """
        return 6 * self.parameters + 6 * self.n_layers * self.d_model * seq_len


def rope_table(seq_len: int, d_head: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [T, K / 2], of the half-truncated rotary embedding.

    Half of the head's pairs turn at ROPE_BASE^(-linspace(0, 1)) radians a position; the others
    stand still (reference: "the table intended").
    """
    turning = (1 / ROPE_BASE) ** torch.linspace(0, 1, d_head // 4, device=device)
    frequencies = torch.cat([turning, torch.zeros_like(turning)])
    angles = torch.outer(torch.arange(seq_len, device=device).float(), frequencies)
    return angles.cos(), angles.sin()


def rotate(x_BHTK: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each head vector by its position in time; `table` as `rope_table` gives it."""
    cos_TK, sin_TK = (part.to(x_BHTK.dtype) for part in table)
    first, second = x_BHTK.chunk(2, dim=-1)
    return torch.cat([first * cos_TK + second * sin_TK, second * cos_TK - first * sin_TK], dim=-1)


class Layer(nn.Module):
    """One layer: a branch of causal attention, then one of a feed-forward."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.d_head, self.heads = config.d_head, (config.n_heads, *2 * (config.kv_heads,))
        kind, norm = FEED_FORWARDS[config.feed_forward], NORMS[config.norm]
        post_norm = norm if config.norm_place == "pre-and-post" else nn.Identity
        qk_norm = RMSNorm if config.qk_norm == "rms" else nn.Identity
        self.attention_norm = norm(config.d_model)
        self.qkv = nn.Linear(config.d_model, config.d_qkv, bias=False)
        self.attention_out = nn.Linear(config.d_model, config.d_model, bias=False)
        self.feed_forward_norm = norm(config.d_model)
        self.up = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=False)
        self.gate = nn.Linear(config.d_model, config.d_ff, bias=False) if kind.gated else None
        self.hidden = kind.hidden
        self.query_norm, self.key_norm = qk_norm(config.d_head), qk_norm(config.d_head)
        self.attention_post_norm = post_norm(config.d_model)
        self.feed_forward_post_norm = post_norm(config.d_model)
        self.dropout = nn.Dropout(config.dropout)

    def attention(self, x_BTD: Tensor, table: tuple[Tensor, Tensor] | None) -> Tensor:
        """Causal self-attention: [B, T, D] to [B, T, D]."""
        heads_BHTK = self.qkv(x_BTD).unflatten(-1, (-1, self.d_head)).transpose(1, 2)
        q_BHTK, k_BGTK, v_BGTK = heads_BHTK.split(self.heads, 1)
        q_BHTK, k_BGTK = self.query_norm(q_BHTK), self.key_norm(k_BGTK)
        if table is not None:
            q_BHTK, k_BGTK = rotate(q_BHTK, table), rotate(k_BGTK, table)
        mixed_BHTK = causal_attention(q_BHTK, k_BGTK, v_BGTK)
        return self.attention_out(mixed_BHTK.transpose(1, 2).flatten(2))

    def feed_forward(self, x_BTD: Tensor) -> Tensor:
        """Each token for itself: [B, T, D] to [B, T, D]."""
        widening = (self.up, self.gate) if self.gate else (self.up,)
        return self.down(self.hidden(*(matrix(x_BTD) for matrix in widening)))

    def forward(self, x_BTD: Tensor, table: tuple[Tensor, Tensor] | None) -> Tensor:
        """One layer on the residual stream: [B, T, D] to [B, T, D]."""
        mixed_BTD = self.attention(self.attention_norm(x_BTD), table)
        x_BTD = x_BTD + self.dropout(self.attention_post_norm(mixed_BTD))
        changed_BTD = self.feed_forward(self.feed_forward_norm(x_BTD))
        return x_BTD + self.dropout(self.feed_forward_post_norm(changed_BTD))


class Decoder(nn.Module):
    """The language model. Weights are drawn on the CPU, so `seed` means the same everywhere."""

    def __init__(self, config: DecoderConfig, seed: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.final_norm = NORMS[config.norm](config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INIT_STD, generator=generator)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Final hidden states [B, T, D] of token ids [B, T]; the head is in `loss` and `logits`."""
        table = None
        if self.config.positions == "rope":
            table = rope_table(tokens_BT.shape[1], self.config.d_head, tokens_BT.device)
        x_BTD = self.dropout(self.embedding(tokens_BT) * math.sqrt(self.config.d_model))
        for layer in self.layers:
            x_BTD = layer(x_BTD, table)
        return self.final_norm(x_BTD)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., D], by the tied embedding."""
        return F.linear(hidden, self.embedding.weight)
