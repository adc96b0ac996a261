import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from architectures import configs, loud
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from quarterhour.model.decoder import Decoder, DecoderConfig, rope_table, rotate

STUDY = {"vocab_size": 49_152, "d_model": 384, "n_heads": 6, "n_layers": 12, "d_ff": 1536}
SMALL_MODEL = {"vocab_size": 49_152, "d_model": 256, "n_heads": 4, "n_layers": 8, "d_ff": 1024}
TINY: dict[str, Any] = {"vocab_size": 50, "d_model": 16, "n_heads": 2, "n_layers": 2, "d_ff": 24}


@pytest.mark.parametrize(("sizes", "count"), [(STUDY, 40_117_632), (SMALL_MODEL, 18_878_720)])
def test_parameter_counts_are_the_studys(sizes: dict[str, int], count: int):
    assert DecoderConfig(**sizes).parameters == count


@given(configs())
def test_parameter_count_is_that_of_the_module(config: DecoderConfig):
    assert config.parameters == sum(p.numel() for p in Decoder(config, seed=0).parameters())


def test_a_step_of_the_studys_baseline_is_1_04_tflop():
    config = DecoderConfig(**STUDY)
    assert 4_096 * config.flops_per_token(512) == pytest.approx(1.04e12, rel=5e-3)
    attention = config.flops_per_token(512) - 6 * config.parameters
    assert attention == 12 * (12 * 384 * 512) // 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vocab_size": 0}, r"model\.vocab_size is 0: it must be at least 1"),
        ({"d_model": -4}, r"model\.d_model is -4"),
        ({"n_heads": 0}, r"model\.n_heads is 0"),
        ({"n_layers": 0}, r"model\.n_layers is 0"),
        ({"d_ff": 0}, r"model\.d_ff is 0"),
        ({"n_heads": 3}, r"model\.n_heads is 3: it must divide model\.d_model 16"),
        ({"d_model": 12, "positions": "rope"}, r"model\.d_model / model\.n_heads is 6.*multiple"),
    ],
)
def test_sizes_that_cannot_be_are_named(changed: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**TINY | changed)


def test_half_of_the_rope_frequencies_stand_still_and_the_rest_fall_from_1_to_1_1024th():
    cos, sin = rope_table(40, 16, torch.device("cpu"))
    assert cos.shape == sin.shape == (40, 8)
    assert torch.equal(cos[:, 4:], torch.ones(40, 4))
    assert torch.equal(sin[:, 4:], torch.zeros(40, 4))
    angle_of_one_step = torch.atan2(sin[1, :4], cos[1, :4])
    expected = torch.tensor([1024 ** (-i / 3) for i in range(4)])
    torch.testing.assert_close(angle_of_one_step, expected, rtol=1e-4, atol=1e-7)


def test_rotating_is_the_studys_formula():
    x1, x2, angle = torch.tensor([[2.0]]), torch.tensor([[3.0]]), torch.tensor([[0.7]])
    turned = rotate(torch.cat([x1, x2], 1)[None, None], (angle.cos(), angle.sin())).flatten()
    expected = [2 * math.cos(0.7) + 3 * math.sin(0.7), -2 * math.sin(0.7) + 3 * math.cos(0.7)]
    torch.testing.assert_close(turned, torch.tensor(expected))


@given(st.integers(0, 2**32), st.sampled_from([4, 8, 16, 32]))
def test_rope_scores_depend_on_the_distance_in_time_only(seed: int, d_head: int):
    q, k = torch.randn(2, d_head, generator=torch.Generator().manual_seed(seed))
    table = rope_table(30, d_head, torch.device("cpu"))
    q_TK, k_TK = (rotate(x.expand(1, 1, 30, d_head), table)[0, 0] for x in (q, k))
    scores_TT = q_TK @ k_TK.T
    torch.testing.assert_close(scores_TT[1:, 1:], scores_TT[:-1, :-1], rtol=1e-4, atol=1e-4)
    assert (scores_TT[0] - scores_TT[0, 0]).abs().max() > 1e-2


@pytest.mark.parametrize(("positions", "is_blind"), [("none", True), ("rope", False)])
def test_without_positions_the_order_of_earlier_tokens_is_not_seen(positions: str, is_blind: bool):
    model = loud(DecoderConfig(**TINY | {"n_layers": 1, "positions": positions}))
    tokens_T = torch.arange(12)
    shuffled_T = torch.cat([tokens_T[:-1].flip(0), tokens_T[-1:]])
    in_order, out_of_order = model(torch.stack([tokens_T, shuffled_T]))[:, -1]
    assert torch.allclose(in_order, out_of_order, rtol=1e-4, atol=1e-5) == is_blind


@given(st.data(), st.sampled_from(["none", "rope"]))
def test_a_token_changes_no_hidden_state_before_its_own(data: st.DataObject, positions: str):
    model = loud(DecoderConfig(**TINY | {"positions": positions}))
    tokens = data.draw(st.lists(st.integers(0, 49), min_size=2, max_size=12))
    place = data.draw(st.integers(1, len(tokens) - 1))
    changed = [*tokens[:place], (tokens[place] + 1) % 50, *tokens[place + 1 :]]
    before, after = model(torch.tensor([tokens, changed]))
    torch.testing.assert_close(before[:place], after[:place], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(before[place], after[place], rtol=1e-3)


def attention_by_definition(qkv_TD: Tensor, n_heads: int) -> Tensor:
    """Causal attention of one sequence, head by head, from rows ordered q, k, v and head-major."""
    q_TD, k_TD, v_TD = qkv_TD.chunk(3, dim=1)
    future_TT = torch.ones(len(q_TD), len(q_TD)).triu(1).bool()
    heads: list[Tensor] = []
    for q, k, v in zip(*(x.chunk(n_heads, dim=1) for x in (q_TD, k_TD, v_TD)), strict=True):
        scores_TT = (q @ k.T / math.sqrt(q.shape[1])).masked_fill(future_TT, -math.inf)
        heads.append(scores_TT.softmax(1) @ v)
    return torch.cat(heads, 1)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    eps = torch.finfo(torch.float32).eps
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def test_hidden_states_and_logits_are_the_studys_definition():
    config = DecoderConfig(**TINY)
    model = loud(config)
    tokens_T = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
    x_TD = model.embedding.weight[tokens_T] * math.sqrt(config.d_model)
    for layer in model.layers:
        qkv_TD = rms_norm(x_TD, layer.attention_norm.weight) @ layer.qkv.weight.T
        mixed_TD = attention_by_definition(qkv_TD, config.n_heads)
        x_TD = x_TD + mixed_TD @ layer.attention_out.weight.T
        up = rms_norm(x_TD, layer.feed_forward_norm.weight) @ layer.up.weight.T
        x_TD = x_TD + F.silu(up) @ layer.down.weight.T
    hidden_TD = rms_norm(x_TD, model.final_norm.weight)
    torch.testing.assert_close(model(tokens_T[None])[0], hidden_TD, rtol=1e-4, atol=1e-5)
    logits_TV = hidden_TD @ model.embedding.weight.T
    torch.testing.assert_close(model.logits(hidden_TD), logits_TV, rtol=1e-4, atol=1e-5)


def test_weights_come_from_the_seed_alone():
    torch.manual_seed(1)
    first = Decoder(DecoderConfig(**TINY), seed=7).state_dict()
    torch.manual_seed(2)
    again = Decoder(DecoderConfig(**TINY), seed=7).state_dict()
    other = Decoder(DecoderConfig(**TINY), seed=8).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(not torch.equal(first[name], other[name]) for name in first if "norm" not in name)


def test_matrices_start_with_deviation_0_02_and_norms_at_1():
    sizes = {"vocab_size": 200, "d_model": 64, "n_heads": 2, "n_layers": 1, "d_ff": 96}
    for name, weight in Decoder(DecoderConfig(**sizes), seed=0).state_dict().items():
        if weight.ndim == 1:
            assert torch.equal(weight, torch.ones(64)), name
        else:
            assert float(weight.std()) == pytest.approx(0.02, rel=0.05), name
            assert abs(float(weight.mean())) < 0.002, name


def test_dropout_scales_what_is_kept_and_is_off_in_evaluation():
    config = DecoderConfig(**TINY, dropout=0.25)
    model, plain = loud(config), loud(DecoderConfig(**TINY))
    tokens_BT = torch.randint(50, (64, 12))
    assert torch.equal(model.eval()(tokens_BT), plain.eval()(tokens_BT))
    torch.manual_seed(0)
    dropped = model.train().dropout(torch.ones(100_000))
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert not torch.equal(model(tokens_BT), plain(tokens_BT))


def test_dropout_is_after_the_embedding_and_at_the_end_of_both_branches_of_every_layer():
    model = Decoder(DecoderConfig(**TINY, dropout=0.25), seed=0)
    calls: list[torch.Size] = []
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.register_forward_hook(lambda _m, _i, output: calls.append(output.shape))
    model(torch.zeros(3, 5, dtype=torch.int64))
    assert calls == [(3, 5, 16)] * (1 + 2 * 2)
