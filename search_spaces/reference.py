"""The study's six configurations, on any profile, as they were run and as they are described."""

from typing import Any

from quarterhour.search_spaces.point import TrialConfig
from quarterhour.search_spaces.profiles import PAPER, Profile

# What differs from the baseline, in the study's own numbers.
SIX: dict[str, dict[str, int | float]] = {
    "baseline": {},
    "high_lr": {"optim.learning_rate": 1e-3},
    "low_lr": {"optim.learning_rate": 1e-4},
    "large_batch": {"data.batch_size": 16, "optim.learning_rate": 5e-4},
    "short_seq": {"data.batch_size": 12, "data.seq_len": 256},
    "small_model": {
        "model.d_model": 256,
        "model.n_heads": 4,
        "model.n_layers": 8,
        "model.d_ff": 1024,
        "data.batch_size": 12,
    },
}

# The paper gives the warmup no length. The study's configuration has 1,000 of 2,000 steps, and
# nothing reads it.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "as-run": {"model.positions": "none", "optim.beta2": 0.999, "optim.warmup_fraction": 0.0},
    "as-described": {"model.positions": "rope", "optim.beta2": 0.95, "optim.warmup_fraction": 0.5},
}


def reference_configurations(profile: Profile, protocol: str) -> dict[str, TrialConfig]:
    """The six by name: each is the profile's baseline, changed by the study's ratios.

    Raises ValueError for an unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol '{protocol}': use {' or '.join(PROTOCOLS)}")
    baseline = profile.baseline.with_values(PROTOCOLS[protocol])
    return {
        name: baseline.with_values(
            {path: scaled(profile, path, value) for path, value in values.items()}
        )
        for name, values in SIX.items()
    }


def scaled(profile: Profile, path: str, value: int | float) -> int | float:
    """The study's `value` at `path`, at the profile's size: the ratio to the baseline stays."""
    section, field = path.split(".")
    of_study = getattr(getattr(PAPER.baseline, section), field)
    of_profile = getattr(getattr(profile.baseline, section), field)
    scaled = of_profile * value / of_study
    return round(scaled) if isinstance(value, int) else float(f"{scaled:.12g}")
