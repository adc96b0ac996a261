"""The study's six configurations, on any profile, as they were run and as they are described."""

from dataclasses import replace
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


def scaled(profile: Profile, path: str, value: int | float, source: Profile = PAPER) -> int | float:
    """The `source`'s `value` at `path`, at the profile's size: the ratio to the baseline stays."""
    section, field = path.split(".")
    of_source = getattr(getattr(source.baseline, section), field)
    of_profile = getattr(getattr(profile.baseline, section), field)
    scaled = of_profile * value / of_source
    return max(1, round(scaled)) if isinstance(value, int) else float(f"{scaled:.12g}")


def rescaled(config: TrialConfig, source: Profile, target: Profile) -> TrialConfig:
    """A configuration of the `source`'s size at the `target`'s, by the ratios of the study's six.

    Shape, batch, learning rate and steps are scaled; evaluations are as many as the target's.
    Raises ValueError where the sizes do not fit together.
    """
    if source.name == target.name:
        return config
    values, budget = config.values(), config.budget
    paths = sorted({path for changes in SIX.values() for path in changes})
    steps, max_steps = (
        n and int(scaled(target, "budget.steps", n, source))
        for n in (budget.steps, budget.max_steps)
    )
    there = target.baseline.budget.with_steps(steps or target.baseline.budget.steps)
    return replace(
        config.with_values({path: scaled(target, path, values[path], source) for path in paths}),
        budget=replace(there, max_steps=max_steps, seconds=budget.seconds),
    )
