"""Searches driven by hand: trials that take no time, and no cluster."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from rich.console import Console

from quarterhour.search_spaces.budget import SearchBudget
from quarterhour.search_spaces.open_ended import Space, open_ended
from quarterhour.search_spaces.point import TrialConfig
from quarterhour.search_spaces.profiles import QUICK
from quarterhour.search_spaces.reference import reference_configurations
from quarterhour.tune.ledger import TrialSpec
from quarterhour.tune.places import Resources
from quarterhour.tune.progress import SearchProgress
from quarterhour.tune.run_folder import METRICS, Row, Status
from quarterhour.tune.search.first_points import FirstPoint, starting_points
from quarterhour.tune.search.journal import open_storage
from quarterhour.tune.search.limits import Limits
from quarterhour.tune.search.settings import Search
from quarterhour.tune.search.state import SearchState
from quarterhour.tune.search.study import STUDY_NAME

ONE_AT_ONCE = Resources(device="cpu", cpus=1, gpus=0, cpus_per_trial=1, gpus_per_trial=0)
TWO_AT_ONCE = replace(ONE_AT_ONCE, cpus=2)

Ending = Callable[[TrialSpec, Row], None]


def tiny_search(
    runs: Path,
    name: str = "search",
    *,
    space: Space | None = None,
    reference: Mapping[str, TrialConfig] | None = None,
    budget: str = "steps:8",
    objectives: tuple[str, ...] = ("heldout_loss",),
    scheduler: str = "none",
    seed: int = 0,
) -> Search:
    """A search on the quick profile with a budget of eight steps, in a new or an old folder."""
    parsed = SearchBudget.parse(budget)
    six = reference or {
        name: replace(parsed.applied_to(config), seed=seed)
        for name, config in reference_configurations(QUICK, "as-run").items()
    }
    folder = runs / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "experiment.json").write_text(json.dumps({"data": {"fingerprint": "data"}}))
    return Search(
        folder=folder,
        data_fingerprint="data",
        space=space or open_ended(QUICK),
        reference=six,
        budget=parsed,
        objectives=objectives,
        scheduler=scheduler,
        seed=seed,
    )


def loss_of(config: TrialConfig) -> float:
    """What a pretended trial comes to: best at one rate and one width."""
    rate = abs(config.optim.learning_rate - 2e-3) * 100
    return 3 + rate + abs(config.model.d_model - 128) / 256 + config.model.dropout


def planned_rows(spec: TrialSpec, losses: list[float] | None = None) -> list[Row]:
    """Rows of a trial at the quarters of its budget; without `losses` they fall to its own."""
    data, final = spec.config.data, loss_of(spec.config)
    losses = losses or [final + (4 - quarter) / 2 for quarter in (1, 2, 3, 4)]
    return [
        {
            "step": end,
            "tokens": end * data.batch_size * data.seq_len,
            "flops": end,
            "seconds": end / 10,
            "train_loss": loss,
            "heldout_loss": loss,
            "tokens_per_second": 1e4 / spec.config.model.d_model,
            "trials_on_device": 1,
        }
        for end, loss in zip(spec.config.budget.quarter_ends(), losses, strict=False)
    ]


def append_row(spec: TrialSpec, row: Row) -> None:
    """Write a row as a trial does."""
    with (spec.folder / METRICS).open("a") as file:
        file.write(json.dumps(row) + "\n")


def complete(spec: TrialSpec, row: Row) -> None:
    """A trial that has come to its end."""
    (spec.folder / "checkpoint.pt").write_text("weights")
    spec.write_result(Status.COMPLETE, row)


def diverge(spec: TrialSpec, row: Row) -> None:
    """A trial whose loss is not finite."""
    spec.write_result(Status.FAILED, row, reason="train_loss is nan", diverged=True)


def die(spec: TrialSpec, row: Row) -> None:
    """A trial whose process is gone."""


def run_out_of_memory(spec: TrialSpec, row: Row) -> None:
    """A trial for which there was too little memory."""
    spec.write_result(Status.INFEASIBLE, row, reason="out of memory")


def measured(spec: TrialSpec) -> TrialSpec:
    """A trial with a budget in seconds, once it has found that eight steps fit."""
    spec = replace(spec, config=replace(spec.config, budget=spec.config.budget.with_steps(8)))
    spec.write_config()
    return spec


class Driver:
    """What a cluster does with a search: begins its trials, and trains them to an end."""

    def __init__(
        self,
        search: Search,
        *,
        trials: int | None = None,
        hours: float | None = None,
        first_points: list[FirstPoint] | None = None,
        resources: Resources = ONE_AT_ONCE,
    ) -> None:
        self.search = search
        if first_points is None:
            first_points = starting_points(search, [])
        limits = Limits(trials=trials, hours=hours)
        progress = SearchProgress(Console(quiet=True), trials)
        self.state = SearchState(search, resources, first_points, limits, progress)
        self.trained: list[str] = []

    def next(self) -> TrialSpec | None:
        """The next trial, or None where there is none now."""
        return None if self.state.is_full else self.state.begin()

    def end(
        self, spec: TrialSpec, ending: Ending = complete, losses: list[float] | None = None
    ) -> None:
        """Train a trial to its ending, or until it is pruned."""
        if not spec.config.budget.steps:
            spec = measured(spec)
        self.trained.append(spec.name)
        (spec.folder / METRICS).write_text("")
        rows = planned_rows(spec, losses)
        for row in rows:
            append_row(spec, row)
            if row is rows[-1]:
                ending(spec, row)
            elif self.state.pruner:
                self.state.pruner.prune_if_worse(spec)
            if spec.result():
                break
        else:
            spec.write_failure()
        self.state.end(spec)

    def run(self, ending: Ending = complete, at_most: int = 1_000) -> "Driver":
        """Train until there is nothing to train, or so many trials."""
        for _ in range(at_most):
            trial = self.next()
            if not trial:
                break
            self.end(trial, ending)
        return self


def optuna_trials(search: Search) -> list[FrozenTrial]:
    """What Optuna has, read from its storage as another process would."""
    study = optuna.load_study(study_name=STUDY_NAME, storage=open_storage(search.folder))
    return study.get_trials(deepcopy=False)


def proposals(search: Search) -> list[tuple[str | None, dict[str, Any]]]:
    """Origin and Optuna's parameters of every trial."""
    origins = [spec.origin for spec in search.trials()]
    return list(zip(origins, [t.params for t in optuna_trials(search)], strict=True))


def statuses(search: Search) -> list[str]:
    """How the folders' trials ended."""
    results = [spec.result() for spec in search.trials()]
    return [result.status if result else "RUNNING" for result in results]
