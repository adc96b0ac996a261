"""The decoder as an architecture that the library transformers has, without code of ours.

Each architecture has some of the decoder's parts exactly. Shapes: D d_model, F d_ff, K d_head, E
width of a head there, V vocabulary.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import PreTrainedConfig

from quarterhour.model.decoder import Decoder, DecoderConfig
from quarterhour.model.norms import LayerNorm

# The parts that architectures differ in, as the study's decoder has them.
_STUDY: Mapping[str, Collection[Any]] = {
    "feed_forward": ("silu",),
    "norm": ("rms",),
    "norm_place": ("pre",),
    "qk_norm": ("none",),
    "attention": ("full",),
}
_UNGATED = {"feed_forward": ("silu", "relu2")}
_GATED, _EXPERTS = {"feed_forward": ("swiglu",)}, {"feed_forward": ("moe",)}
_QK_NORM, _WINDOW = {"qk_norm": ("rms",)}, {"attention": ("window",)}
_POST = {"norm_place": ("pre-and-post",), "attention": ("full", "window")}
_NAMES = {
    "attention_norm": "input_layernorm",
    "feed_forward_norm": "post_attention_layernorm",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
    "up": "mlp.up_proj",
    "gate": "mlp.gate_proj",
    "down": "mlp.down_proj",
}
_APERTUS = {"attention_norm": "attention_layernorm", "feed_forward_norm": "feedforward_layernorm"}
_STARCODER = {"up": "mlp.c_fc", "down": "mlp.c_proj"}
_MIXTRAL = {
    "router": "block_sparse_moe.gate",
    "up": "block_sparse_moe.experts.{}.w3",
    "gate": "block_sparse_moe.experts.{}.w1",
    "down": "block_sparse_moe.experts.{}.w2",
}
_QWEN_MOE = {
    "router": "mlp.gate",
    "up": "mlp.experts.{}.up_proj",
    "gate": "mlp.experts.{}.gate_proj",
    "down": "mlp.experts.{}.down_proj",
}
_GEMMA = {
    "attention_post_norm": "post_attention_layernorm",
    "feed_forward_norm": "pre_feedforward_layernorm",
    "feed_forward_post_norm": "post_feedforward_layernorm",
}


@dataclass(frozen=True)
class Architecture:
    """One that transformers calls `name`: the parts that it `has`, unlike the study's decoder, and
    its names of ours, unlike Llama's."""

    name: str
    has: Mapping[str, Collection[Any]]
    names: Mapping[str, str]

    @property
    def is_gemma(self) -> bool:
        """Gemma multiplies the embedding by sqrt(D), and adds 1 to the weights of its norms."""
        return self.name.startswith("Gemma")

    def lacks(self, config: DecoderConfig) -> list[str]:
        """The decoder's parts that it does not have."""
        has = {**_STUDY, **self.has}
        values = {part: getattr(config, part) for part in has}
        lacking = [f"{part} {value}" for part, value in values.items() if value not in has[part]]
        if config.soft_cap and self.name != "Gemma2":
            lacking.append(f"soft_cap {config.soft_cap:g}")
        if config.d_head % 2 and config.qk_norm != "none":  # a padded head has another norm
            lacking.append(f"qk_norm {config.qk_norm} of heads of the odd width {config.d_head}")
        return lacking


ARCHITECTURES = (
    Architecture("Arcee", _UNGATED, {}),
    Architecture("Apertus", _UNGATED | _QK_NORM, _APERTUS),
    Architecture("Starcoder2", _UNGATED | {"norm": ("layer",)}, _STARCODER),
    Architecture("Llama", _GATED, {}),
    Architecture("Ministral", _GATED | _WINDOW, {}),
    Architecture("Qwen3", _GATED | _QK_NORM | {"attention": ("full", "window")}, {}),
    Architecture("Mixtral", _EXPERTS, _MIXTRAL),
    Architecture("Qwen3Moe", _EXPERTS | _QK_NORM, _QWEN_MOE),
    Architecture("Gemma2", _GATED | _POST, _GEMMA),
    Architecture("Gemma3", _GATED | _POST | _QK_NORM, _GEMMA),
)


def architecture_of(config: DecoderConfig) -> Architecture:
    """The architecture that has all parts of a decoder.

    Raises ValueError where none has, with what the nearest lacks.
    """
    nearest = min(ARCHITECTURES, key=lambda one: len(one.lacks(config)))
    if lacking := nearest.lacks(config):
        raise ValueError(
            f"no architecture of transformers has all parts of this decoder: the nearest,"
            f" {nearest.name}, lacks model.{' and model.'.join(lacking)}"
        )
    return nearest


def pretrained_config(config: DecoderConfig, seq_len: int) -> PreTrainedConfig:
    """The decoder's settings as transformers has them; it was trained to see `seq_len` tokens.

    Raises ValueError where no architecture has all of its parts.
    """
    name = architecture_of(config).name
    named = "Gemma3Text" if name == "Gemma3" else name
    activation = "relu2" if config.feed_forward == "relu2" else "silu"
    eps, width = torch.finfo(torch.float32).eps, _head_width(config)
    has_windows = config.attention == "window"
    layers = [
        "sliding_attention" if config.sight_of(n).window else "full_attention"
        for n in range(config.n_layers)
    ]
    own: dict[str, dict[str, Any]] = {
        "Starcoder2": {"norm_epsilon": LayerNorm.EPS, "use_bias": False},
        "Ministral": {"layer_types": layers, "sliding_window": config.window},
        "Qwen3": {
            "layer_types": layers, "use_sliding_window": has_windows,
            "sliding_window": config.window,
        },
        "Mixtral": {
            "num_local_experts": config.n_experts, "num_experts_per_tok": config.active_experts,
        },
        "Qwen3Moe": {
            "num_experts": config.n_experts, "num_experts_per_tok": config.active_experts,
            "moe_intermediate_size": config.d_ff, "norm_topk_prob": True,
        },
        "Gemma2": {
            "layer_types": layers, "sliding_window": config.window, "query_pre_attn_scalar": width,
            "attn_logit_softcapping": config.soft_cap or None, "final_logit_softcapping": None,
        },
        "Gemma3": {
            "layer_types": layers, "sliding_window": config.window, "query_pre_attn_scalar": width,
        },
    }  # fmt: skip
    rope, kinds = _rope(config), ("full_attention", "sliding_attention")
    return getattr(transformers, f"{named}Config")(
        architectures=[f"{name}ForCausalLM"],
        vocab_size=config.vocab_size,
        hidden_size=config.d_model,
        intermediate_size=config.d_ff,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.kv_heads,
        head_dim=width,
        max_position_embeddings=seq_len,
        rope_parameters=dict.fromkeys(kinds, rope) if name == "Gemma3" else rope,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        dtype="float32",
        **{"hidden_activation" if name.startswith("Gemma") else "hidden_act": activation},
        **({} if config.norm == "layer" else {"rms_norm_eps": eps}),
        **own.get(name, {}),
    )


def _head_width(config: DecoderConfig) -> int:
    """There, pairs of numbers turn: a head of an odd width gets one more, which stays 0."""
    return config.d_head + config.d_head % 2


def _rope(config: DecoderConfig) -> dict[str, str | float]:
    """All pairs turn, half of them, or none.

    There, pair i turns at theta^(-2i / K) radians a position, as ours does where all turn; where
    half of them do, ours turns at base^(-i / (K/4 - 1)).
    """
    several = config.positions == "rope" and config.d_head > 4  # one pair turns at 1 for any theta
    exponent = 2 * config.d_head / (config.d_head - 4) if several else 1
    return {
        "rope_type": "proportional",
        "rope_theta": float(config.rope_base**exponent),
        "partial_rotary_factor": {"none": 0.0, "rope": 0.5, "rope-full": 1.0}[config.positions],
    }


def pretrained_weights(decoder: Decoder) -> dict[str, Tensor]:
    """The parameters by the names that transformers has for them: with them it gives the decoder's
    logits, up to rounding.

    The embedding, which is not tied, has our factor sqrt(D). Raises ValueError where no
    architecture has all of the decoder's parts.
    """
    kind = architecture_of(decoder.config)
    factor = 1.0 if kind.is_gemma else decoder.config.d_model**0.5
    weights = {
        "model.embed_tokens.weight": decoder.embedding.weight.detach() * factor,
        "lm_head.weight": decoder.head_weight.detach(),
        **_norm("model.norm", decoder.final_norm, kind),
    }
    layers: Any = decoder.layers
    for number, layer in enumerate(layers):
        named = dict(_of_layer(layer, kind, decoder.config))
        weights |= {f"model.layers.{number}.{name}": part for name, part in named.items()}
    return {name: weight.detach().contiguous() for name, weight in weights.items()}


def _of_layer(
    layer: Any, kind: Architecture, config: DecoderConfig
) -> Iterator[tuple[str, Tensor]]:
    names = {**_NAMES, **kind.names}
    for part in (part for part in names if part.endswith("norm")):
        if hasattr(module := getattr(layer, part), "weight"):
            yield from _norm(names[part], module, kind).items()
    projections = _attention(layer.qkv.weight, layer.attention_out.weight, config)
    yield from ((f"self_attn.{name}.weight", part) for name, part in projections.items())
    for part in ("up", "gate", "down"):
        if matrix := getattr(layer, part):
            for number, own in enumerate(matrix.weight.chunk(config.experts)):
                yield f"{names[part].format(number)}.weight", own
    if layer.router:
        yield f"{names['router']}.weight", layer.router.weight


def _norm(name: str, norm: Any, kind: Architecture) -> dict[str, Tensor]:
    """A norm's weight; a layer norm has a bias too there, which is 0."""
    weight = norm.weight.detach() - float(kind.is_gemma)
    bias = {f"{name}.bias": torch.zeros_like(weight)} if isinstance(norm, LayerNorm) else {}
    return {f"{name}.weight": weight, **bias}


def _attention(qkv: Tensor, out_DD: Tensor, config: DecoderConfig) -> dict[str, Tensor]:
    """One layer's projections. There, heads turn the other way: the second half's sign changes."""
    width, more = _head_width(config), _head_width(config) - config.d_head
    heads = (config.n_heads, config.kv_heads, config.kv_heads)
    padded = F.pad(qkv.detach().unflatten(0, (-1, config.d_head)), (0, 0, 0, more)).split(heads)
    query, key, value = (part.clone() for part in padded)
    query *= (width / config.d_head) ** 0.5  # there, scores are divided by the root of its width
    for turned in (query, key):
        turned[:, width // 2 :] *= -1
    out_DHE = F.pad(out_DD.detach().unflatten(1, (config.n_heads, config.d_head)), (0, more))
    parts = {"q_proj": query, "k_proj": key, "v_proj": value}
    return {name: part.flatten(0, 1) for name, part in parts.items()} | {
        "o_proj": out_DHE.flatten(1)
    }
