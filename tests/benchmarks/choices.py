"""The other parts that a decoder and an optimizer can have, as benchmarks time them."""

from typing import Any

CHOICES: dict[str, dict[str, Any]] = {
    "baseline": {},
    "swiglu, equal parameters": {"model.feed_forward": "swiglu", "model.d_ff": 1024},
    "relu2": {"model.feed_forward": "relu2"},
    "shared keys": {"model.heads_per_kv": 2},
    "qk_norm": {"model.qk_norm": "rms"},
    "layer norm": {"model.norm": "layer"},
    "norms after branches": {"model.norm_place": "pre-and-post"},
    "window of 128": {"model.attention": "window"},
    "soft cap": {"model.soft_cap": 50.0},
    "rope-full": {"model.positions": "rope-full"},
    "untied head": {"model.head": "untied"},
    "moe, 2 of 8": {"model.feed_forward": "moe", "model.d_ff": 512},
    "averaged weights": {"optim.ema_decay": 0.999},
    "z-loss": {"optim.z_loss": 1e-4},
    "muon": {"optim.optimizer": "muon"},
}
