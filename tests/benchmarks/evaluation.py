"""What a trial spends on evaluation, and how long it takes from its start to its first step.

    .venv/bin/python tests/benchmarks/evaluation.py [paper quick]

Measures the parts of the profile's baseline, on the built-in corpus and in the best precision of
this CPU: a step, the measures of a batch, the held-out loss, five samples. Prints what all
evaluations of a whole trial take by that, as a share of all its steps, and the seconds that a trial
takes in a warm process until it touches its first batch.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch

from quarterhour.data.tokens import TokenData, prepare_tokens
from quarterhour.search_spaces.point import TrialConfig
from quarterhour.search_spaces.profiles import PROFILES, QUICK
from quarterhour.tune.ledger import TrialSpec
from quarterhour.tune.machine import best_precision, keep_freed_memory
from quarterhour.tune.training.evaluation import batch_metrics, continue_prompts, heldout_metrics
from quarterhour.tune.training.trainer import Trainer
from quarterhour.tune.training.trial import Trial

REPEATS = 3


class FirstBatchError(Exception):
    """Ends a trial where it begins to work."""


def median_seconds(work: Callable[[], object]) -> float:
    """Wall clock of a call, after one that warms up."""
    times: list[float] = []
    for _ in range(REPEATS + 1):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def start(spec: TrialSpec, tokens: TokenData) -> None:
    """Begin a trial, up to its first batch."""
    with patch.object(Trainer, "metrics", side_effect=FirstBatchError):
        try:
            next(Trial(spec, tokens, torch.device("cpu")).rows())
        except FirstBatchError:
            return


def counts(config: TrialConfig) -> dict[str, int]:
    """How often a whole trial does each part."""
    budget = config.budget
    ends = list(budget.window_ends())
    evaluations = sum(budget.evaluates_at(end) for end in ends)
    heldout = sum(budget.evaluates_at(end) or end in budget.quarter_ends() for end in ends)
    return {
        "a step": budget.trained_steps,
        "measures of a batch": evaluations * (1 + budget.eval_batches),
        "held-out loss": heldout,
        "five samples": evaluations,
    }


def report(name: str, folder: Path) -> None:
    """Measure one profile's baseline and print its table."""
    tokens = prepare_tokens(QUICK.data)
    config = replace(PROFILES[name].baseline, precision=best_precision("cpu"))
    spec = TrialSpec(
        name=name, config=config, data_fingerprint=tokens.manifest.fingerprint, folder=folder / name
    )
    trial = Trial(spec, tokens, torch.device("cpu"))
    batch = torch.from_numpy(trial.batches.batch_at(0))
    seconds = {
        "a step": median_seconds(lambda: trial.trainer.train_step(batch)),
        "measures of a batch": median_seconds(lambda: batch_metrics(trial.trainer, [batch])),
        "held-out loss": median_seconds(lambda: heldout_metrics(trial.trainer, trial.batches)),
        "five samples": median_seconds(lambda: continue_prompts(trial.trainer, tokens)),
    }
    times = counts(config)
    steps = times["a step"] * seconds["a step"]
    print(f"{name} baseline, {config.precision}, {torch.get_num_threads()} threads")
    print(f"{'':<20}{'ms':>9}{'times':>8}{'of all steps':>14}")
    for part, each in seconds.items():
        print(f"{part:<20}{each * 1e3:>9.1f}{times[part]:>8}{times[part] * each / steps:>14.1%}")
    evaluation = sum(times[part] * seconds[part] for part in seconds) - steps
    print(f"{'all evaluation':<37}{evaluation / steps:>14.1%}")
    print(f"start to first batch {median_seconds(lambda: start(spec, tokens)):.2f} s\n")


def main() -> None:
    """Measure and print."""
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or PROFILES:
            report(name, Path(folder))


if __name__ == "__main__":
    main()
