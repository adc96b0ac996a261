"""Train the table's points to their end, on the tiny profile, with equal tokens for all.

Goes on where it stopped, for all that it knows is in the table's file:

    python tests/benchmarks/search_table/train.py
"""

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from ground import BUDGET, SIX, TABLE, TINY, Point, data_config, params_of, points, points_around

from quarterhour.data.batches import Batches
from quarterhour.data.files import cache_folder, write_file
from quarterhour.data.tokens import TokenData, prepare_tokens
from quarterhour.search_spaces.point import NUMERICS_VERSION, TrialConfig
from quarterhour.tune.experiment import git_commit, package_versions
from quarterhour.tune.machine import describe_hardware
from quarterhour.tune.training.evaluation import heldout_metrics
from quarterhour.tune.training.trainer import Trainer

CPU = torch.device("cpu")
POINTS, REFINING, REFINED = 600, 100, 30  # then so many more, around so many of the best
SEEDS, REPEATED = (0, 1, 2), 9  # the six and every ninth point are trained with three seeds
AVERAGED_SHARE = 1 / 16  # of the budget: how far back the averaged weights reach
SHORT_SHARE = 1 / 4  # of the budget: what the whole short run takes

Job = tuple[int, Point, int]  # number, point and seed
Row = dict[str, Any]


def spread_and_around(_: list[Row]) -> Iterator[Job]:
    """The six, points spread evenly, and points around the six."""
    yield from with_seeds(enumerate(itertools.islice(points(), POINTS)))


def around_best(rows: list[Row]) -> Iterator[Job]:
    """Points around the best of those, where searches will look."""
    known = [row for row in rows if row["number"] < POINTS and row["seed"] == SEEDS[0]]
    best = sorted(known, key=lambda row: row["loss8"])[:REFINED]
    refining = points_around({str(row["number"]): params_of(row) for row in best})
    yield from with_seeds(enumerate(itertools.islice(refining, REFINING), POINTS))


def with_seeds(numbered: Iterable[tuple[int, Point]]) -> Iterator[Job]:
    """Each point with its number, and with one seed or three."""
    for number, point in numbered:
        for seed in SEEDS if number < len(SIX) or number % REPEATED == 0 else SEEDS[:1]:
            yield number, point, seed


@cache
def tokens() -> TokenData:
    return prepare_tokens(data_config(cache_folder()))


def train(job: Job) -> Row:
    """A row of the table: held-out losses at the eighths, of the weights and of their average.

    `short` is the final loss of a whole run, with its own schedule, on a quarter of the budget.
    """
    torch.set_num_threads(1)
    begin = time.process_time()
    number, point, seed = job
    config = replace(point.config, seed=seed)
    quarter = replace(BUDGET, amount=BUDGET.amount * SHORT_SHARE).applied_to(config)
    losses = losses_at_eighths(config)
    return {
        "number": number, "origin": point.origin, "seed": seed, "steps": config.budget.steps,
        "flops": flops_of(config),
        **losses, "short": losses_at_eighths(quarter)["loss8"],
        "seconds": time.process_time() - begin, **point.params,
    }  # fmt: skip


def flops_of(config: TrialConfig) -> int:
    """Training FLOPs of all steps."""
    data = config.data
    tokens = config.budget.steps * data.batch_size * data.seq_len
    return tokens * config.model.flops_per_token(data.seq_len)


def losses_at_eighths(config: TrialConfig) -> dict[str, float]:
    """Held-out losses in nats after each eighth of the steps; NaN from where it diverges.

    Those of the averaged weights are taken after each quarter.
    """
    batches = Batches(tokens(), config.data, config.seed)
    trainer, averaged = Trainer(config, CPU), Trainer(config, CPU)
    steps = config.budget.steps
    ends = {steps * eighth // 8: eighth for eighth in range(1, 9)}
    losses = {f"loss{n}": math.nan for n in range(1, 9)}
    losses |= {f"averaged{n}": math.nan for n in (2, 4, 6, 8)}
    for step in range(1, steps + 1):
        trainer.train_step(torch.from_numpy(batches.batch_at(step - 1)))
        weight = 1 / min(step, max(1, steps * AVERAGED_SHARE))
        with torch.no_grad():
            torch._foreach_lerp_(
                [*averaged.model.parameters()], [*trainer.model.parameters()], weight
            )
        if eighth := ends.get(step):
            losses[f"loss{eighth}"] = heldout_metrics(trainer, batches)["heldout_loss"]
            if eighth % 2 == 0:
                losses[f"averaged{eighth}"] = heldout_metrics(averaged, batches)["heldout_loss"]
            if not math.isfinite(losses[f"loss{eighth}"]):
                break
    return losses


def provenance() -> str:
    """Where rows are trained now; kept with each of them."""
    return json.dumps(
        {
            "versions": package_versions(),
            "git_commit": git_commit(),
            "hardware": describe_hardware("cpu"),
            "numerics_version": NUMERICS_VERSION,
            "precision": TINY.baseline.precision,
            "data_fingerprint": tokens().manifest.fingerprint,
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_args()
    rows = pd.read_parquet(asked.table).to_dict("records") if asked.table.exists() else []
    here = provenance()
    with ProcessPoolExecutor(asked.workers) as pool:
        for phase in (spread_and_around, around_best):
            done = {(row["number"], row["seed"]) for row in rows}
            left = [job for job in phase(rows) if (job[0], job[2]) not in done]
            for row in pool.map(train, left):
                rows.append(row | {"provenance": here})
                write_file(asked.table, pd.DataFrame(rows).to_parquet)
                print(f"{len(rows)} rows, the last {row['origin']} {row['loss8']:.4f}", flush=True)


if __name__ == "__main__":
    main()
