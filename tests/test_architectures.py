"""The decoder's choices against transformers' own decoders of the same mathematics."""

from typing import Any

import pytest
import torch
from architectures import configs, loud
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2Model,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    MixtralConfig,
    MixtralModel,
    OlmoConfig,
    OlmoModel,
    Qwen3Config,
    Qwen3Model,
)
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from quarterhour.model.decoder import Decoder, DecoderConfig
from quarterhour.model.experts import mix_all, mix_sorted, route
from quarterhour.model.norms import LayerNorm

EPS = torch.finfo(torch.float32).eps
SIZES: dict[str, Any] = {"vocab_size": 37, "d_model": 24, "n_heads": 3, "n_layers": 2, "d_ff": 29}


def largest_error(ours: Tensor, theirs: Tensor) -> float:
    """Relative to the largest number."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def hugging_face(config: DecoderConfig, kind: Any, **values: Any) -> Any:
    """The settings that a transformers decoder needs to be this one."""
    return kind(
        vocab_size=config.vocab_size, hidden_size=config.d_model, intermediate_size=config.d_ff,
        num_hidden_layers=config.n_layers, num_attention_heads=config.n_heads,
        num_key_value_heads=config.kv_heads, head_dim=config.d_head, rms_norm_eps=EPS,
        attention_dropout=0.0, attn_implementation="eager", **values,
    )  # fmt: skip


LLAMA = {
    "input_layernorm": "attention_norm",
    "self_attn.o_proj": "attention_out",
    "post_attention_layernorm": "feed_forward_norm",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}
GEMMA = LLAMA | {
    "post_attention_layernorm": "attention_post_norm",
    "pre_feedforward_layernorm": "feed_forward_norm",
    "post_feedforward_layernorm": "feed_forward_post_norm",
}
QWEN = LLAMA | {"self_attn.q_norm": "query_norm", "self_attn.k_norm": "key_norm"}


def take_weights(theirs: nn.Module, model: Decoder, names: dict[str, str]) -> None:
    """Give a transformers decoder our weights, by their names.

    Gemma has our factor after the embedding, and adds 1 to the weights of its norms.
    """
    is_gemma = isinstance(theirs, Gemma2Model)
    factor = 1 if is_gemma else model.config.d_model**0.5
    state = {"embed_tokens": model.embedding.weight * factor, "norm": model.final_norm.weight}
    for number, layer in enumerate(model.layers):
        qkv = layer.qkv.weight.split([heads * layer.d_head for heads in layer.heads])
        if model.config.positions != "none":  # ours turn the other way: by the other half first
            turned = [w.unflatten(0, (-1, 2, layer.d_head // 2)).flip(1).flatten(0, 2) for w in qkv]
            qkv = [*turned[:2], qkv[2]]
        of_layer = {f"self_attn.{name}_proj": w for name, w in zip("qkv", qkv, strict=True)}
        of_layer |= {name: layer.get_parameter(f"{own}.weight") for name, own in names.items()}
        state |= {f"layers.{number}.{name}": w for name, w in of_layer.items()}
    state = {f"{name}.weight": w - int(is_gemma and "norm" in name) for name, w in state.items()}
    known = theirs.state_dict()  # with experts, whose names are their own
    theirs.load_state_dict(known | {n: w for n, w in state.items() if n in known})


@torch.no_grad()
def error_of(theirs: Any, model: Decoder, names: dict[str, str]) -> float:
    """The largest error of final hidden states; without positions, unless they are ours."""
    take_weights(theirs.eval(), model, names)
    if model.config.positions == "none":
        theirs.rotary_emb.inv_freq.zero_()
    tokens_BT = torch.randint(37, (2, 13), generator=torch.Generator().manual_seed(2))
    return largest_error(model(tokens_BT), theirs(tokens_BT, use_cache=False).last_hidden_state)


def error_against(theirs: Any, config: DecoderConfig, names: dict[str, str] = LLAMA) -> float:
    return error_of(theirs, loud(config), names)


def gemma(config: DecoderConfig, **values: Any) -> Gemma2Model:
    """A Gemma 2 whose attention is all full, unless `values` say otherwise."""
    fixed = {"hidden_activation": "silu", "query_pre_attn_scalar": config.d_head}
    full = {"attn_logit_softcapping": None, "layer_types": ["full_attention"] * config.n_layers}
    return Gemma2Model(hugging_face(config, Gemma2Config, **fixed, **full | values))


def test_swiglu_is_llamas():
    config = DecoderConfig(**SIZES, feed_forward="swiglu")
    assert error_against(LlamaModel(hugging_face(config, LlamaConfig)), config) < 1e-5


@pytest.mark.parametrize("heads_per_kv", [2, 3, 6])
def test_shared_keys_and_values_are_llamas(heads_per_kv: int):
    sizes = SIZES | {"n_heads": 6, "heads_per_kv": heads_per_kv}
    config = DecoderConfig(**sizes, feed_forward="swiglu")
    assert error_against(LlamaModel(hugging_face(config, LlamaConfig)), config) < 1e-5


def test_norms_of_queries_and_keys_are_qwens():
    sizes = SIZES | {"n_heads": 4, "heads_per_kv": 2}
    config = DecoderConfig(**sizes, feed_forward="swiglu", qk_norm="rms")
    assert error_against(Qwen3Model(hugging_face(config, Qwen3Config)), config, QWEN) < 1e-5


def test_layer_norms_are_olmos_where_their_weights_are_1():
    config = DecoderConfig(**SIZES, feed_forward="swiglu", norm="layer")
    model, theirs = loud(config), OlmoModel(hugging_face(config, OlmoConfig)).eval()
    for norm in (m for m in model.modules() if isinstance(m, LayerNorm)):
        norm.weight.data.fill_(1)
    assert error_of(theirs, model, {n: own for n, own in LLAMA.items() if "norm" not in n}) < 1e-5


def test_a_layer_norm_has_torchs_values_and_weights():
    norm, theirs = LayerNorm(12), nn.LayerNorm(12, bias=False)
    theirs.weight.data = norm.weight.data.normal_()
    x = torch.randn(5, 12)
    torch.testing.assert_close(norm(x), theirs(x))


@pytest.mark.parametrize(("experts", "active"), [(2, 1), (3, 2), (7, 3), (5, 5)])
def test_experts_and_the_loss_of_their_balance_are_mixtrals(experts: int, active: int):
    config = DecoderConfig(**SIZES, feed_forward="moe", n_experts=experts, active_experts=active)
    values: dict[str, Any] = {"num_local_experts": experts, "num_experts_per_tok": active}
    values["experts_implementation"] = "eager"  # the others want widths of multiples of 4
    model = loud(config)
    theirs: Any = MixtralModel(hugging_face(config, MixtralConfig, **values)).eval()
    for own, layer in zip(model.layers, theirs.layers, strict=True):
        up, gate, down = (
            own.get_parameter(f"{name}.weight").unflatten(0, (experts, -1))
            for name in ("up", "gate", "down")
        )
        layer.mlp.gate.weight.data = own.router.weight.data
        layer.mlp.experts.gate_up_proj.data = torch.cat([gate, up], 1).data
        layer.mlp.experts.down_proj.data = down.data
    names = {name: own for name, own in LLAMA.items() if "mlp" not in name}
    assert error_of(theirs, model, names) < 1e-5
    tokens_BT = torch.randint(37, (2, 13), generator=torch.Generator().manual_seed(2))
    logits = theirs(tokens_BT, use_cache=False, output_router_logits=True).router_logits
    expected = load_balancing_loss_func(logits, experts, active)
    model(tokens_BT)
    torch.testing.assert_close(model.balance_loss(), expected, rtol=1e-5, atol=0)


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 3), st.integers(0, 99))
def test_sorted_and_on_a_gpu_the_experts_have_the_same_values_and_gradients(
    tokens: int, active: int, idle: int, seed: int
):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(tokens, 6), (active + idle, 6), *3 * [(active + idle, 5, 6)]]
    drawn = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    drawn[-1] = drawn[-1].mT.contiguous()
    found: list[list[Tensor]] = []
    for mix in (mix_sorted, mix_all):
        x_ND, router_ED, *matrices = (x.clone().requires_grad_() for x in drawn)
        w_NA, chosen_NA, _ = route(x_ND, router_ED, active)
        out_ND = mix(x_ND, w_NA, chosen_NA, (matrices[0], matrices[1], matrices[2]))
        out_ND.square().sum().backward()
        gradients = [x.grad for x in (x_ND, router_ED, *matrices)]
        found.append([out_ND, *(g for g in gradients if g is not None)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_norms_after_the_branches_are_gemmas():
    config = DecoderConfig(**SIZES, feed_forward="swiglu", norm_place="pre-and-post")
    assert error_against(gemma(config), config, GEMMA) < 1e-5


@pytest.mark.parametrize("base", [100.0, 10_000.0])
def test_positions_over_the_whole_head_are_llamas(base: float):
    config = DecoderConfig(**SIZES, feed_forward="swiglu", positions="rope-full", rope_base=base)
    theirs = hugging_face(
        config, LlamaConfig, rope_parameters={"rope_type": "default", "rope_theta": base}
    )
    assert error_against(LlamaModel(theirs), config) < 1e-5


@pytest.mark.parametrize("window", [1, 3, 12, 40])
def test_a_window_is_mistrals(window: int):
    config = DecoderConfig(
        **SIZES, feed_forward="swiglu", attention="window", window=window, full_every=9
    )
    theirs = MistralModel(hugging_face(config, MistralConfig, sliding_window=window))
    assert error_against(theirs, config) < 1e-5


def test_soft_caps_and_every_second_layer_full_are_gemmas():
    config = DecoderConfig(
        **SIZES | {"n_layers": 4}, feed_forward="swiglu", norm_place="pre-and-post",
        attention="window", window=4, full_every=2, soft_cap=3.0,
    )  # fmt: skip
    kinds = ["sliding_attention", "full_attention"] * 2
    theirs = gemma(config, layer_types=kinds, sliding_window=4, attn_logit_softcapping=3.0)
    assert error_against(theirs, config, GEMMA) < 1e-5


def test_an_untied_head_is_a_matrix_of_its_own():
    model = loud(DecoderConfig(**SIZES, head="untied"))
    hidden = torch.randn(5, 24)
    torch.testing.assert_close(model.logits(hidden), hidden @ model.head_weight.T)
    assert model.head_weight is not model.embedding.weight


def test_the_last_matrix_of_a_branch_starts_smaller_by_the_root_of_their_number():
    equal, by_depth = (
        Decoder(DecoderConfig(**SIZES | {"n_layers": 8}, residual_init=kind), seed=0).state_dict()
        for kind in ("equal", "by-depth")
    )
    for name, weight in equal.items():
        factor = 4 if "attention_out" in name or "down" in name else 1
        torch.testing.assert_close(by_depth[name] * factor, weight)


def test_only_what_a_token_is_multiplied_with_counts_as_flops():
    tied, untied = (DecoderConfig(**SIZES, head=head) for head in ("tied", "untied"))
    assert untied.parameters == tied.parameters + 37 * 24
    assert untied.flops_per_token(64) == tied.flops_per_token(64)
    wide, narrow = (
        DecoderConfig(**SIZES | {"n_layers": 8}, attention="window", window=w) for w in (64, 16)
    )
    full = DecoderConfig(**SIZES | {"n_layers": 8})
    assert wide.flops_per_token(64) == full.flops_per_token(64)
    pairs = sum(min(t, 16) for t in range(1, 65)) / 64  # that a token sees on average
    saved = full.flops_per_token(64) - narrow.flops_per_token(64)
    assert saved == pytest.approx(6 * 12 * 24 * (32.5 - pairs), rel=0.03)


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
    assert config.parameters == sum(p.numel() for p in Decoder(config, seed=0).parameters())


def test_experts_that_are_not_a_tokens_own_count_as_parameters_alone():
    sizes = SIZES | {"feed_forward": "moe", "active_experts": 2}
    few, many = (DecoderConfig(**sizes, n_experts=n) for n in (2, 8))
    router = 2 * 6 * 24
    assert few.active_parameters == few.parameters
    assert many.active_parameters == few.parameters + router
    assert many.parameters == many.active_parameters + 2 * 6 * 3 * 24 * 29
    assert many.flops_per_token(8) == few.flops_per_token(8) + 6 * router
