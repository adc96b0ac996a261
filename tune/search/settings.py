"""A search, resolved before anything trains: space, equal budget, objectives, first points."""

import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from quarterhour.data.files import write_text
from quarterhour.search_spaces.budget import SearchBudget
from quarterhour.search_spaces.open_ended import Space, load_space, locate
from quarterhour.search_spaces.point import TrialConfig
from quarterhour.search_spaces.profiles import PROFILES
from quarterhour.tune.experiment import Experiment, build_experiment
from quarterhour.tune.ledger import TrialSpec, read_spec
from quarterhour.tune.run_folder import (
    CONFIG,
    ELAPSED,
    FRESH_SEEDS,
    OBJECTIVES,
    read_experiment,
    trial_folders,
)
from quarterhour.tune.search.objectives import parse_objectives

CHECKED_POINTS = 100
SCHEDULERS = ("asha", "none")
# At the end of a search so many of its best are trained again, with so many seeds it has not used.
CANDIDATES, SEEDS_OF_CANDIDATES = 3, 3

FirstPoint = tuple[str, TrialConfig]


@dataclass(frozen=True, kw_only=True)
class Search:
    """Optuna trials on one space, all with one budget and one seed.

    `reference` has the six reference points with that budget.
    """

    folder: Path
    data_fingerprint: str
    space: Space
    reference: Mapping[str, TrialConfig]
    budget: SearchBudget
    objectives: tuple[str, ...]
    scheduler: str
    seed: int

    @property
    def baseline(self) -> TrialConfig:
        """The reference point that the space's points are put on."""
        return self.reference["baseline"]

    def config_of(self, point: Mapping[str, Any]) -> TrialConfig:
        """The configuration of a point of the space, with the search's budget.

        Raises ValueError where it cannot be built or the budget is too small for it.
        """
        config = self.baseline.with_values(point)
        return self.budget.applied_to(config)

    def trials(self) -> list[TrialSpec]:
        """All trials that have begun, by number."""
        paths = sorted(self.folder.glob(f"[0-9]*/{CONFIG}"), key=lambda path: int(path.parent.name))
        return [read_spec(path.parent) for path in paths]

    def trial(self, number: int, config: TrialConfig, origin: str) -> TrialSpec:
        """Trial `number` of the search, as a folder of its own."""
        name = f"{number:04d}"
        return TrialSpec(
            name=name,
            config=config,
            data_fingerprint=self.data_fingerprint,
            folder=self.folder / name,
            origin=origin,
        )

    def first_points(self, sources: Sequence[Path]) -> list[FirstPoint]:
        """What the search begins with: finished trials of other runs, then those of the six.

        What has another budget or seed, or is outside the space, is left out. Raises ValueError
        for a source that is no run folder or was trained on other data.
        """
        points = [point for source in sources for point in self._points_of(source)]
        points += [(n, config) for n, config in self.reference.items() if self._has(config)]
        # Each once, and the six by their names wherever they come from.
        origins = {config.key(self.data_fingerprint): origin for origin, config in points}
        configs = {config.key(self.data_fingerprint): config for _, config in points}
        return [(origins[key], config) for key, config in configs.items()]

    def _points_of(self, source: Path) -> list[FirstPoint]:
        description = read_experiment(source)
        if not description:
            raise ValueError(f"--from {source}: it is no run folder, for it has no experiment.json")
        other = description["data"]["fingerprint"]
        if other != self.data_fingerprint:
            raise ValueError(
                f"--from {source}: it was trained on data with fingerprint {other}, and this search"
                f" is on {self.data_fingerprint}; their losses cannot be compared"
            )
        specs = [read_spec(folder) for folder in trial_folders(source)]
        taken = [spec.config for spec in specs if self._takes(spec)]
        return [(source.name, self._budgeted(config)) for config in taken]

    def _budgeted(self, config: TrialConfig) -> TrialConfig:
        """A configuration of another run, with this search's budget."""
        return self.budget.applied_to(replace(config, budget=self.baseline.budget))

    def _takes(self, spec: TrialSpec) -> bool:
        """Whether a trial of another run has a result that this search would come to itself."""
        result = spec.result()
        same = (spec.config.seed, spec.config.precision) == (self.seed, self.baseline.precision)
        if not (result and result.final and same):
            return False
        try:
            budgeted = self._budgeted(spec.config)
        except ValueError:
            return False
        return self._has(spec.config) and budgeted.key("") == spec.config.key("")

    def _has(self, config: TrialConfig) -> bool:
        """Whether a configuration is a point of the space."""
        try:
            locate(self.space, self.baseline, config)
        except ValueError:
            return False
        return True

    def fresh_trials(self, chosen: Sequence[TrialSpec]) -> list[TrialSpec]:
        """The chosen trials again, with seeds that the search has not used."""
        seeds = range(self.seed + 1, self.seed + 1 + SEEDS_OF_CANDIDATES)
        return [
            replace(
                spec,
                config=replace(spec.config, seed=seed),
                folder=self.folder / FRESH_SEEDS / spec.name / f"seed{seed}",
            )
            for seed in seeds
            for spec in chosen
        ]


class SearchClock:
    """Seconds that a search has run, over all its starts; kept in its folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / ELAPSED
        before = json.loads(self._path.read_text())["seconds"] if self._path.exists() else 0.0
        self._began = time.monotonic() - before

    @property
    def seconds(self) -> float:
        """Seconds until now."""
        return time.monotonic() - self._began

    def save(self) -> None:
        """Remember them for the next start."""
        write_text(self._path, json.dumps({"seconds": self.seconds}))


def build_search(
    *,
    space: str,
    budget: str | None,
    objective: str,
    scheduler: str | None,
    seed: int,
    **asked: Any,
) -> tuple[Experiment, Search]:
    """Resolve what the user asked for; `asked` is for `build_experiment`.

    Raises ValueError for anything that cannot be searched, before anything trains.
    """
    objectives = parse_objectives(objective)
    scheduler = scheduler or ("asha" if len(objectives) == 1 else "none")
    if scheduler not in SCHEDULERS:
        raise ValueError(f"unknown scheduler '{scheduler}': use {' or '.join(SCHEDULERS)}")
    if scheduler == "asha" and len(objectives) > 1:
        raise ValueError(f"--scheduler asha stops trials by one objective, not by '{objective}'")
    parsed = SearchBudget.parse(budget) if budget else None
    experiment = build_experiment(kind="search", only=None, seeds=(seed,), **asked)
    parsed = parsed or SearchBudget.tokens_of(experiment.profile.baseline)
    six = {
        name: replace(parsed.applied_to(config), seed=seed)
        for name, config in experiment.configurations.items()
    }
    settings = {
        "space": space,
        "space_hash": _space_hash(space),
        "budget": str(parsed),
        "objectives": {name: OBJECTIVES[name] for name in objectives},
        "scheduler": scheduler,
        "seed": seed,
    }
    experiment = replace(experiment, configurations=six, search=settings)
    search = _search(experiment.folder, experiment.describe())
    return replace(experiment, drawn_values=_drawn_values(search)), search


def read_search(folder: Path) -> Search:
    """The search of a run folder. Raises ValueError where it is none, or its space has changed."""
    description = read_experiment(folder)
    if not description.get("search"):
        raise ValueError(f"{folder} is no search: give a folder of `quarterhour search`")
    settings = description["search"]
    if _space_hash(settings["space"]) != settings["space_hash"]:
        raise ValueError(f"{folder}: its space {settings['space']} has changed since; restore it")
    return _search(folder, description)


def _search(folder: Path, description: Mapping[str, Any]) -> Search:
    """The search that `experiment.json` describes."""
    settings = description["search"]
    profile = PROFILES[description["profile"]]
    six = {name: TrialConfig.from_dict(c) for name, c in description["resolved"].items()}
    return Search(
        folder=folder,
        data_fingerprint=description["data"]["fingerprint"],
        space=load_space(settings["space"], profile),
        reference=six,
        budget=SearchBudget.parse(settings["budget"]),
        objectives=tuple(settings["objectives"]),
        scheduler=settings["scheduler"],
        seed=settings["seed"],
    )


def _space_hash(space: str) -> str | None:
    """Of a user's file, since its trials and those of a changed file are no one search."""
    file = Path(space.rpartition(":")[0])
    return sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else None


def _drawn_values(search: Search) -> dict[str, set[Any]]:
    """What hyperparameters can be: bounds and choices of the space, and values of points from it.

    Raises ValueError where a drawn point cannot be trained: before the first is.
    """
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=search.seed))
    values: defaultdict[str, set[Any]] = defaultdict(set)
    for _ in range(CHECKED_POINTS):
        trial = study.ask()
        try:
            config = search.config_of(search.space(trial))
        except ValueError as error:
            raise ValueError(f"the space has a point that cannot be trained: {error}") from error
        for path, value in config.values().items():
            values[path].add(value)
        for path, kind in trial.distributions.items():
            if isinstance(kind, CategoricalDistribution):
                values[path].update(kind.choices)
            elif isinstance(kind, FloatDistribution | IntDistribution):
                values[path].update((kind.low, kind.high))
    return values
