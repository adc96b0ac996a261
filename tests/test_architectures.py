"""The decoder's choices against transformers' own decoders of the same mathematics."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from architectures import configs, loud
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from quarterhour.model.decoder import Decoder, DecoderConfig

EPS = torch.finfo(torch.float32).eps
SIZES: dict[str, Any] = {"vocab_size": 37, "d_model": 24, "n_heads": 3, "n_layers": 2, "d_ff": 29}


def largest_error(ours: Tensor, theirs: Tensor) -> float:
    """Relative to the largest number."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def hugging_face(config: DecoderConfig, kind: Any, **values: Any) -> dict[str, Any]:
    """The settings that a transformers decoder needs to be this one."""
    return kind(
        vocab_size=config.vocab_size, hidden_size=config.d_model, intermediate_size=config.d_ff,
        num_hidden_layers=config.n_layers, num_attention_heads=config.n_heads,
        num_key_value_heads=config.kv_heads, head_dim=config.d_head, rms_norm_eps=EPS,
        attention_dropout=0.0, attn_implementation="eager", **values,
    )  # fmt: skip


def take_weights(theirs: nn.Module, model: Decoder) -> None:
    """Give a transformers decoder our weights; it has no factor after its embedding."""
    config = model.config
    state = {
        "embed_tokens.weight": model.embedding.weight * config.d_model**0.5,
        "norm.weight": model.final_norm.weight,
    }
    for number, layer in enumerate(model.layers):
        q, k, v = layer.qkv.weight.split([heads * config.d_head for heads in layer.heads])
        of_layer = {
            "input_layernorm": layer.attention_norm.weight,
            "self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v,
            "self_attn.o_proj": layer.attention_out.weight,
            "post_attention_layernorm": layer.feed_forward_norm.weight,
            "mlp.gate_proj": layer.gate.weight, "mlp.up_proj": layer.up.weight,
            "mlp.down_proj": layer.down.weight,
        }  # fmt: skip
        state |= {f"layers.{number}.{name}.weight": w for name, w in of_layer.items()}
    theirs.load_state_dict(state)


def without_positions(theirs: Any) -> None:
    """Their rotary embedding turns nothing."""
    theirs.rotary_emb.inv_freq.zero_()


@torch.no_grad()
def error_against(config: DecoderConfig, build: Callable[[], Any]) -> float:
    """The largest error of final hidden states."""
    model, theirs = loud(config), build().eval()
    take_weights(theirs, model)
    without_positions(theirs)
    tokens_BT = torch.randint(37, (2, 13), generator=torch.Generator().manual_seed(2))
    return largest_error(model(tokens_BT), theirs(tokens_BT, use_cache=False).last_hidden_state)


def test_swiglu_is_llamas():
    config = DecoderConfig(**SIZES, feed_forward="swiglu")
    assert error_against(config, lambda: LlamaModel(hugging_face(config, LlamaConfig))) < 1e-5


@pytest.mark.parametrize("heads_per_kv", [2, 3, 6])
def test_shared_keys_and_values_are_llamas(heads_per_kv: int):
    sizes = SIZES | {"n_heads": 6, "heads_per_kv": heads_per_kv}
    config = DecoderConfig(**sizes, feed_forward="swiglu")
    assert error_against(config, lambda: LlamaModel(hugging_face(config, LlamaConfig))) < 1e-5


def test_relu2_is_the_square_of_what_is_above_0():
    (layer,) = loud(DecoderConfig(**SIZES | {"n_layers": 1}, feed_forward="relu2")).layers
    x_ND = torch.randn(5, 24)
    up_NF = x_ND @ layer.up.weight.T
    expected = torch.where(up_NF > 0, up_NF**2, 0) @ layer.down.weight.T
    torch.testing.assert_close(layer.feed_forward(x_ND), expected)


@given(configs(), st.data())
def test_no_token_sees_a_later_one(config: DecoderConfig, data: st.DataObject):
    model = loud(config)
    ids = st.integers(0, config.vocab_size - 1)
    tokens = data.draw(st.lists(ids, min_size=2, max_size=12))
    place = data.draw(st.integers(1, len(tokens) - 1))
    changed = [*tokens[:place], *data.draw(st.lists(ids, min_size=len(tokens) - place,
               max_size=len(tokens) - place))]  # fmt: skip
    before, after = model(torch.tensor([tokens, changed]))
    torch.testing.assert_close(before[:place], after[:place], rtol=1e-4, atol=1e-5)


@given(configs())
def test_the_matrices_of_the_layers_are_counted(config: DecoderConfig):
    layers = Decoder(config, seed=0).layers
    matrices = [p for layer in layers for p in layer.parameters() if p.ndim == 2]
    assert config.n_layers * config.layer_matrices == sum(p.numel() for p in matrices)
