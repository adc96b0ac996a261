"""AdamW as the study set it, Muon, and the learning-rate schedule as a function of the step."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from quarterhour.model.choice import CHOICE
from quarterhour.model.decoder import Decoder
from quarterhour.model.muon import MuonWithAdamW

Schedule = Literal["cosine", "constant", "linear", "warmup-stable-decay", "cyclical"]

EXTENDABLE: tuple[Schedule, ...] = ("constant", "warmup-stable-decay")
"""The schedules whose rate, after the warmup, depends on the whole length only at the end."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer, gradient clipping and schedule. Raises ValueError for values out of range.

    `decay_fraction` is the share of a warmup-stable-decay schedule in which it decays, and `cycles`
    the number of cycles of a cyclical one. Both count from the end of the warmup; other schedules
    ignore them. With "muon" the layers' matrices have a learning rate and a momentum of their own,
    on the same schedule; the rest has AdamW's. `z_loss` is the weight of the squared logarithm of
    the softmax's denominator, which the reported loss leaves out; so is `balance_loss` that of how
    unevenly experts are used. With an `ema_decay` above 0 the trial keeps an average of its weights
    beside them, in which those of a step ago count by it.
    """

    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.1
    eps: float = 1e-8
    clip_norm: float = 1.0
    warmup_fraction: float = 0.0
    final_lr_fraction: float = 0.1
    schedule: Schedule = "cosine"
    decay_fraction: float = 0.2
    cycles: int = 4
    z_loss: float = field(default=0.0, metadata=CHOICE)
    optimizer: Literal["adamw", "muon"] = field(default="adamw", metadata=CHOICE)
    muon_learning_rate: float = field(default=0.02, metadata=CHOICE)
    muon_momentum: float = field(default=0.95, metadata=CHOICE)
    ema_decay: float = field(default=0.0, metadata=CHOICE)
    balance_loss: float = field(default=0.01, metadata=CHOICE)

    def __post_init__(self) -> None:
        for name in ("learning_rate", "eps", "clip_norm", "muon_learning_rate"):
            self._require(name, 0 < getattr(self, name) < math.inf, "above 0")
        for name in ("weight_decay", "z_loss", "balance_loss"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "at least 0")
        for name in ("beta1", "beta2", "warmup_fraction", "muon_momentum", "ema_decay"):
            self._require(name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        self._require("final_lr_fraction", 0 <= self.final_lr_fraction <= 1, "within 0 and 1")
        self._require("decay_fraction", 0 < self.decay_fraction <= 1, "above 0 and at most 1")
        self._require("cycles", self.cycles >= 1, "at least 1")

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise ValueError(f"optim.{name} is {getattr(self, name)}: it must be {allowed}")

    def learning_rate_at(self, step: int, steps: int, full: float | None = None) -> float:
        """Learning rate of the next update, after `step` of `steps` updates.

        `full` is the largest, by default AdamW's. Linear warmup over warmup_fraction · steps, then
        the schedule from the full rate down to final_lr_fraction of it. "cosine" without warmup is
        the reference's schedule as run.
        """
        full = full or self.learning_rate
        warmup = int(self.warmup_fraction * steps)
        if step < warmup:
            return full * (step + 1) / warmup
        height = self._height((step - warmup) / (steps - warmup))
        return full * (self.final_lr_fraction + (1 - self.final_lr_fraction) * height)

    @property
    def extendable(self) -> bool:
        """Whether the rates of a longer training begin as those of a shorter one."""
        return self.schedule in EXTENDABLE

    def full_rate_steps(self, steps: int) -> int:
        """How many of `steps` updates come before the schedule falls below the full rate."""
        warmup = int(self.warmup_fraction * steps)
        after = range(warmup, steps)
        return next((s for s in after if self._height((s - warmup) / (steps - warmup)) < 1), steps)

    def _height(self, done: float) -> float:
        """Height of the schedule: 0 at the final rate, 1 at the full one; `done` goes from 0 to 1.

        Warmup-stable-decay: Hu et al. 2024 (MiniCPM), with a linear decay. Cyclical: cosine
        cycles with restarts, Loshchilov and Hutter 2017 (SGDR).
        """
        match self.schedule:
            case "constant":
                return 1.0
            case "linear":
                return 1 - done
            case "warmup-stable-decay":
                return min(1.0, (1 - done) / self.decay_fraction)
            case "cosine":
                return (1 + math.cos(math.pi * done)) / 2
            case "cyclical":
                phase = done * self.cycles % 1 if done < 1 else 1.0
                return (1 + math.cos(math.pi * phase)) / 2


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW with weight decay on all parameters, norms and embedding too (reference).

    With "muon", which needs a Decoder, its layers' matrices have Muon's update.
    """
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.beta1, config.beta2),
        "eps": config.eps,
        "weight_decay": config.weight_decay,
        "fused": True,
    }
    if config.optimizer == "muon" and isinstance(model, Decoder):
        return MuonWithAdamW(_muon_groups(model, config), **settings)
    return torch.optim.AdamW(model.parameters(), **settings)


def _muon_groups(model: Decoder, config: OptimConfig) -> list[dict[str, Any]]:
    """AdamW's parameters; then matrices, some of which are several in one parameter."""
    size = model.config
    several = {"qkv.weight": size.qkv_widths}
    if size.feed_forward == "moe":
        widths = [size.d_ff] * size.n_experts
        several |= {"up.weight": widths, "gate.weight": widths}
        several |= {"down.weight": [size.d_model] * size.n_experts}
    muon = {"full_rate": config.muon_learning_rate, "momentum": config.muon_momentum}
    groups: list[dict[str, Any]] = [
        {"params": [layer.get_parameter(name) for layer in model.layers], "rows": rows, **muon}
        for name, rows in several.items()
    ]
    joined = {p for group in groups for p in group["params"]}
    matrices = [p for layer in model.layers for p in layer.parameters() if p.ndim == 2]
    of_muon = {*matrices}
    return [
        {"params": [p for p in model.parameters() if p not in of_muon]},
        *groups,
        {"params": [p for p in matrices if p not in joined], "rows": None, **muon},
    ]
