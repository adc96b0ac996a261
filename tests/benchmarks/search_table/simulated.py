"""A search whose trials are not trained: its own code, with the losses of the surrogate."""

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
from candidates import SamplerOf
from ground import BUDGET, SIX, SPACE
from rich.console import Console
from rules import Rule, RulePruner
from surrogate import Surrogate

from quarterhour.search_spaces.open_ended import locate
from quarterhour.tune.ledger import TrialSpec
from quarterhour.tune.places import Resources
from quarterhour.tune.progress import SearchProgress
from quarterhour.tune.run_folder import EXPERIMENT, METRICS, Row, Status
from quarterhour.tune.search import study
from quarterhour.tune.search.first_points import starting_points
from quarterhour.tune.search.limits import Limits
from quarterhour.tune.search.sampler import sampler as default
from quarterhour.tune.search.settings import Search
from quarterhour.tune.search.state import SearchState

ONE_CORE = Resources(device="cpu", cpus=1, gpus=0, cpus_per_trial=1, gpus_per_trial=0)
WHOLE_TRIALS = 12  # of the baseline: what a search may spend after the six
EIGHTHS = range(1, 9)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A trial's FLOPs in whole trials of the baseline; its final loss unless it was stopped."""

    spent: float
    loss: float | None


def simulate(
    surrogate: Surrogate, seed: int, sampler: SamplerOf = default, rule: Rule | None = None
) -> tuple[float, list[Outcome]]:
    """The best loss of the six, and what each of the search's own trials came to."""
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as runs,
        patch.object(study, "sampler", sampler),
    ):
        search = search_in(Path(runs) / "search", seed)
        limits = Limits(trials=None, hours=None)
        progress = SearchProgress(Console(quiet=True), None)
        state = SearchState(search, ONE_CORE, starting_points(search, []), limits, progress)
        state.pruner = RulePruner(rule) if rule else state.pruner
        outcomes: list[Outcome] = []
        while sum(outcome.spent for outcome in outcomes[len(SIX) :]) < WHOLE_TRIALS:
            spec = state.begin()
            assert spec, state.stopped_because
            outcomes.append(pretend(state, spec, surrogate, seed))
    six, own = outcomes[: len(SIX)], outcomes[len(SIX) :]
    return min(outcome.loss for outcome in six if outcome.loss), own


def search_in(folder: Path, seed: int) -> Search:
    """A search in a new folder."""
    folder.mkdir()
    (folder / EXPERIMENT).write_text(json.dumps({"data": {"fingerprint": "table"}}))
    return Search(
        folder=folder,
        data_fingerprint="table",
        space=SPACE,
        reference={name: replace(config, seed=seed) for name, config in SIX.items()},
        budget=BUDGET,
        objectives=("heldout_loss",),
        scheduler="asha",
        seed=seed,
    )


def pretend(state: SearchState, spec: TrialSpec, surrogate: Surrogate, seed: int) -> Outcome:
    """Let a trial report what the surrogate says, until its end or until it is pruned.

    Its noise depends on the point and the search's seed alone.
    """
    params = locate(SPACE, SIX["baseline"], spec.config).params
    rng = np.random.default_rng([seed, int(spec.key, 16)])
    row: Row = {}
    for row in rows_of(spec, surrogate.noisy(params, rng)):
        with (spec.folder / METRICS).open("a") as file:
            file.write(json.dumps(row) + "\n")
        if state.pruner and row["step"] < spec.config.budget.steps:
            state.pruner.prune_if_worse(spec)
        if spec.result():
            break
    else:
        spec.write_result(Status.COMPLETE, row)
    loss = row["heldout_loss"] if row["step"] == spec.config.budget.steps else None
    state.end(spec)
    return Outcome(spent=row["flops"] / whole_flops(), loss=loss)


def rows_of(spec: TrialSpec, losses: np.ndarray) -> list[Row]:
    """A trial's rows at the eighths of its budget, with the columns that a search reads."""
    config = spec.config
    tokens_a_step = config.data.batch_size * config.data.seq_len
    a_token = config.model.flops_per_token(config.data.seq_len)
    return [
        {
            "step": step,
            "tokens": step * tokens_a_step,
            "flops": step * tokens_a_step * a_token,
            "train_loss": loss,
            "heldout_loss": loss,
        }
        for eighth, loss in zip(EIGHTHS, losses.tolist(), strict=True)
        for step in [config.budget.steps * eighth // len(EIGHTHS)]
    ]


def whole_flops() -> float:
    """Training FLOPs of the baseline."""
    config = SIX["baseline"]
    return BUDGET.amount * config.model.flops_per_token(config.data.seq_len)


def until_beaten(mark: float, outcomes: list[Outcome]) -> float:
    """Whole trials until a trial is below the mark; WHOLE_TRIALS if none is until then."""
    spent = 0.0
    for outcome in outcomes:
        spent += outcome.spent
        if outcome.loss is not None and outcome.loss < mark:
            return min(spent, WHOLE_TRIALS)
    return WHOLE_TRIALS


def best_within(mark: float, outcomes: list[Outcome]) -> float:
    """Best final loss, the six's among them, of what ended within WHOLE_TRIALS."""
    spent, best = 0.0, mark
    for outcome in outcomes:
        spent += outcome.spent
        if spent > WHOLE_TRIALS:
            break
        best = min(best, outcome.loss if outcome.loss is not None else best)
    return best
