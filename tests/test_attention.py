from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from quarterhour.model.attention import Sight, causal_attention
from quarterhour.model.rms_norm import RMSNorm


def random_qkv(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    qkv = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    return qkv.to(dtype).requires_grad_()


def ours(qkv_3BHTK: Tensor) -> Tensor:
    return causal_attention(*qkv_3BHTK.unbind())


def torchs(qkv_3BHTK: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*qkv_3BHTK, is_causal=True)  # pyright: ignore


def relative(one: Tensor, other: Tensor) -> float:
    return float((one.detach() - other.detach()).norm() / other.detach().norm())


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 40), st.integers(1, 9)),
    st.integers(1, 17),
    st.integers(1, 500),
)
def test_any_blocks_give_torchs_values_and_gradients(
    shape: tuple[int, ...], queries: int, scores: int
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quarterhour.model.attention.BLOCK_QUERIES", queries)
        patch.setattr("quarterhour.model.attention.BLOCK_SCORES", scores)
        qkv = random_qkv(shape)
        mixed, expected = ours(qkv), torchs(qkv)
        torch.testing.assert_close(mixed, expected)
        grad = torch.randn_like(expected)
        (grad_ours,) = torch.autograd.grad(mixed, qkv, grad)
        (theirs,) = torch.autograd.grad(expected, qkv, grad)
        torch.testing.assert_close(grad_ours, theirs)


@given(
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 40), st.integers(1, 9)),
    st.integers(1, 3),
    st.integers(1, 17),
)
def test_heads_that_share_keys_are_as_if_each_had_its_own(
    shape: tuple[int, ...], sharing: int, queries: int
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quarterhour.model.attention.BLOCK_QUERIES", queries)
        patch.setattr("quarterhour.model.attention.BLOCK_SCORES", 300)
        _, k, v = given_qkv = random_qkv(shape)
        q = random_qkv((shape[0], sharing * shape[1], *shape[2:]))[0]
        repeated = [x.repeat_interleave(sharing, 1) for x in (k, v)]
        mixed = causal_attention(q, k, v)
        expected = F.scaled_dot_product_attention(q, *repeated, is_causal=True)
        torch.testing.assert_close(mixed, expected)
        grad = torch.randn_like(expected)
        grad_ours = torch.autograd.grad(mixed, (q, given_qkv), grad)
        torch.testing.assert_close(grad_ours, torch.autograd.grad(expected, (q, given_qkv), grad))


@given(
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 40), st.integers(1, 9)),
    st.integers(1, 2),
    st.integers(1, 17),
    st.none() | st.integers(1, 50),
    st.sampled_from([0.0, 0.7]),
)
def test_windows_and_soft_caps_are_those_of_the_definition(
    shape: tuple[int, ...], sharing: int, queries: int, window: int | None, cap: float
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quarterhour.model.attention.BLOCK_QUERIES", queries)
        patch.setattr("quarterhour.model.attention.BLOCK_SCORES", 300)
        _, k, v = given_qkv = random_qkv(shape)
        q = random_qkv((shape[0], sharing * shape[1], *shape[2:]))[0]
        mixed = causal_attention(q, k, v, Sight(window, cap))
        scores = q @ k.repeat_interleave(sharing, 1).mT * shape[-1] ** -0.5
        scores = cap * torch.tanh(scores / cap) if cap else scores
        distance = torch.arange(shape[2]).unsqueeze(1) - torch.arange(shape[2])
        unseen = (distance < 0) | (distance >= (window or shape[2]))
        p = scores.masked_fill(unseen, -torch.inf).softmax(-1)
        expected = p @ v.repeat_interleave(sharing, 1)
        torch.testing.assert_close(mixed, expected)
        grad = torch.randn_like(expected)
        grad_ours = torch.autograd.grad(mixed, (q, given_qkv), grad)
        torch.testing.assert_close(grad_ours, torch.autograd.grad(expected, (q, given_qkv), grad))


def test_in_bf16_they_are_so_within_its_rounding():
    exact, rounded = random_qkv((2, 3, 300, 16)), random_qkv((2, 3, 300, 16), torch.bfloat16)
    mixed, expected = ours(rounded), torchs(exact)
    grad = torch.randn_like(mixed)
    (grad_ours,) = torch.autograd.grad(mixed, rounded, grad)
    (theirs,) = torch.autograd.grad(expected, exact, grad.double())
    rounding = torch.finfo(torch.bfloat16).eps
    assert 0 < relative(mixed, expected) < rounding
    assert 0 < relative(grad_ours, theirs) < rounding


@pytest.mark.parametrize("shape", [(7, 12), (2, 5, 12)])
def test_rms_norm_has_torchs_values_and_gradients(shape: tuple[int, ...]):
    norm, theirs = RMSNorm(12).double(), torch.nn.RMSNorm(12, eps=torch.finfo().eps).double()
    norm.weight.data.normal_()
    theirs.load_state_dict(norm.state_dict())
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(norm(x), theirs(x))
    grad = torch.randn_like(x)
    ours = torch.autograd.grad(norm(x), (x, norm.weight), grad)
    torch.testing.assert_close(ours, torch.autograd.grad(theirs(x), (x, theirs.weight), grad))


def test_rms_norm_of_zeros_is_zero_and_of_autocasts_dtype():
    with torch.autocast("cpu", torch.bfloat16):
        normed = RMSNorm(4)(torch.zeros(3, 4))
    assert torch.equal(normed, torch.zeros(3, 4, dtype=torch.bfloat16))


@pytest.mark.parametrize("layer", [RMSNorm(8).to("meta"), ours])
def test_other_devices_use_torchs_kernels(layer: Callable[[Tensor], Tensor]):
    x = torch.randn(3, 2, 2, 5, 8, device="meta", requires_grad=True)
    names: set[str] = set()
    nodes = [layer(x).grad_fn]
    while nodes:
        if node := nodes.pop():
            names.add(node.name())
            nodes += [following for following, _ in node.next_functions]
    assert names
    assert not names & {"_BlockwiseAttentionBackward", "_RMSNormBackward"}
