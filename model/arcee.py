"""The decoder as an architecture that the library transformers has: Arcee's, without own code.

Arcee has the same parts: norms with weights, attention without biases, an ungated feed-forward.
Shapes: D d_model, H heads, K d_head, E width of a head there, V vocabulary.
"""

from dataclasses import fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ArceeConfig

from quarterhour.model.decoder import Decoder, DecoderConfig

UNLIKE = ("attention", "soft_cap", "heads_per_kv", "norm", "norm_place", "qk_norm", "feed_forward")
"""Parts of a decoder that Arcee has at their defaults only."""


def arcee_config(config: DecoderConfig, seq_len: int) -> ArceeConfig:
    """The decoder's sizes as Arcee's; it was trained to see `seq_len` tokens.

    Raises ValueError for a part that Arcee does not have.
    """
    for part in fields(config):
        if part.name in UNLIKE and getattr(config, part.name) != part.default:
            raise ValueError(
                f"model.{part.name} is {getattr(config, part.name)}: transformers' Arcee, which the"
                f" export is for, has only {part.default}"
            )
    return ArceeConfig(
        architectures=["ArceeForCausalLM"],
        vocab_size=config.vocab_size,
        hidden_size=config.d_model,
        intermediate_size=config.d_ff,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        head_dim=_head_width(config),
        hidden_act="silu",
        rms_norm_eps=torch.finfo(torch.float32).eps,
        max_position_embeddings=seq_len,
        rope_parameters=_rope(config),
        bos_token_id=None,
        eos_token_id=None,
        dtype="float32",
    )


def _head_width(config: DecoderConfig) -> int:
    """Arcee turns pairs of numbers: a head of an odd width gets one more, which stays 0."""
    return config.d_head + config.d_head % 2


def _rope(config: DecoderConfig) -> dict[str, str | float]:
    """All pairs turn, half of them, or none.

    Arcee's pair i turns at theta^(-2i / K) radians a position, as ours does where all turn; where
    half of them do, ours turns at base^(-i / (K/4 - 1)).
    """
    several = config.positions == "rope" and config.d_head > 4  # one pair turns at 1 for any theta
    exponent = 2 * config.d_head / (config.d_head - 4) if several else 1
    return {
        "rope_type": "proportional",
        "rope_theta": float(config.rope_base**exponent),
        "partial_rotary_factor": {"none": 0.0, "rope": 0.5, "rope-full": 1.0}[config.positions],
    }


def arcee_weights(decoder: Decoder) -> dict[str, Tensor]:
    """Arcee's parameters by name: with them it gives the decoder's logits, up to rounding.

    Its embedding, which is not tied, has our factor sqrt(D).
    """
    embedding_VD = decoder.embedding.weight.detach()
    weights = {
        "model.embed_tokens.weight": embedding_VD * decoder.config.d_model**0.5,
        "model.norm.weight": decoder.final_norm.weight,
        "lm_head.weight": decoder.head_weight.detach(),
    }
    layers: Any = decoder.layers
    for number, layer in enumerate(layers):
        parts = _attention(layer.qkv.weight, layer.attention_out.weight, decoder.config) | {
            "input_layernorm": layer.attention_norm.weight,
            "post_attention_layernorm": layer.feed_forward_norm.weight,
            "mlp.up_proj": layer.up.weight,
            "mlp.down_proj": layer.down.weight,
        }
        weights |= {f"model.layers.{number}.{name}.weight": part for name, part in parts.items()}
    return weights


def _attention(qkv: Tensor, out_DD: Tensor, config: DecoderConfig) -> dict[str, Tensor]:
    """One layer's projections. Arcee turns heads the other way: the second half's sign changes."""
    width, n_heads = _head_width(config), config.n_heads
    more = width - config.d_head
    qkv_3HED = F.pad(qkv.detach().unflatten(0, (3, n_heads, config.d_head)), (0, 0, 0, more))
    qkv_3HED[0] *= (width / config.d_head) ** 0.5  # Arcee divides scores by the root of its width
    qkv_3HED[:2, :, width // 2 :] *= -1
    out_DHE = F.pad(out_DD.detach().unflatten(1, (n_heads, config.d_head)), (0, more))
    projections = dict(zip(("q_proj", "k_proj", "v_proj"), qkv_3HED.flatten(1, 2), strict=True))
    parts = projections | {"o_proj": out_DHE.flatten(1)}
    return {f"self_attn.{name}": part for name, part in parts.items()}
