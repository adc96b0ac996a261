"""What a trial measures besides its steps: a training batch, both validation sets, text samples.

Shapes: B batch, T time, K bins of calibration. The device is waited for once a set, at its end.
"""

import math
import statistics
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from quarterhour.data.batches import Batches
from quarterhour.data.decoding import continuation_text, prompt_tokens
from quarterhour.data.tokens import TokenData
from quarterhour.model.sampling import PROMPTS, continue_tokens
from quarterhour.tune.run_folder import (
    EMA_HELDOUT_LOSS,
    EVAL_CALIBRATION,
    EVAL_LOSS,
    HELDOUT_BITS_PER_BYTE,
    HELDOUT_LOSS,
    LAYER_GRAD_NORM,
    Row,
)
from quarterhour.tune.training.trainer import Trainer

SAMPLE_TOKENS = 24
LARGEST_EXPONENT = 20.0  # of a perplexity

Sample = dict[str, str]


def measure_train_batch(trainer: Trainer, batch_BT: Tensor) -> Row:
    """The reference's measures of a training batch [B, T + 1], which it takes before the update."""
    row: Row = {}
    with _timed(row, trainer.device):
        (metrics,), _ = batch_metrics(trainer, [batch_BT])
        row |= {f"train_batch_{name}": value for name, value in metrics.items()}
    return row


def evaluate(trainer: Trainer, batches: Batches, train_batch: Row) -> tuple[Row, list[Sample]]:
    """The rest of an evaluation, after the update: its measures with `train_batch`, its samples.

    A model whose loss is not finite has no samples.
    """
    row, samples = {**train_batch}, list[Sample]()
    with _timed(row, trainer.device):
        row |= leaky_metrics(trainer, batches) | _all_heldout_metrics(trainer, batches)
        for layer, norm in enumerate(trainer.layer_grad_norms.tolist()):
            row[f"{LAYER_GRAD_NORM}{layer:02d}"] = norm
        if math.isfinite(row[EVAL_LOSS]):
            samples = continue_prompts(trainer, batches.tokens)
    return row, samples


def evaluate_heldout(trainer: Trainer, batches: Batches) -> Row:
    """The held-out measures alone, which the end of a quarter has."""
    row: Row = {}
    with _timed(row, trainer.device):
        row |= _all_heldout_metrics(trainer, batches)
    return row


def _all_heldout_metrics(trainer: Trainer, batches: Batches) -> Row:
    """The held-out measures, with the loss of the averaged weights where there are such."""
    row = heldout_metrics(trainer, batches)
    if trainer.config.optim.ema_decay:
        with trainer.averaged():
            row[EMA_HELDOUT_LOSS] = heldout_metrics(trainer, batches)[HELDOUT_LOSS]
    return row


def batch_metrics(
    trainer: Trainer, batches: Sequence[Tensor]
) -> tuple[list[dict[str, float]], np.ndarray]:
    """The reference's measures of each batch [B, T + 1], and the bins [3, K] of all together.

    Perplexity is exp(min(loss, 20)).
    """
    means, bins_3K = zip(*map(trainer.metrics, batches), strict=True)
    values = torch.stack([torch.stack([*of_batch.values()]) for of_batch in means]).tolist()
    metrics = [dict(zip(means[0], of_batch, strict=True)) for of_batch in values]
    for of_batch in metrics:
        of_batch["perplexity"] = math.exp(min(of_batch["loss"], LARGEST_EXPONENT))
    return metrics, torch.stack(bins_3K).cpu().double().numpy().sum(0)


def leaky_metrics(trainer: Trainer, batches: Batches) -> Row:
    """The reference's validation measures: means over batches, perplexity's too.

    `eval_calibration` has three lists by confidence in 15 equal bins: tokens, sums of their
    confidences, tokens predicted correctly.
    """
    validation = batches.leaky_validation(trainer.config.budget.eval_batches)
    metrics, bins_3K = batch_metrics(trainer, _on_device(validation, trainer.device))
    row: Row = {f"eval_{name}": statistics.fmean(m[name] for m in metrics) for name in metrics[0]}
    tokens_K, confidence_K, correct_K = bins_3K
    bins = [tokens_K.astype(int), confidence_K, correct_K.astype(int)]
    return row | {EVAL_CALIBRATION: [bin_K.tolist() for bin_K in bins]}


def heldout_metrics(trainer: Trainer, batches: Batches) -> Row:
    """Loss in nats a token, and in bits a byte, which does not depend on the tokenizer.

    Text that the tokenizer loses would count as known without a bit: then bits a byte are left out.
    """
    heldout = _on_device(batches.heldout(), trainer.device)
    losses = torch.stack([trainer.loss(batch_BT) for batch_BT in heldout]).tolist()
    nats = 0.0
    for loss, batch_BT in zip(losses, heldout, strict=True):  # sum() rounds by Python's version
        nats += loss * batch_BT[:, 1:].numel()
    manifest = batches.tokens.manifest
    row: Row = {HELDOUT_LOSS: nats / (manifest.heldout_tokens - 1)}
    if not manifest.heldout_lost_share:
        row[HELDOUT_BITS_PER_BYTE] = nats / math.log(2) / manifest.heldout_bytes
    return row


def continue_prompts(trainer: Trainer, tokens: TokenData) -> list[Sample]:
    """The five prompts, and what the model continues them with."""
    tokenizer = tokens.tokenizer()
    prompts = [prompt_tokens(tokenizer, prompt) for prompt in PROMPTS]
    continuations = continue_tokens(
        trainer.model,
        prompts,
        new_tokens=SAMPLE_TOKENS,
        seq_len=trainer.config.data.seq_len,
        seed=trainer.config.seed,
    )
    return [
        {"prompt": text, "continuation": continuation_text(tokenizer, prompt, continuation)}
        for text, prompt, continuation in zip(PROMPTS, prompts, continuations, strict=True)
    ]


def _on_device(batches: Iterable[np.ndarray], device: torch.device) -> list[Tensor]:
    """All batches of a set, before the first is measured: a copy waits for the work before it."""
    return [torch.from_numpy(batch).to(device) for batch in batches]


@contextmanager
def _timed(row: Row, device: torch.device) -> Generator[None]:
    """Add the time of the block, and not of the steps before it, to the row's `eval_seconds`."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    yield
    row["eval_seconds"] = row.get("eval_seconds", 0.0) + time.perf_counter() - begin
