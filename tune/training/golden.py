"""Golden figures: what the study's own code gives for weights and batches made by a formula.

They are loss, gradient norm, learning rate, logits and metrics of fp32 training as run. This code
must come within TOLERANCE of them.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quarterhour.data.batches import BatchConfig
from quarterhour.model.decoder import Decoder, DecoderConfig
from quarterhour.model.optim import OptimConfig
from quarterhour.search_spaces.point import BudgetConfig, TrialConfig
from quarterhour.tune.training.evaluation import batch_metrics
from quarterhour.tune.training.trainer import Trainer

TOLERANCE = 1e-4


def golden_cases() -> list[dict[str, Any]]:
    """The cases with their figures, each with its `config`."""
    return json.loads(Path(__file__).with_name("golden.json").read_text())


def build_trainer(config: dict[str, Any], device: torch.device) -> tuple[Trainer, torch.Tensor]:
    """A trainer with the case's weights, and its batches [steps, B, T + 1]."""
    rng = np.random.default_rng(config["seed"])
    sizes = ("vocab_size", "d_model", "n_heads", "n_layers", "d_ff")
    trainer = Trainer(
        TrialConfig(
            model=DecoderConfig(**{size: config[size] for size in sizes}),
            optim=OptimConfig(learning_rate=config["learning_rate"]),
            data=BatchConfig(batch_size=config["batch_size"], seq_len=config["seq_len"]),
            budget=BudgetConfig(steps=config["steps"], report_every=1, eval_every=1),
            precision="fp32",
        ),
        device,
    )
    draw_weights(trainer.model, rng)
    return trainer, draw_batches(config, rng).to(device)


def draw_weights(model: Decoder, rng: np.random.Generator) -> None:
    """Draw the weights as for `golden.json`: the embedding, then each layer's four matrices."""
    matrices: list[torch.Tensor] = [model.embedding.weight]
    for layer in model.layers:
        names = ("qkv", "attention_out", "up", "down")
        matrices += [layer.get_parameter(f"{name}.weight") for name in names]
    for matrix in matrices:
        drawn = (rng.standard_normal(tuple(matrix.shape)) * 0.02).astype(np.float32)
        matrix.data.copy_(torch.from_numpy(drawn))


def draw_batches(config: dict[str, Any], rng: np.random.Generator) -> torch.Tensor:
    """Token ids [steps, B, T + 1], drawn as for `golden.json`."""
    vocab_size, seq_len = config["vocab_size"], config["seq_len"]
    shape = (config["steps"], config["batch_size"], seq_len + 1)
    tokens = rng.integers(0, vocab_size, shape)
    tokens = (tokens % 17) * (vocab_size // 17) + np.arange(seq_len + 1) % 5
    return torch.from_numpy(tokens % vocab_size)


def measure(config: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The figures of a case, under the golden file's names."""
    trainer, batches = build_trainer(config, device)
    vocab_size, seq_len = config["vocab_size"], config["seq_len"]
    with torch.no_grad():
        logits = trainer.model.logits(trainer.model(batches[0][:, :-1]))
    probes = logits[0, 0, 0], logits[0, -1, vocab_size // 2], logits[-1, seq_len // 2, -1]
    measured: dict[str, Any] = {
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "initial_logits_probe": [*map(float, probes), float(logits.square().mean())],
    }
    series: dict[str, list[float]] = {"train_loss": [], "grad_norm": [], "learning_rate": []}
    for step, batch in enumerate(batches):
        if step == config["steps"] - 1:
            measured["last_batch_metrics"] = last_batch_metrics(trainer, batch)
        loss, norm = trainer.train_step(batch)
        series["train_loss"].append(float(loss))
        series["grad_norm"].append(float(norm))
        series["learning_rate"].append(trainer.learning_rate)
    return measured | series


def last_batch_metrics(trainer: Trainer, batch: torch.Tensor) -> dict[str, float]:
    """The metrics of a batch before its update, under the golden file's names."""
    (metrics,), _ = batch_metrics(trainer, [batch])
    n_tokens = batch[:, 1:].numel()
    return {
        "accuracy": metrics["accuracy"],
        "perplexity": metrics["perplexity"],
        "avg_confidence": metrics["confidence"],
        "entropy": metrics["entropy"],
        "top5_accuracy": metrics["top5_accuracy"],
        "total_tokens": n_tokens,
        "correct_tokens": round(metrics["accuracy"] * n_tokens),
    }


def deviations(golden: Any, measured: Any) -> list[float]:
    """Deviations of all figures in a golden value, in its order.

    Raises ValueError where a list has another length, KeyError where a figure is missing.
    """
    if isinstance(golden, dict):
        return [d for name in golden for d in deviations(golden[name], measured[name])]
    if isinstance(golden, list):
        pairs = zip(golden, measured, strict=True)
        return [d for pair in pairs for d in deviations(*pair)]
    deviation = abs(measured - golden) / (abs(golden) or 1.0)
    return [deviation if deviation == deviation else float("inf")]  # a NaN is no agreement
