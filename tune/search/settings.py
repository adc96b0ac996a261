"""A search, resolved before anything trains: space, equal budget, objectives, first points."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from quarterhour.search_spaces.budget import BudgetTooSmallError, SearchBudget
from quarterhour.search_spaces.open_ended import draw, load_space, locate, reduced
from quarterhour.search_spaces.point import TrialConfig
from quarterhour.search_spaces.profiles import PROFILES
from quarterhour.search_spaces.space_file import Space, absolute, content_hash, is_remembered
from quarterhour.tune.experiment import Experiment, ExperimentRequest, build_experiment
from quarterhour.tune.foreign import MEND, DamagedError, damage_told
from quarterhour.tune.ledger import TrialSpec, config_in, read_spec
from quarterhour.tune.places import Resources
from quarterhour.tune.run_folder import (
    COLUMNS,
    CONFIG,
    EXPERIMENT,
    FRESH_SEEDS,
    HELDOUT_BITS_PER_BYTE,
    OBJECTIVES,
)
from quarterhour.tune.run_reader import (
    check_names,
    is_trial_name,
    read_experiment,
)
from quarterhour.tune.search.objectives import parse_objectives
from quarterhour.tune.search.queue import waiting_points

CHECKED_POINTS = 100
SCHEDULERS = ("asha", "none")
# At its end a search trains this many of its best again, with this many seeds that are new to it.
CANDIDATES, SEEDS_OF_CANDIDATES = 3, 3


@dataclass(frozen=True, kw_only=True)
class SearchRequest(ExperimentRequest):
    """What `quarterhour search` was asked; its one seed is the sampler's and every trial's.

    `around` is the configuration around which it searches, in the place of the six, and `free` the
    parameters of the space that then vary, or with none all. A budget of None is the tokens of the
    baseline, or of that configuration. A scheduler of None is asha for one objective and none for
    several. Raises ValueError for `free` without `around`.
    """

    kind: str = "search"
    protocol: str | None = None
    around: str | None = None
    free: tuple[str, ...] = ()
    space: str
    budget: str | None
    objective: str
    scheduler: str | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.free and not self.around:
            raise ValueError("--free needs --around TRIAL: what is not free stays as that has it")

    @property
    def default_name(self) -> str:
        """The run folder's name if none is given: it tells what is not the default."""
        around = [f"around-{self._label(self.around)}", *self.free] if self.around else []
        asked = {self.profile, self.space, self.objective, self.budget, self.scheduler}
        given = asked - {"quick", "open-ended", "heldout_loss", None}
        return "-".join(
            [self.kind, *around, *sorted(str(part).replace("/", "_") for part in given)]
        )


@dataclass(frozen=True, kw_only=True)
class Search:
    """Optuna trials on one space, all with one budget and one seed.

    `reference` has the six reference points with that budget, or the one around which it searches.
    `provenance` and `sharing` are those
    of its trials; `sharing` is None where no objective depends on the machine.
    """

    folder: Path
    data_fingerprint: str
    space: Space
    reference: Mapping[str, TrialConfig]
    budget: SearchBudget
    objectives: tuple[str, ...]
    scheduler: str
    seed: int
    provenance: Mapping[str, Any] = field(default_factory=dict)
    sharing: int | None = None

    @property
    def baseline(self) -> TrialConfig:
        """The reference point that the space's points are put on: the first."""
        return next(iter(self.reference.values()))

    def config_of(self, point: Mapping[str, Any]) -> TrialConfig:
        """The configuration of a point of the space, with the search's budget.

        Raises ValueError where it cannot be built or the budget is too small for it.
        """
        config = self.baseline.with_values(point)
        return self.budget.applied_to(config)

    def trials(self) -> list[TrialSpec]:
        """All trials that have begun and are not damaged, by number.

        A folder that is not called as its trial is, such as a copy, is somebody else's.
        """
        specs: list[TrialSpec] = []
        for number in self.numbers():
            with suppress(FileNotFoundError), damage_told():
                specs.append(self.as_now(read_spec(self.folder / f"{number:04d}")))
        return [spec for spec in specs if spec.name == spec.folder.name]

    def numbers(self) -> list[int]:
        """The numbers of all folders of trials, damaged ones too, rising."""
        paths = [
            path for path in self.folder.glob(f"[0-9]*/{CONFIG}") if not path.parent.is_symlink()
        ]
        names = [path.parent.name for path in paths if is_trial_name(path.parent.name)]
        return sorted(int(name) for name in names if name == f"{int(name):04d}")

    def as_now(self, spec: TrialSpec) -> TrialSpec:
        """A trial, to be trained from now on."""
        return replace(spec, provenance=self.provenance, sharing=self.sharing)

    def trial(self, number: int, config: TrialConfig, origin: str) -> TrialSpec:
        """Trial `number` of the search, as a folder of its own."""
        name = f"{number:04d}"
        spec = TrialSpec(
            name=name,
            config=config,
            data_fingerprint=self.data_fingerprint,
            folder=self.folder / name,
            origin=origin,
        )
        return self.as_now(spec)

    def point(self, values: Mapping[str, Any]) -> TrialConfig:
        """The configuration of a user's point, on the baseline.

        Raises ValueError where it is no point of the space.
        """
        fixed = [path for path in values if not path.startswith(("model.", "optim.", "data."))]
        if fixed:
            raise ValueError(f"{fixed[0]} is the same for all trials of a search: leave it out")
        config = self.config_of(values)
        locate(self.space, self.baseline, config)
        return config

    def why_not_new(self, config: TrialConfig) -> str | None:
        """Where the search has a configuration already; None if it has not."""
        key = config.key(self.data_fingerprint)
        for spec in self.trials():
            if spec.key == key:
                return f"that point is trial {spec.name} of {self.folder} already"
        for _, waiting in waiting_points(self.folder):
            if waiting.key(self.data_fingerprint) == key:
                return f"that point waits in {self.folder} already"
        return None

    def own(self, config: TrialConfig) -> TrialConfig:
        """A configuration with this search's budget, seed and precision.

        Raises BudgetTooSmallError where the budget is too small for it.
        """
        own = replace(self.baseline, model=config.model, optim=config.optim, data=config.data)
        return self.budget.applied_to(own)

    def why_unfit(self, config: TrialConfig) -> str | None:
        """Why a configuration is no point of this search; None if it is one."""
        try:
            if self.own(config).key("") != config.key(""):
                return "its budget, seed or precision is not that of the search"
        except BudgetTooSmallError as error:
            return str(error)
        return self.why_outside(config)

    def why_outside(self, config: TrialConfig) -> str | None:
        """Why a configuration is no point of the space; None if it is one."""
        try:
            locate(self.space, self.baseline, config)
        except ValueError as error:
            return str(error)
        return None

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


def build_search(request: SearchRequest) -> tuple[Experiment, Search]:
    """Resolve what `quarterhour search` was asked.

    Raises ValueError for anything that cannot be searched, before anything trains.
    """
    objectives = parse_objectives(request.objective)
    scheduler = _scheduler(request.scheduler, objectives)
    given = SearchBudget.parse(request.budget) if request.budget else None
    chosen = (request.around,) if request.around else ()
    experiment = build_experiment(replace(request, chosen=chosen))
    if len(experiment.configurations) > 1 and chosen:
        raise ValueError(f"--around {request.around}: give one of the six, or a trial's folder")
    if HELDOUT_BITS_PER_BYTE in objectives and experiment.tokens.manifest.heldout_lost_share:
        raise ValueError(
            f"--objective {HELDOUT_BITS_PER_BYTE}: there are none where a tokenizer loses text; use"
            " heldout_loss, or pass --tokenizer with another"
        )
    first = next(iter(experiment.configurations.values()))
    budget = given or SearchBudget.same_tokens_as(first)
    budget.applied_to(max(experiment.configurations.values(), key=budget.cost_of_a_step))
    (seed,) = experiment.seeds
    space = load_space(request.space, experiment.profile)
    search = Search(
        folder=experiment.folder,
        data_fingerprint=experiment.tokens.manifest.fingerprint,
        space=reduced(space, first, request.free) if request.around else space,
        reference={
            name: replace(budget.applied_to(config), seed=seed)
            for name, config in experiment.configurations.items()
        },
        budget=budget,
        objectives=objectives,
        scheduler=scheduler,
        seed=seed,
        provenance=experiment.provenance,
        sharing=_sharing(objectives, request.resources),
    )
    experiment = replace(
        experiment,
        configurations=search.reference,
        search=_settings(search, request.space, request.free),
        drawn_values=_drawn_values(search),
    )
    return experiment, search


def _sharing(objectives: Sequence[str], resources: Resources) -> int | None:
    """How many trials share a device, where the objectives depend on that."""
    of_machine = any(COLUMNS[name].of_machine for name in objectives)
    return resources.trials_on_device if of_machine else None


def _scheduler(asked: str | None, objectives: Sequence[str]) -> str:
    scheduler = asked or ("asha" if len(objectives) == 1 else "none")
    if scheduler not in SCHEDULERS:
        raise ValueError(f"unknown scheduler '{scheduler}': use {' or '.join(SCHEDULERS)}")
    if scheduler == "asha" and len(objectives) > 1:
        raise ValueError(
            f"--scheduler asha stops trials by one objective, not by '{','.join(objectives)}'"
        )
    return scheduler


def _settings(search: Search, space: str, free: Sequence[str]) -> dict[str, Any]:
    """What decides a search's proposals, as `experiment.json` has it and `read_search` reads it."""
    return {
        "space": absolute(space),
        "space_hash": content_hash(space),
        "budget": str(search.budget),
        "objectives": {name: OBJECTIVES[name] for name in search.objectives},
        "scheduler": search.scheduler,
        "seed": search.seed,
        **({"free": list(free)} if free else {}),
    }


def read_search(folder: Path, space: str | None = None) -> Search:
    """The search of a run folder; its user may name its space.

    Raises ValueError where it is no search, or its space may not be run or is another by now.
    """
    description = read_experiment(folder)
    if not description.get("search"):
        raise ValueError(f"{folder} is no search: give a folder of `quarterhour search`")
    check_names(folder, description, "resolved", "data.fingerprint", "profile")
    settings = description["search"]
    if problem := _why_not_run(settings, space):
        raise ValueError(f"{folder}: its space {Path(settings['space']).name} {problem}")
    file = folder / EXPERIMENT
    reference = {n: config_in(file, values) for n, values in description["resolved"].items()}
    if description["profile"] not in PROFILES:
        raise DamagedError(file, f" cannot be read (profile is {description['profile']})", MEND)
    whole = load_space(space or settings["space"], PROFILES[description["profile"]])
    around, free = next(iter(reference.values())), settings.get("free", [])
    return Search(
        folder=folder,
        data_fingerprint=description["data"]["fingerprint"],
        space=reduced(whole, around, free) if free else whole,
        reference=reference,
        budget=SearchBudget.parse(settings["budget"]),
        objectives=tuple(settings["objectives"]),
        scheduler=settings["scheduler"],
        seed=settings["seed"],
    )


def _why_not_run(settings: Mapping[str, Any], named: str | None) -> str | None:
    """Why the space that a user has named, or else the recorded one, may not be run; or None.

    A run folder may be another's: no code runs because its files say so.
    """
    space, function = named or settings["space"], settings["space"].rpartition(":")[2]
    file, _, own_function = space.rpartition(":")
    found = content_hash(space)
    if file and not found:
        return f"is not found, for there is no file {file}: name it with --space FILE.py:NAME"
    if (found, own_function) != (settings.get("space_hash"), function):
        return f"has changed since, or is not {space}: restore the file, or name it with --space"
    if file and not named and not is_remembered(space):
        return f"is code that no search of yours has run: read {file}, then give --space {space}"
    return None


def _drawn_values(search: Search) -> dict[str, set[Any]]:
    """What hyperparameters can be: the space's bounds and choices, and values of drawn points.

    Raises ValueError where a drawn point cannot be trained, or the budget is too small for all.
    """
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=search.seed))
    values: defaultdict[str, set[Any]] = defaultdict(set)
    configs: list[TrialConfig] = []
    for _ in range(CHECKED_POINTS):
        trial = study.ask()
        try:
            configs.append(draw(search.space, search.baseline, trial))
        except ValueError as error:
            raise ValueError(f"the space has a point that cannot be trained: {error}") from error
        for path, kind in trial.distributions.items():
            if isinstance(kind, CategoricalDistribution):
                values[path].update(kind.choices)
            elif isinstance(kind, FloatDistribution | IntDistribution):
                values[path].update((kind.low, kind.high))
    search.budget.applied_to(min(configs, key=search.budget.cost_of_a_step))
    for config in configs:
        with suppress(BudgetTooSmallError):  # such a point is infeasible, as later in a search
            config = search.budget.applied_to(config)
        for path, value in config.values().items():
            values[path].add(value)
    return values
