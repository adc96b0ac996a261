"""Searches driven by hand, as Tune drives them: trials that take no time, and no cluster."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from rich.console import Console

from quarterhour.search_spaces.budget import SearchBudget
from quarterhour.search_spaces.open_ended import Space, open_ended
from quarterhour.search_spaces.point import TrialConfig
from quarterhour.search_spaces.profiles import QUICK
from quarterhour.search_spaces.reference import reference_configurations
from quarterhour.tune.cluster.searcher import LedgerAsha, Limits, StudySearcher
from quarterhour.tune.cluster.trainable import from_param_space
from quarterhour.tune.ledger import TrialSpec
from quarterhour.tune.places import Resources
from quarterhour.tune.progress import SearchProgress
from quarterhour.tune.run_folder import METRICS, Row, Status
from quarterhour.tune.search.settings import FirstPoint, Search
from quarterhour.tune.search.study import STUDY_NAME, open_storage

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


class Driver:
    """What Tune does with a searcher and a scheduler."""

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
        asha = search.scheduler == "asha"
        self.scheduler = LedgerAsha(search.objectives[0]) if asha else None
        if first_points is None:
            first_points = search.first_points([])
        limits = Limits(trials=trials, hours=hours)
        progress = SearchProgress(Console(quiet=True), trials)
        self.searcher = StudySearcher(
            search, resources, first_points, limits, self.scheduler, progress
        )
        self.trained: list[str] = []
        self._count = 0

    def next(self) -> SimpleNamespace | None:
        """The next trial as Tune has it, or None where there is none now."""
        self._count += 1
        config = self.searcher.suggest(f"ray{self._count}")
        if not isinstance(config, dict):
            return None
        trial = SimpleNamespace(trial_id=f"ray{self._count}", config=config)
        if self.scheduler:
            self.scheduler.on_trial_add(None, trial)
        spec = from_param_space(config["trial"])
        return SimpleNamespace(ray=trial, spec=spec)

    def end(
        self, trial: SimpleNamespace, ending: Ending = complete, losses: list[float] | None = None
    ) -> None:
        """Train a trial to its ending, or until the scheduler stops it."""
        spec, ray, rows = trial.spec, trial.ray, planned_rows(trial.spec, losses)
        self.trained.append(spec.name)
        (spec.folder / METRICS).write_text("")
        for row in rows:
            append_row(spec, row)
            quarters = spec.config.budget.quarters_done(row["step"])
            result = row | {"quarters": quarters}
            if row is rows[-1]:
                ending(spec, row)
                if self.scheduler and spec.result():
                    self.scheduler.on_trial_complete(None, ray, result)
            elif self.scheduler and self.scheduler.on_trial_result(None, ray, result) == "STOP":
                break
        self.searcher.on_trial_complete(ray.trial_id, error=not spec.result())

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
