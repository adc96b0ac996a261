"""The study's decoder: pre-norm, ungated feed-forward, tied embedding, no biases; and its variants.

Shapes: B batch, T time, D d_model, H heads, K d_head = D / H, F d_ff, V vocabulary.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quarterhour.model.attention import Past, Sight, causal_attention
from quarterhour.model.choice import CHOICE
from quarterhour.model.experts import mix_all, mix_sorted, route, shares
from quarterhour.model.feed_forward import FEED_FORWARDS, FeedForwardName
from quarterhour.model.norms import NORMS, NormName
from quarterhour.model.rms_norm import RMSNorm

INIT_STD = 0.02
ROPE_BASE = 1024.0
EXPERTS = ("n_experts", "active_experts")
Positions = Literal["none", "rope", "rope-full"]


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes and parts of a decoder. Raises ValueError if they do not fit together.

    "rope" turns half of each head (reference), "rope-full" all of it. With attention "window" a
    token sees the last `window` tokens, but all in every `full_every`-th layer. Scores stay within
    `soft_cap`; 0 is none. `heads_per_kv` heads of queries share a head of keys and values.
    `norm_place` is that of a norm before each branch, or one after it too; `qk_norm` is of each
    head's queries and keys. With `residual_init` "by-depth" the last matrix of each branch starts
    smaller, by the root of the number of branches. With feed_forward "moe" a router chooses
    `active_experts` of `n_experts` for each token; `d_ff` is the width of one.
    """

    vocab_size: int
    d_model: int
    n_heads: int
    n_layers: int
    d_ff: int
    positions: Positions = "none"
    dropout: float = 0.0
    rope_base: float = field(default=ROPE_BASE, metadata=CHOICE)
    attention: Literal["full", "window"] = field(default="full", metadata=CHOICE)
    window: int = field(default=128, metadata=CHOICE)
    full_every: int = field(default=4, metadata=CHOICE)
    soft_cap: float = field(default=0.0, metadata=CHOICE)
    heads_per_kv: int = field(default=1, metadata=CHOICE)
    norm: NormName = field(default="rms", metadata=CHOICE)
    norm_place: Literal["pre", "pre-and-post"] = field(default="pre", metadata=CHOICE)
    qk_norm: Literal["none", "rms"] = field(default="none", metadata=CHOICE)
    feed_forward: FeedForwardName = field(default="silu", metadata=CHOICE)
    n_experts: int = field(default=8, metadata=CHOICE)
    active_experts: int = field(default=2, metadata=CHOICE)
    head: Literal["tied", "untied"] = field(default="tied", metadata=CHOICE)
    residual_init: Literal["equal", "by-depth"] = field(default="equal", metadata=CHOICE)

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "d_model", "n_heads", "n_layers", "d_ff")
        for name in (*sizes, "heads_per_kv", "window", "full_every", *EXPERTS):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}: it must be at least 1")
        if self.active_experts > self.n_experts:
            raise ValueError(
                f"model.active_experts is {self.active_experts}: it must be at most model.n_experts"
                f" {self.n_experts}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout is {self.dropout}: it must be at least 0 and below 1")
        if not 0 <= self.soft_cap < math.inf:
            raise ValueError(f"model.soft_cap is {self.soft_cap}: it must be at least 0")
        if not 1 < self.rope_base < math.inf:
            raise ValueError(f"model.rope_base is {self.rope_base}: it must be above 1")
        if self.d_model % self.n_heads:
            raise ValueError(
                f"model.n_heads is {self.n_heads}: it must divide model.d_model {self.d_model}"
            )
        if self.n_heads % self.heads_per_kv:
            raise ValueError(
                f"model.heads_per_kv is {self.heads_per_kv}: it must divide model.n_heads"
                f" {self.n_heads}"
            )
        parts = {"none": 1, "rope": 4, "rope-full": 2}[self.positions]
        if self.d_head % parts:
            raise ValueError(
                f"model.d_model / model.n_heads is {self.d_head}: positions '{self.positions}'"
                f" needs a multiple of {parts}; change either, or use positions 'none'"
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

    def sight_of(self, layer: int) -> Sight:
        """What attention sees in a layer."""
        is_full = self.attention == "full" or (layer + 1) % self.full_every == 0
        return Sight(None if is_full else self.window, self.soft_cap)

    @property
    def lookup(self) -> int:
        """Number of parameters that no product uses: an embedding which is not the head too."""
        return self.vocab_size * self.d_model if self.head == "untied" else 0

    @property
    def parameters(self) -> int:
        """Number of trained parameters; the tied embedding counts once."""
        norms = self.branch_norms * self.d_model + (2 * self.d_head if self.qk_norm == "rms" else 0)
        per_layer = self.layer_matrices + norms
        head = self.vocab_size * self.d_model
        return self.lookup + head + self.n_layers * per_layer + self.d_model

    @property
    def active_parameters(self) -> int:
        """Number of those that a token uses: all, but for experts that are not its own."""
        idle = self.n_experts - self.active_experts if self.feed_forward == "moe" else 0
        return self.parameters - self.n_layers * idle * self._feed_forward_matrices

    @property
    def experts(self) -> int:
        """Feed-forwards of a layer."""
        return self.n_experts if self.feed_forward == "moe" else 1

    @property
    def branch_norms(self) -> int:
        """Norms of a layer as wide as the decoder."""
        return 4 if self.norm_place == "pre-and-post" else 2

    @property
    def layer_matrices(self) -> int:
        """Number of a layer's parameters that are in matrices."""
        router = self.d_model * self.n_experts if self.feed_forward == "moe" else 0
        of_attention = self.d_model * (self.d_qkv + self.d_model)
        return of_attention + router + self.experts * self._feed_forward_matrices

    @property
    def _feed_forward_matrices(self) -> int:
        """Number of one feed-forward's parameters."""
        return FEED_FORWARDS[self.feed_forward].matrices * self.d_ff * self.d_model

    def flops_per_token(self, seq_len: int) -> int:
        """Training FLOPs a token: 6 an active parameter, plus causal attention.

        Attention is half of the 12 · layers · d_model · seq_len of Chowdhery et al. 2022 (PaLM),
        appendix B, since a token attends to half of the sequence on average; with a window of W of
        T tokens to W (2 T - W) / 2 T.
        """
        sights = map(self.sight_of, range(self.n_layers))
        windows = (min(sight.window or seq_len, seq_len) for sight in sights)
        seen = sum(w * (2 * seq_len - w) // seq_len for w in windows)
        return 6 * (self.active_parameters - self.lookup) + 6 * self.d_model * seen


def rope_table(
    seq_len: int, d_head: int, device: torch.device, base: float = ROPE_BASE
) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [T, K / 2], of the half-truncated rotary embedding.

    Half of the head's pairs turn at base^(-linspace(0, 1)) radians a position; the others stand
    still (reference: "the table intended").
    """
    turning = (1 / base) ** torch.linspace(0, 1, d_head // 4, device=device)
    return _turned(seq_len, torch.cat([turning, torch.zeros_like(turning)]))


def full_rope_table(
    seq_len: int, d_head: int, device: torch.device, base: float
) -> tuple[Tensor, Tensor]:
    """The same of Su et al. 2021 (RoFormer): pair i turns at base^(-2 i / K)."""
    pairs = torch.arange(d_head // 2, device=device)
    return _turned(seq_len, (1 / base) ** (2 * pairs / d_head))


def _turned(seq_len: int, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    angles = torch.outer(torch.arange(seq_len, device=frequencies.device).float(), frequencies)
    return angles.cos(), angles.sin()


ROPE_TABLES = {"rope": rope_table, "rope-full": full_rope_table}


def rotate(x_BHTK: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each head vector by its position in time; `table` as `rope_table` gives it."""
    cos_TK, sin_TK = (part.to(x_BHTK.dtype) for part in table)
    first, second = x_BHTK.chunk(2, dim=-1)
    return torch.cat([first * cos_TK + second * sin_TK, second * cos_TK - first * sin_TK], dim=-1)


class Layer(nn.Module):
    """One layer: a branch of causal attention, then one of a feed-forward."""

    def __init__(self, config: DecoderConfig, number: int) -> None:
        super().__init__()
        self.sight = config.sight_of(number)
        self.d_head, self.heads = config.d_head, (config.n_heads, *2 * (config.kv_heads,))
        kind, norm = FEED_FORWARDS[config.feed_forward], NORMS[config.norm]
        post_norm = norm if config.norm_place == "pre-and-post" else nn.Identity
        qk_norm = RMSNorm if config.qk_norm == "rms" else nn.Identity
        self.attention_norm = norm(config.d_model)
        self.qkv = nn.Linear(config.d_model, config.d_qkv, bias=False)
        self.attention_out = nn.Linear(config.d_model, config.d_model, bias=False)
        self.feed_forward_norm = norm(config.d_model)
        width, n = config.experts * config.d_ff, config.experts
        self.up = nn.Linear(config.d_model, width, bias=False)
        self.down = nn.Linear(config.d_ff, n * config.d_model, bias=False)
        self.gate = nn.Linear(config.d_model, width, bias=False) if kind.gated else None
        is_moe, self.active_experts = config.feed_forward == "moe", config.active_experts
        self.router = nn.Linear(config.d_model, n, bias=False) if is_moe else None
        self.shares_2E: Tensor | None = None  # of the experts, in the last forward pass
        self.hidden = kind.hidden
        self.query_norm, self.key_norm = qk_norm(config.d_head), qk_norm(config.d_head)
        self.attention_post_norm = post_norm(config.d_model)
        self.feed_forward_post_norm = post_norm(config.d_model)
        self.dropout = nn.Dropout(config.dropout)

    def attention(
        self, x_BTD: Tensor, table: tuple[Tensor, Tensor] | None, past: Past | None
    ) -> Tensor:
        """Causal self-attention: [B, T, D] to [B, T, D]."""
        heads_BHTK = self.qkv(x_BTD).unflatten(-1, (-1, self.d_head)).transpose(1, 2)
        q_BHTK, k_BGTK, v_BGTK = heads_BHTK.split(self.heads, 1)
        q_BHTK, k_BGTK = self.query_norm(q_BHTK), self.key_norm(k_BGTK)
        if table is not None:
            q_BHTK, k_BGTK = rotate(q_BHTK, table), rotate(k_BGTK, table)
        attend = past.attention if past else causal_attention
        mixed_BHTK = attend(q_BHTK, k_BGTK, v_BGTK, self.sight)
        return self.attention_out(mixed_BHTK.transpose(1, 2).flatten(2))

    def feed_forward(self, x_BTD: Tensor) -> Tensor:
        """Each token for itself: [B, T, D] to [B, T, D]."""
        if self.router:
            return self._mixed(x_BTD.flatten(0, 1), self.router.weight).view_as(x_BTD)
        widening = (self.up, self.gate) if self.gate else (self.up,)
        return self.down(self.hidden(*(matrix(x_BTD) for matrix in widening)))

    def _mixed(self, x_ND: Tensor, router_ED: Tensor) -> Tensor:
        """By the experts that the router chooses for each token: [N, D] to [N, D]."""
        w_NA, chosen_NA, p_NE = route(x_ND, router_ED, self.active_experts)
        self.shares_2E = shares(chosen_NA, p_NE)
        matrices = (self.up, self.gate, self.down)
        up, gate, down = (m.weight.unflatten(0, (len(router_ED), -1)) for m in matrices if m)
        mix = mix_sorted if x_ND.device.type == "cpu" else mix_all
        return mix(x_ND, w_NA, chosen_NA, (up, gate, down))

    def forward(
        self, x_BTD: Tensor, table: tuple[Tensor, Tensor] | None, past: Past | None = None
    ) -> Tensor:
        """One layer on the residual stream: [B, T, D] to [B, T, D]."""
        mixed_BTD = self.attention(self.attention_norm(x_BTD), table, past)
        x_BTD = x_BTD + self.dropout(self.attention_post_norm(mixed_BTD))
        changed_BTD = self.feed_forward(self.feed_forward_norm(x_BTD))
        return x_BTD + self.dropout(self.feed_forward_post_norm(changed_BTD))


class Decoder(nn.Module):
    """The language model. Weights are drawn on the CPU, so `seed` means the same everywhere."""

    def __init__(self, config: DecoderConfig, seed: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Layer(config, n) for n in range(config.n_layers))
        self.final_norm = NORMS[config.norm](config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.untied_head = None
        if config.head == "untied":
            self.untied_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self._draw_weights(torch.Generator().manual_seed(seed))

    def _draw_weights(self, generator: torch.Generator) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INIT_STD, generator=generator)
        if self.config.residual_init == "by-depth":  # Radford et al. 2019 (GPT-2)
            for layer in self.layers:
                for name in ("attention_out", "down"):
                    layer.get_parameter(f"{name}.weight").data /= (2 * len(self.layers)) ** 0.5

    @property
    def head_weight(self) -> Tensor:
        """What turns hidden states into logits: [V, D]."""
        return (self.untied_head or self.embedding).weight

    def forward(self, tokens_BT: Tensor, past: list[Past] | None = None) -> Tensor:
        """Final hidden states [B, T, D] of token ids [B, T]; the head is in `loss` and `logits`.

        With a `past`, one of each layer, the tokens come after those that it has seen.
        """
        config, table, begin = self.config, None, past[0].tokens if past else 0
        if make_table := ROPE_TABLES.get(config.positions):
            end, device = begin + tokens_BT.shape[1], tokens_BT.device
            cos_TK, sin_TK = make_table(end, config.d_head, device, config.rope_base)
            table = cos_TK[begin:], sin_TK[begin:]
        x_BTD = self.dropout(self.embedding(tokens_BT) * math.sqrt(self.config.d_model))
        for number, layer in enumerate(self.layers):
            x_BTD = layer(x_BTD, table, past[number] if past else None)
        return self.final_norm(x_BTD)

    def balance_loss(self) -> Tensor:
        """How unevenly the experts were used in the last forward pass, 0-d; A is the least.

        E · Σ share of tokens · mean probability, each over all layers (Mixtral, after Fedus et al.
        2021, Switch Transformer). Only with experts.
        """
        of_layers: list[Any] = [layer.shares_2E for layer in self.layers]
        share_E, p_E = torch.stack(of_layers).mean(0)
        return len(p_E) * (share_E.detach() * p_E).sum()

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., D]."""
        return F.linear(hidden, self.head_weight)
