import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import quarterhour.model.loss
from quarterhour.model.loss import (
    BLOCK_ROWS,
    CALIBRATION_BINS,
    mean_cross_entropy,
    token_loss,
    token_metrics,
)

VOCAB, WIDTH = 37, 12
COUNTS = [1, BLOCK_ROWS - 1, BLOCK_ROWS, BLOCK_ROWS + 1, 2 * BLOCK_ROWS, 3 * BLOCK_ROWS + 100]


def inputs(count: int, vocab: int = VOCAB, width: int = WIDTH) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, embedding (both wanting gradients) and targets."""
    generator = torch.Generator().manual_seed(count)
    hidden_ND = torch.randn(count, width, generator=generator).requires_grad_()
    embedding_VD = torch.randn(vocab, width, generator=generator).requires_grad_()
    return hidden_ND, embedding_VD, torch.randint(vocab, (count,), generator=generator)


def gradients(loss: Tensor, hidden_ND: Tensor, embedding_VD: Tensor) -> tuple[Tensor, Tensor]:
    return torch.autograd.grad(loss, (hidden_ND, embedding_VD))


def distance(one: Tensor, other: Tensor) -> float:
    """Norm of the difference, relative to the other's."""
    return float((one.double() - other.double()).norm() / other.double().norm())


class LargestTensor(TorchDispatchMode):
    """Records the elements of the largest tensor that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in results if isinstance(results, tuple | list) else [results]:
            if isinstance(result, Tensor):
                self.elements = max(self.elements, result.numel())
        return results


@pytest.mark.parametrize("count", COUNTS)
def test_loss_and_both_gradients_are_those_of_cross_entropy(count: int):
    hidden_ND, embedding_VD, targets_N = inputs(count)
    expected = F.cross_entropy(hidden_ND @ embedding_VD.T, targets_N)
    loss = mean_cross_entropy(hidden_ND, embedding_VD, targets_N)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    for ours, theirs in zip(
        gradients(loss, hidden_ND, embedding_VD),
        gradients(expected, hidden_ND, embedding_VD),
        strict=True,
    ):
        assert ours.shape == theirs.shape
        assert distance(ours, theirs) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [100, BLOCK_ROWS + 1])
def test_under_autocast_they_are_so_within_its_rounding(dtype: torch.dtype, count: int):
    hidden_ND, embedding_VD, targets_N = inputs(count)
    with torch.autocast("cpu", dtype):
        loss = mean_cross_entropy(hidden_ND, embedding_VD, targets_N)
    assert loss.dtype == torch.float32
    expected = F.cross_entropy(hidden_ND @ embedding_VD.T, targets_N)
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(loss, expected, rtol=2 * rounding, atol=0)
    for ours, theirs in zip(
        gradients(loss, hidden_ND, embedding_VD),
        gradients(expected, hidden_ND, embedding_VD),
        strict=True,
    ):
        assert ours.dtype == torch.float32
        assert distance(ours, theirs) < 2 * rounding


@pytest.mark.parametrize("count", [1, 1_030])
def test_a_z_loss_changes_the_gradients_alone(count: int):
    hidden_ND, embedding_VD, targets_N = inputs(count)
    logits_NV = hidden_ND @ embedding_VD.T
    expected = F.cross_entropy(logits_NV, targets_N)
    with_z = expected + 0.1 * logits_NV.logsumexp(1).square().mean()
    loss = mean_cross_entropy(hidden_ND, embedding_VD, targets_N, 0.1)
    torch.testing.assert_close(loss, expected)
    theirs = gradients(with_z, hidden_ND, embedding_VD)
    for ours, of_definition in zip(gradients(loss, hidden_ND, embedding_VD), theirs, strict=True):
        assert distance(ours, of_definition) < 1e-5


def test_autocast_computes_in_its_dtype():
    hidden_ND, embedding_VD, targets_N = inputs(100)
    exact = token_loss(hidden_ND, embedding_VD, targets_N)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = token_loss(hidden_ND, embedding_VD, targets_N)
    assert rounded != exact


@pytest.mark.parametrize("count", COUNTS)
def test_token_loss_is_the_same_value_without_a_gradient(count: int):
    hidden_ND, embedding_VD, targets_N = inputs(count)
    loss = token_loss(hidden_ND, embedding_VD, targets_N)
    expected = mean_cross_entropy(hidden_ND, embedding_VD, targets_N)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=0)
    assert not loss.requires_grad


def test_a_scaled_loss_has_scaled_gradients():
    hidden_ND, embedding_VD, targets_N = inputs(BLOCK_ROWS + 1)
    plain = gradients(
        mean_cross_entropy(hidden_ND, embedding_VD, targets_N), hidden_ND, embedding_VD
    )
    scaled = gradients(
        mean_cross_entropy(hidden_ND, embedding_VD, targets_N) * 65_536, hidden_ND, embedding_VD
    )
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(other, one * 65_536, rtol=1e-6, atol=0)


def test_the_loss_changes_none_of_its_inputs():
    before = inputs(100)
    after = inputs(100)
    mean_cross_entropy(*after).backward()
    token_loss(*after)
    token_metrics(*after)
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


@pytest.mark.parametrize("loss_of", [mean_cross_entropy, token_loss])
def test_a_target_of_vanishing_probability_has_its_finite_loss(loss_of: Any):
    hidden_ND = torch.tensor([[400.0, 0.0], [0.0, 400.0]])
    targets_N = torch.tensor([1, 1])
    assert float(loss_of(hidden_ND, torch.eye(2), targets_N)) == pytest.approx(200.0)


def metrics_by_definition(logits_NV: Tensor, targets_N: Tensor) -> dict[str, float]:
    p_NV = logits_NV.double().softmax(1)
    ranking_NV = p_NV.argsort(dim=1, descending=True)
    places_N = (ranking_NV == targets_N[:, None]).int().argmax(1)
    return {
        "loss": float(-p_NV.gather(1, targets_N[:, None]).log().mean()),
        "accuracy": float((places_N == 0).double().mean()),
        "top5_accuracy": float((places_N < 5).double().mean()),
        "confidence": float(p_NV.amax(1).mean()),
        "entropy": float(-(p_NV * p_NV.log()).sum(1).mean()),
    }


@pytest.mark.parametrize("elements", [VOCAB // 2, 7 * VOCAB, 10**6])
def test_token_metrics_are_their_definitions_in_blocks_of_any_size(
    elements: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("quarterhour.model.loss.METRIC_ELEMENTS", elements)
    hidden_ND, embedding_VD, targets_N = inputs(100)
    targets_N[:30] = (hidden_ND @ embedding_VD.T).argmax(1)[:30]
    measured, _ = token_metrics(hidden_ND, embedding_VD, targets_N)
    expected = metrics_by_definition((hidden_ND @ embedding_VD.T).detach(), targets_N)
    assert {name: float(value) for name, value in measured.items()} == pytest.approx(expected)
    assert 0.3 <= measured["accuracy"] < measured["top5_accuracy"] < 1
    assert not measured["loss"].requires_grad


def test_token_metrics_of_a_blind_model_are_those_of_a_guess():
    hidden_ND, embedding_VD = torch.zeros(10, 4), torch.ones(64, 4)
    metrics, _ = token_metrics(hidden_ND, embedding_VD, torch.arange(10))
    assert float(metrics["loss"]) == pytest.approx(math.log(64))
    assert float(metrics["entropy"]) == pytest.approx(math.log(64))
    assert float(metrics["confidence"]) == pytest.approx(1 / 64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_entropy_under_autocast_is_finite_where_a_probability_underflows(dtype: torch.dtype):
    hidden_ND, embedding_VD = torch.tensor([[200.0, 0.0]]), torch.eye(2).repeat(4, 1)
    with torch.autocast("cpu", dtype):
        metrics, _ = token_metrics(hidden_ND, embedding_VD, torch.tensor([0]))
    assert float(metrics["entropy"]) == pytest.approx(math.log(4), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_rounds_logits_and_nothing_after_them(dtype: torch.dtype):
    hidden_ND, embedding_VD, targets_N = inputs(700)
    rounded = hidden_ND.detach().to(dtype), embedding_VD.detach().to(dtype)
    expected, expected_3K = token_metrics(*rounded, targets_N)
    with torch.autocast("cpu", dtype):
        metrics, bins_3K = token_metrics(hidden_ND, embedding_VD, targets_N)
    assert metrics == expected
    assert torch.equal(bins_3K, expected_3K)
    assert bins_3K[0].sum() == 700


@pytest.mark.parametrize("elements", [VOCAB // 2, 7 * VOCAB, 10**6])
def test_calibration_bins_count_tokens_by_confidence(
    elements: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("quarterhour.model.loss.METRIC_ELEMENTS", elements)
    hidden_ND, embedding_VD, targets_N = inputs(300)
    targets_N[:90] = (hidden_ND @ embedding_VD.T).argmax(1)[:90]
    metrics, bins_3K = token_metrics(hidden_ND, embedding_VD, targets_N)
    confidences, predicted = (hidden_ND @ embedding_VD.T).detach().softmax(1).max(1)
    edges = torch.linspace(0, 1, CALIBRATION_BINS + 1)
    for number, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = (confidences >= low) & (confidences < high)
        correct = (predicted == targets_N)[inside].sum()
        expected = [inside.sum(), confidences[inside].sum(), correct]
        assert bins_3K[:, number].tolist() == pytest.approx([float(x) for x in expected])
    assert (bins_3K[0] > 0).sum() > 10
    assert float(bins_3K[1].sum() / 300) == pytest.approx(float(metrics["confidence"]))
    assert float(bins_3K[2].sum() / 300) == pytest.approx(float(metrics["accuracy"]))


def test_a_token_of_full_confidence_is_in_the_last_bin():
    hidden_ND, embedding_VD = torch.tensor([[200.0, 0.0], [0.0, 0.0]]), torch.eye(2)
    _, bins_3K = token_metrics(hidden_ND, embedding_VD, torch.tensor([0, 1]))
    assert bins_3K[:, -1].tolist() == [1, 1, 1]
    assert bins_3K[0, CALIBRATION_BINS // 2] == 1
    assert bins_3K[0].sum() == 2


@pytest.mark.parametrize("measure", [mean_cross_entropy, token_loss, token_metrics])
def test_no_tensor_is_tokens_by_vocabulary(measure: Any):
    count, vocab = 4 * BLOCK_ROWS, 1_000
    hidden_ND, embedding_VD, targets_N = inputs(count, vocab)
    with LargestTensor() as largest:
        result = measure(hidden_ND, embedding_VD, targets_N)
        if measure is mean_cross_entropy:
            result.backward()
    assert largest.elements <= max(BLOCK_ROWS * vocab, quarterhour.model.loss.METRIC_ELEMENTS)
    assert largest.elements < count * vocab / 1.9
    with LargestTensor() as largest_of_all:
        hidden_ND @ embedding_VD.T
    assert largest_of_all.elements == count * vocab
