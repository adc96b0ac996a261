"""Predicted memory against what a step really holds, counted tensor by tensor."""

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from quarterhour.search_spaces.point import TrialConfig
from quarterhour.search_spaces.profiles import PAPER, QUICK
from quarterhour.tune.training.memory import live_bytes
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
    assert terms["loss"] == 49_152 * (384 * 6 + 512 * 2) + 8_192 * 384 * 2
    a_layer = 4 * (2 * 384 + 2 + 6) + 2 * (6 * 384 + 2 * 1536)
    assert terms["activations"] == tokens * (layers * a_layer + 16 + 4 * 385 + 2 * 2 * 384)


def test_dropouts_masks_are_bytes_on_a_gpu_and_numbers_on_a_cpu():
    dropping = PAPER.baseline.with_values({"model.dropout": 0.1})
    for device, a_layer, embedding in (("cuda", 1, 1), ("cpu", 2, 4)):
        with_masks, without = (live_bytes(c, device) for c in (dropping, PAPER.baseline))
        masks = 8 * 512 * 384 * (12 * 2 * a_layer + embedding)
        assert with_masks["activations"] - without["activations"] == masks
