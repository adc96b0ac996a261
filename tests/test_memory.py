"""Predicted memory against what a step really holds, counted tensor by tensor."""

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from quarterhour.model.loss import token_metrics
from quarterhour.search_spaces.point import TrialConfig
from quarterhour.search_spaces.profiles import PAPER, QUICK
from quarterhour.search_spaces.reference import reference_configurations
from quarterhour.tune.training.memory import (
    RESERVED,
    keeps_scores,
    live_bytes,
    peak_bytes,
    reserved_bytes,
)
from quarterhour.tune.training.trainer import Trainer

CPU = torch.device("cpu")


class CountsLiveBytes(TorchDispatchMode):
    """Bytes of all tensors made under it that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in pytree.tree_leaves(results):
            if isinstance(result, Tensor):
                self._count(result.untyped_storage())
        return results

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._alive:
            self._alive[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, storage._cdata)

    def _forget(self, key: int) -> None:
        self.now -= self._alive.pop(key)


def held_by_a_step(config: TrialConfig) -> int:
    """Peak of the second step: the first makes the optimizer's moments at its end."""
    with CountsLiveBytes() as counted:
        trainer = Trainer(config, CPU)
        shape = (config.data.batch_size, config.data.seq_len + 1)
        batch = torch.randint(config.model.vocab_size, shape)
        for _ in range(2):
            trainer.train_step(batch)
        in_training, counted.peak = counted.peak, 0
        trainer.loss(batch)
        trainer.metrics(batch)
    assert counted.peak <= in_training
    return in_training


SHAPES: list[dict[str, Any]] = [
    {},
    {"model.positions": "rope"},
    {"model.dropout": 0.1},
    {"data.batch_size": 32, "data.seq_len": 64},
    {"model.d_model": 192, "model.d_ff": 768, "model.n_layers": 6},
    {"model.vocab_size": 20_000, "data.batch_size": 8, "data.seq_len": 64},
    {"model.feed_forward": "relu2"},
    {"model.heads_per_kv": 3},
    {"optim.optimizer": "muon"},
    {"optim.ema_decay": 0.99},
    {"model.head": "untied"},
    {"model.attention": "window", "model.window": 32, "model.soft_cap": 30.0},
    {"model.positions": "rope-full", "model.head": "untied", "optim.z_loss": 1e-4},
    {"model.qk_norm": "rms", "model.heads_per_kv": 2, "model.positions": "rope"},
    {"model.norm": "layer"},
    {"model.norm": "layer", "model.norm_place": "pre-and-post"},
    {"model.norm_place": "pre-and-post", "model.dropout": 0.1},
    {"model.feed_forward": "swiglu", "model.d_ff": 512},
    {"model.feed_forward": "moe", "model.d_ff": 128},
    {"model.feed_forward": "moe", "model.d_ff": 128, "model.active_experts": 3},
]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("values", SHAPES, ids=str)
def test_what_a_step_holds_is_what_the_formula_says(values: dict[str, Any], precision: str):
    config = QUICK.baseline.with_values({**values, "precision": precision})
    predicted = sum(live_bytes(config, "cpu").values())
    assert predicted == pytest.approx(held_by_a_step(config), rel=0.02)


def test_with_few_tokens_the_end_of_the_backward_is_the_peak():
    few = PAPER.baseline.with_values({"data.batch_size": 1, "data.seq_len": 64})
    assert live_bytes(few, "cuda")["gradients"] == 4 * (40_117_632 + 2 * 49_152 * 384)
    assert "gradients" not in live_bytes(PAPER.baseline, "cuda")


def test_the_papers_baseline_on_a_gpu_by_hand():
    parameters, layers, tokens = 40_117_632, 12, 8 * 512
    terms = live_bytes(PAPER.baseline, "cuda")
    assert terms["weights"] == 4 * parameters
    assert terms["optimizer"] == 8 * parameters
    # All but the embedding and the norms: two a layer, and the last.
    assert terms["weight copies"] == 2 * (parameters - 49_152 * 384 - 25 * 384)
    assert terms["loss"] == 49_152 * (384 * 6 + 2_048 * 2)
    a_layer = 4 * (2 * 384 + 2 + 6) + 2 * (6 * 384 + 2 * 1536)
    assert terms["activations"] == tokens * (layers * a_layer + 16 + 4 * 385 + 2 * 2 * 384)


def test_dropouts_masks_are_bytes_on_a_gpu_and_numbers_on_a_cpu():
    dropping = PAPER.baseline.with_values({"model.dropout": 0.1})
    for device, a_layer, embedding in (("cuda", 1, 1), ("cpu", 2, 4)):
        with_masks, without = (live_bytes(c, device) for c in (dropping, PAPER.baseline))
        masks = 8 * 512 * 384 * (12 * 2 * a_layer + embedding)
        assert with_masks["activations"] - without["activations"] == masks


ROPE = {"model.positions": "rope"}
LARGEST = {
    "model.d_model": 768, "model.d_ff": 3072, "model.n_layers": 24, "data.batch_size": 32,
    "data.seq_len": 1024,
}  # fmt: skip
SMALLEST = {
    "model.d_model": 128, "model.n_heads": 2, "model.d_ff": 512, "model.n_layers": 4,
    "data.batch_size": 2, "data.seq_len": 128,
}  # fmt: skip
ROPE_AND_DROPOUT = {**ROPE, "model.dropout": 0.1}
Measured = tuple[str, str, dict[str, Any], float]
# On an H200 with torch 2.11.0+cu130 and segments that grow, the largest memory in MB that a trainer
# allocated, in a process of its own: metrics, first step, recorded step, replays.
ON_AN_H200: list[Measured] = [
    ("baseline", "fp16", {}, 1667),
    ("large_batch", "fp16", {}, 2360),
    ("baseline", "fp16", ROPE_AND_DROPOUT, 1744),
    ("baseline", "fp16", {**LARGEST, **ROPE_AND_DROPOUT, "model.n_heads": 12}, 27830),
]
# Beside another trainer's workspaces; it made two more itself.
BESIDE_ANOTHER: list[Measured] = [
    ("short_seq", "fp16", {}, 1426),
    ("small_model", "fp16", {}, 1050),
]
# The same when a block of the loss had 512 rows, and one of the metrics 21.
WITH_SMALL_BLOCKS: list[Measured] = [
    ("baseline", "fp16", {}, 1454.6),
    ("baseline", "bf16", {}, 1454.6),
    ("baseline", "fp32", {}, 1965.8),
    ("large_batch", "fp16", {}, 2148.3),
    ("large_batch", "bf16", {}, 2148.3),
    ("short_seq", "fp16", {}, 1281.2),
    ("short_seq", "bf16", {}, 1281.2),
    ("small_model", "fp16", {}, 903.2),
    ("small_model", "bf16", {}, 903.2),
    ("baseline", "bf16", ROPE, 1493.2),
    ("baseline", "fp16", ROPE_AND_DROPOUT, 1532.5),
    ("baseline", "bf16", ROPE_AND_DROPOUT, 1532.5),
    ("baseline", "bf16", {**LARGEST, **ROPE_AND_DROPOUT, "model.n_heads": 12}, 27664.1),
    ("baseline", "fp16", {**LARGEST, "model.n_heads": 24}, 25282.8),
    ("baseline", "fp16", SMALLEST, 223.7),
]

# Other parts of a decoder and an optimizer, at the baseline's size, from steps and one evaluation.
OF_CHOICES: list[Measured] = [
    ("baseline", "bf16", {"model.feed_forward": "swiglu", "model.d_ff": 1024}, 1775.9),
    ("baseline", "bf16", {"model.heads_per_kv": 2}, 1612.7),
    ("baseline", "bf16", {"model.qk_norm": "rms"}, 1790.8),
    ("baseline", "bf16", {"model.norm": "layer"}, 1675.6),
    ("baseline", "bf16", {"model.norm_place": "pre-and-post"}, 1826.7),
    ("baseline", "bf16", {"model.attention": "window"}, 1617.7),
    ("baseline", "bf16", {"model.soft_cap": 50.0}, 1598.5),
    ("baseline", "bf16", {"model.positions": "rope-full"}, 1639.0),
    ("baseline", "bf16", {"model.head": "untied"}, 1901.7),
    ("baseline", "bf16", {"model.feed_forward": "moe", "model.d_ff": 512}, 4060.7),
    ("baseline", "bf16", {"optim.ema_decay": 0.999}, 1835.7),
    ("baseline", "bf16", {"optim.z_loss": 1e-4}, 1675.2),
    ("baseline", "bf16", {"optim.optimizer": "muon"}, 1590.2),
]
# Whole trials of a grid under Ray, six at once.
IN_A_GRID: list[Measured] = [
    ("baseline", "fp16", {}, 1743.2),
    ("high_lr", "fp16", {}, 1743.2),
    ("low_lr", "fp16", {}, 1743.2),
    ("large_batch", "fp16", {}, 2512.5),
    ("short_seq", "fp16", {}, 1550.9),
    ("small_model", "fp16", {}, 1168.7),
]


def predicted(point: Measured) -> float:
    """Predicted by measured memory."""
    name, precision, values, measured = point
    config = reference_configurations(PAPER, "as-run")[name]
    config = config.with_values({**values, "precision": precision})
    return peak_bytes(config, "cuda", (9, 0)) / 1e6 / measured


@pytest.mark.parametrize("point", ON_AN_H200)
def test_an_h200_has_allocated_what_is_predicted(point: Measured):
    assert predicted(point) == pytest.approx(1, rel=0.005)


@pytest.mark.parametrize("point", BESIDE_ANOTHER)
def test_so_it_has_beside_another(point: Measured, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("quarterhour.tune.training.memory.WORKSPACES", 3)
    assert predicted(point) == pytest.approx(1, rel=0.005)


@pytest.mark.parametrize("point", WITH_SMALL_BLOCKS)
def test_so_it_has_with_small_blocks(point: Measured, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("quarterhour.tune.training.memory.WORKSPACES", 3)
    monkeypatch.setattr("quarterhour.model.loss.GPU_BLOCK_ROWS", 512)
    monkeypatch.setattr("quarterhour.tune.training.memory.BLOCK_ROWS", 21)
    assert predicted(point) == pytest.approx(1, rel=0.04)


@pytest.mark.parametrize("point", OF_CHOICES)
def test_so_it_has_for_other_choices(point: Measured):
    assert predicted(point) == pytest.approx(1, rel=0.045)


@pytest.mark.parametrize("point", IN_A_GRID)
def test_so_it_has_in_whole_trials(point: Measured):
    assert predicted(point) == pytest.approx(1, rel=0.065)


@pytest.mark.parametrize(
    ("point", "reserved"), [*zip(ON_AN_H200, [2351, 2984, 2414, 29320], strict=True)]
)
def test_an_h200_has_reserved_what_is_predicted(point: Measured, reserved: float):
    name, precision, values, _ = point
    config = reference_configurations(PAPER, "as-run")[name]
    config = config.with_values({**values, "precision": precision})
    third_block = RESERVED * 4 * 512 * 49_152  # that an evaluation had in fp32 when it was measured
    predicted = reserved_bytes(config, (9, 0)) + third_block
    assert predicted / 1e6 == pytest.approx(reserved, rel=0.03)


def test_with_few_tokens_an_evaluation_is_the_peak_on_a_gpu():
    few = PAPER.baseline.with_values(SMALLEST)
    assert live_bytes(few, "cuda")["metrics"] == 2 * 128 * 49_152 * (2 + 4 + 4)
    assert "metrics" not in live_bytes(few, "cpu")
    assert "metrics" not in live_bytes(PAPER.baseline, "cuda")


def test_metrics_on_a_gpu_hold_one_block_of_logits_and_its_probabilities():
    hidden_ND = torch.empty(4_096, 384, dtype=torch.bfloat16, device="meta")
    embedding_VD = torch.empty(49_152, 384, dtype=torch.bfloat16, device="meta")
    targets_N = torch.empty(4_096, dtype=torch.long, device="meta")
    with CountsLiveBytes() as counted:
        token_metrics(hidden_ND, embedding_VD, targets_N)
    made = counted.peak - hidden_ND.nbytes - embedding_VD.nbytes  # their views are counted too
    assert made == pytest.approx(49_152 * 512 * (2 + 4 + 4), rel=0.01)


def test_what_an_evaluation_takes_is_reserved_beside_a_recorded_step():
    copies, block = 2 * (40_117_632 - 25 * 384), 49_152 * 512 * (2 + 4 + 4)
    held = peak_bytes(PAPER.baseline, "cuda", (9, 0)) + 33_554_432 + copies + block
    assert reserved_bytes(PAPER.baseline, (9, 0)) == pytest.approx(1.03 * held + 160e6)


def test_a_gpu_from_hopper_on_gives_cublas_more():
    small, large = (peak_bytes(PAPER.baseline, "cuda", c) for c in ((8, 0), (9, 0)))
    assert large - small == 4 * (33_554_432 - 8_519_680)


@pytest.mark.parametrize(
    ("precision", "heads", "capability", "kept"),
    [
        ("fp16", 6, (7, 5), False),
        ("fp16", 8, (7, 5), False),
        ("fp16", 32, (7, 5), True),
        ("fp16", 32, (8, 0), False),
        ("bf16", 6, (7, 5), True),
        ("bf16", 32, (9, 0), False),
        ("fp32", 32, (9, 0), False),
        ("fp32", 64, (9, 0), True),
        ("fp32", 64, (7, 5), False),
    ],
)
def test_scores_are_kept_where_a_gpu_has_no_kernel(
    precision: Any, heads: int, capability: tuple[int, int], kept: bool
):
    model = replace(PAPER.baseline.model, n_heads=heads)
    config = replace(PAPER.baseline, model=model, precision=precision)
    assert keeps_scores(config, capability) is kept


@pytest.mark.parametrize("heads", [8, 32])
def test_what_a_step_holds_without_a_kernel_is_what_the_formula_says(
    heads: int, monkeypatch: pytest.MonkeyPatch
):
    def attention(*qkv_and_sight: Any) -> Tensor:
        *qkv, _ = qkv_and_sight
        with sdpa_kernel(SDPBackend.MATH):
            return torch.nn.functional.scaled_dot_product_attention(*qkv, is_causal=True)

    monkeypatch.setattr("quarterhour.model.decoder.causal_attention", attention)
    monkeypatch.setattr("quarterhour.model.loss.GPU_BLOCK_ROWS", 512)  # as a CPU has
    values = {"model.n_heads": heads, "data.batch_size": 8, "data.seq_len": 256}
    config = QUICK.baseline.with_values({**values, "precision": "bf16"})
    predicted = sum(live_bytes(config, "cuda", (7, 5)).values())
    assert predicted == pytest.approx(held_by_a_step(config), rel=0.08)
