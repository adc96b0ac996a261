"""How many steps a budget in seconds allows, by the time that a step takes on this machine."""

import statistics
from collections.abc import Iterable
from dataclasses import replace
from itertools import cycle, islice

import torch

from quarterhour.data.batches import Batches
from quarterhour.search_spaces.point import QUARTERS, TrialConfig
from quarterhour.tune.ledger import TrialSpec, read_spec
from quarterhour.tune.run_folder import CONFIG
from quarterhour.tune.training.trainer import Stopwatch, Trainer

# The measurement takes about this share of the budget, and at least so many steps.
PROBE_SHARE = 0.02
PROBE_STEPS = 5


def with_measured_steps(spec: TrialSpec, batches: Batches, device: torch.device) -> TrialSpec:
    """`spec` with the steps that fit into a budget in seconds; without such a budget, as it is.

    A trial that has begun keeps its steps. Otherwise they are measured, on a model that is thrown
    away. Raises ValueError where the folder's `config.json` is damaged, and torch.OutOfMemoryError
    or MemoryError where the model does not fit.
    """
    budget = spec.config.budget
    if budget.steps or not budget.seconds:
        return spec
    begun = read_spec(spec.folder) if (spec.folder / CONFIG).exists() else spec
    if begun.config.budget.steps and begun.key == spec.key:
        return replace(spec, config=begun.config)
    each = _step_seconds(spec.config, batches, device, PROBE_SHARE * budget.seconds)
    measured = budget.with_steps(max(QUARTERS, int(budget.seconds / each)))
    return replace(spec, config=replace(spec.config, budget=measured))


def _step_seconds(
    config: TrialConfig, batches: Batches, device: torch.device, at_least: float
) -> float:
    """Median time of a step, measured for about `at_least` so many seconds.

    As in training, steps are not waited for one by one, which would slow a GPU down.
    """
    # A constant rate, since nobody knows yet how many steps there are to be.
    probed = {"budget.steps": PROBE_STEPS, "optim.schedule": "constant"}
    trainer = Trainer(config.with_values(probed), device)
    some = [torch.from_numpy(batches.batch_at(step)).to(device) for step in range(PROBE_STEPS)]
    seconds = _run(trainer, some)
    rest = max(0.0, at_least - sum(seconds)) / statistics.median(seconds)
    return statistics.median(seconds + _run(trainer, islice(cycle(some), round(rest))))


def _run(trainer: Trainer, batches: Iterable[torch.Tensor]) -> list[float]:
    """Train on batches [B, T + 1]; the seconds of each step, waited for at the end."""
    stopwatch = Stopwatch(trainer.device)
    for batch_BT in batches:
        begin = stopwatch.mark()
        trainer.train_step(batch_BT)
        stopwatch.span(begin)
    return stopwatch.seconds()
