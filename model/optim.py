"""AdamW as the study set it, and the learning-rate schedule as a pure function of the step."""

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW, gradient clipping and schedule. Raises ValueError for values out of range."""

    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.1
    eps: float = 1e-8
    clip_norm: float = 1.0
    warmup_fraction: float = 0.0
    final_lr_fraction: float = 0.1

    def __post_init__(self) -> None:
        for name in ("learning_rate", "eps", "clip_norm"):
            self._require(name, 0 < getattr(self, name) < math.inf, "above 0")
        self._require("weight_decay", 0 <= self.weight_decay < math.inf, "at least 0")
        for name in ("beta1", "beta2", "warmup_fraction"):
            self._require(name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        self._require("final_lr_fraction", 0 <= self.final_lr_fraction <= 1, "within 0 and 1")

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise ValueError(f"optim.{name} is {getattr(self, name)}: it must be {allowed}")

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Learning rate after `step` of `steps` updates, which is that of the next update.

        Linear warmup over warmup_fraction · steps, then a half cosine down to final_lr_fraction;
        without warmup this is the reference's schedule as run.
        """
        warmup = int(self.warmup_fraction * steps)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        cosine = (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
        return self.learning_rate * (self.final_lr_fraction + (1 - self.final_lr_fraction) * cosine)


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW with weight decay on all parameters, norms and embedding too (reference)."""
    return torch.optim.AdamW(
        model.parameters(),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )
