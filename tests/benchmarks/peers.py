"""The decoder and its training step written the obvious way, and a transformers Llama.

Shapes: B batch, T time, D d_model.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from quarterhour.model.decoder import DecoderConfig
from quarterhour.model.optim import OptimConfig, build_optimizer


class PlainLayer(nn.Module):
    """`model.decoder.Layer` of torch's own parts."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.attention_norm = nn.RMSNorm(config.d_model)
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model, bias=False)
        self.attention_out = nn.Linear(config.d_model, config.d_model, bias=False)
        self.feed_forward_norm = nn.RMSNorm(config.d_model)
        self.up = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        qkv = self.qkv(self.attention_norm(x_BTD)).unflatten(-1, (3, self.n_heads, -1))
        q_BHTK, k_BHTK, v_BHTK = qkv.permute(2, 0, 3, 1, 4)
        mixed_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
        x_BTD = x_BTD + self.attention_out(mixed_BHTK.transpose(1, 2).flatten(2))
        return x_BTD + self.down(F.silu(self.up(self.feed_forward_norm(x_BTD))))


class PlainDecoder(nn.Module):
    """`model.decoder.Decoder` without positions, giving all logits [B, T, V] at once."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(PlainLayer(config) for _ in range(config.n_layers))
        self.final_norm = nn.RMSNorm(config.d_model)
        for weight in self.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.02)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x_BTD = self.embedding(tokens_BT) * math.sqrt(self.embedding.embedding_dim)
        for layer in self.layers:
            x_BTD = layer(x_BTD)
        return F.linear(self.final_norm(x_BTD), self.embedding.weight)


def llama(config: DecoderConfig) -> LlamaForCausalLM:
    """A Llama of the same sizes and as many parameters: its gate takes a third of d_ff."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=round(config.d_ff * 2 / 3),
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            tie_word_embeddings=True,
            use_cache=False,
        )
    )


def plain_loss(model: nn.Module, batch_BT: Tensor) -> Tensor:
    """Mean loss of a batch [B, T + 1] from all logits at once."""
    logits_BTV = model(batch_BT[:, :-1])
    return F.cross_entropy(logits_BTV.flatten(0, 1), batch_BT[:, 1:].flatten())


def llama_loss(model: nn.Module, batch_BT: Tensor) -> Tensor:
    """A Llama's own loss of a batch's inputs [B, T], of which it predicts all but the first."""
    inputs_BT = batch_BT[:, :-1]
    return model(input_ids=inputs_BT, labels=inputs_BT).loss


class PlainTrainer:
    """Trains either of them the usual way, under autocast or in fp32."""

    def __init__(
        self,
        model: nn.Module,
        loss_of: Callable[[nn.Module, Tensor], Tensor],
        optim: OptimConfig,
        dtype: torch.dtype | None,
    ) -> None:
        self.model = model
        self.loss_of = loss_of
        self.optimizer = build_optimizer(model, optim)
        self.dtype = dtype

    def train_step(self, batch_BT: Tensor) -> Tensor:
        """One update on a batch [B, T + 1]; its loss before."""
        with torch.autocast("cpu", self.dtype, enabled=self.dtype is not None):
            loss = self.loss_of(self.model, batch_BT)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()
