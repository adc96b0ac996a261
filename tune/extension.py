"""A trial made longer: it goes on from a state of the shorter one, in a folder of its own.

It is the trial that a longer budget makes from the start, with the same schedule up to that state.
So it has that trial's key. Its rows up to there are the shorter trial's.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

from quarterhour.data.files import write_folder, write_text
from quarterhour.model.optim import EXTENDABLE, OptimConfig
from quarterhour.search_spaces.budget import SearchBudget
from quarterhour.search_spaces.point import NUMERICS_VERSION, TrialConfig
from quarterhour.tune.foreign import value_at
from quarterhour.tune.ledger import TrialSpec, link_or_copy
from quarterhour.tune.run_folder import CHECKPOINT, METRICS, SAMPLES
from quarterhour.tune.run_reader import provenance, read_rows, read_samples
from quarterhour.tune.start import PastTrial
from quarterhour.tune.training.checkpoint import newest_until


def longer(config: TrialConfig, budget: str) -> TrialConfig:
    """The configuration with a longer budget and as many steps of warmup as before.

    Raises ValueError where its schedule, or the budget, allows none.
    """
    parsed, optim, before = SearchBudget.parse(budget, "--extend"), config.optim, config.budget
    if not optim.extendable:
        raise ValueError(
            f"optim.schedule is {optim.schedule}, in which every step depends on the whole length:"
            f" --extend needs {' or '.join(EXTENDABLE)}; --budget {budget} trains from the start"
        )
    if parsed.unit == "seconds":
        raise ValueError(f"--extend is {budget}: give steps, tokens or flops, which are counted")
    unlimited = replace(before, max_steps=None, seconds=None)
    extended = parsed.applied_to(replace(config, budget=unlimited))
    steps = extended.budget.steps
    if steps <= before.trained_steps:
        raise ValueError(
            f"--extend is {budget}, {steps:,} steps: it is the whole length, and must be more than"
            f" the trial's {before.trained_steps:,}"
        )
    return replace(extended, optim=_same_warmup(optim, before.steps, steps))


def _same_warmup(optim: OptimConfig, steps: int, new_steps: int) -> OptimConfig:
    """The share of `new_steps` that gives as many steps of warmup as before."""
    warmup = int(optim.warmup_fraction * steps)
    if int(optim.warmup_fraction * new_steps) == warmup:
        return optim
    share = warmup / new_steps
    while int(share * new_steps) < warmup:  # rounding
        share = math.nextafter(share, 1)
    return replace(optim, warmup_fraction=share)


def shared_steps(one: TrialConfig, other: TrialConfig) -> int:
    """The number of first updates whose learning rates are equal in both."""
    for step in range(least := min(one.budget.steps, other.budget.steps)):
        rates = [
            [config.optim.learning_rate_at(step, config.budget.steps, full) for full in (None, 1.0)]
            for config in (one, other)
        ]
        if rates[0] != rates[1]:
            return step
    return least


@dataclass(frozen=True, kw_only=True)
class Extension:
    """A trial `spec` that goes on from a checkpoint of a shorter one, after `step` updates."""

    source: TrialSpec
    spec: TrialSpec
    checkpoint: Path
    step: int

    def __str__(self) -> str:
        before, after = self.source.config, self.spec.config
        text = (
            f"{self.source.folder}: goes on after step {self.step:,} of {before.budget.steps:,}, to"
            f" {after.budget.steps:,}; weights, optimizer, rows and samples up to there carry over"
        )
        if after.optim.schedule == "warmup-stable-decay":
            begin = after.optim.full_rate_steps(after.budget.steps)
            text += f"; the decay of {after.optim.decay_fraction:g} begins at step {begin:,}"
        if before.optim != after.optim:
            text += (
                f"; as many steps of warmup: optim.warmup_fraction {before.optim.warmup_fraction:g}"
                f" → {after.optim.warmup_fraction:g}"
            )
        return text

    def begin(self) -> None:
        """Make the longer trial's folder, whole: as it would be, had it stopped at that step."""
        write_folder(self.spec.folder, self._fill)

    def _fill(self, folder: Path) -> None:
        link_or_copy(self.checkpoint, folder / CHECKPOINT)
        rows = [row for row in read_rows(self.source.folder) if row["step"] <= self.step]
        write_text(folder / METRICS, "".join(json.dumps(row) + "\n" for row in rows))
        samples = [s for s in read_samples(self.source.folder) if s["step"] <= self.step]
        write_text(folder / SAMPLES, json.dumps(samples, indent=2))
        *others, last = provenance(self.source.folder) or [{}]
        origin = {"extended_from": {"folder": str(self.source.folder), "step": self.step}}
        replace(self.spec, folder=folder, provenance={}).write_config([*others, {**last, **origin}])


def plan_extension(past: PastTrial, spec: TrialSpec, device: str) -> Extension:
    """How `spec` goes on from a past trial. Raises ValueError, one line, where it cannot."""
    made_with = {
        "data fingerprint": (past.spec.data_fingerprint, spec.data_fingerprint),
        "numerics version": (past.experiment.get("numerics_version"), NUMERICS_VERSION),
        "device": (value_at(past.experiment, "resources.device"), device),
        "precision": (past.spec.config.precision, spec.config.precision),
    }
    for what, (then, now) in made_with.items():
        if then != now:
            raise ValueError(
                f"{past.spec.folder} was trained with {what} {then}, and this is {now}: it can only"
                " go on with the same; --budget trains from the start"
            )
    most = shared_steps(past.spec.config, spec.config)
    found = newest_until(past.spec, most)
    if not found:
        raise ValueError(
            f"{past.spec.folder} has no usable checkpoint of at most {most:,} steps, where its"
            f" schedule leaves the longer one's: `quarterhour run {past.spec.folder} --runs again`"
            " trains it again and keeps one"
        )
    return Extension(source=past.spec, spec=spec, checkpoint=found[0], step=found[1])
