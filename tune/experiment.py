"""A run folder, resolved before anything trains: what runs in it, on which data and machine."""

import functools
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, product
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from quarterhour.data.batches import Batches
from quarterhour.data.files import write_text
from quarterhour.data.tokens import TokenData, prepare_tokens
from quarterhour.search_spaces.budget import SearchBudget
from quarterhour.search_spaces.own_configurations import file_label, own_configurations
from quarterhour.search_spaces.point import NUMERICS_VERSION, TrialConfig
from quarterhour.search_spaces.profiles import Profile, profile_named
from quarterhour.search_spaces.reference import SIX, reference_configurations
from quarterhour.search_spaces.user_file import is_in_file
from quarterhour.tune.extension import longer
from quarterhour.tune.foreign import value_at
from quarterhour.tune.ledger import TrialSpec, claims_folder, config_in
from quarterhour.tune.machine import best_precision, describe_hardware
from quarterhour.tune.places import Resources
from quarterhour.tune.run_folder import BEFORE, EXPERIMENT, FORMAT_VERSION, LOCK, OWNER, PROVENANCE
from quarterhour.tune.run_reader import owner, read_experiment
from quarterhour.tune.start import PastTrial, read_past_trial

PACKAGES = (
    "quarterhour",
    "torch",
    "ray",
    "optuna",
    "datasets",
    "transformers",
    "tokenizers",
    "numpy",
)


# Two runs that differ in one of these cannot share a folder.
_DECIDING = "data.fingerprint", "numerics_version", "search", "ablation", "promotion", "resolved"


@dataclass(frozen=True, kw_only=True)
class ExperimentRequest:
    """What a command was asked to train: all six configurations, or the `chosen` ones.

    Those are some of the six, folders of trials to start from, or users' own in `FILE.py:NAME`.
    `values` are settings by dotted path. Where profile, protocol, corpus, tokenizer or seeds are
    None, those of the first such trial hold; else quick, as-run, the profile's, and 0. A
    `trial_budget` of None is each configuration's own; `extend` is the whole length to which a past
    trial goes on. Raises ValueError for a name that is a path, or a path that is no text.
    """

    kind: str
    profile: str | None
    protocol: str | None
    chosen: tuple[str, ...] = ()
    corpus: str | None
    tokenizer: str | None
    values: Mapping[str, Any]
    trial_budget: str | None = None
    extend: str | None = None
    seeds: tuple[int, ...] | None
    resources: Resources
    name: str | None
    runs: Path

    def __post_init__(self) -> None:
        if self.name and (Path(self.name).name != self.name or self.name == ".."):
            raise ValueError(
                f"--name is '{self.name}': it must be a plain name; --runs takes the folder"
            )
        path = str(self.folder.absolute())
        if path.encode(errors="replace").decode() != path:  # TensorBoard could not write there
            raise ValueError(f"{path} is no text in this locale: pass another --runs and --name")

    @functools.cached_property
    def past(self) -> Mapping[str, PastTrial]:
        """The chosen trials of earlier runs. Raises ValueError for what is none."""
        names = [name for name in self.chosen if name not in SIX and not is_in_file(name)]
        if unknown := [name for name in names if not Path(name).exists()]:
            raise ValueError(
                f"unknown configuration '{unknown[0]}': use one of {', '.join(SIX)}, a trial's"
                " folder, or FILE.py:NAME"
            )
        return {name: read_past_trial(Path(name)) for name in names}

    def defaulted(self) -> Self:
        """The request with all that the first of the past trials decides, if there is one."""
        first = next(iter(self.past.values()), None)
        told: Mapping[str, Any] = {"profile": "quick", "protocol": "as-run", "data": {}}
        told = first.experiment if first else told
        profile = self.profile or told["profile"]
        data = told["data"] if profile == told["profile"] else {}
        return replace(
            self,
            profile=profile,
            protocol=self.protocol or told["protocol"],
            corpus=self.corpus or data.get("corpus"),
            tokenizer=self.tokenizer or data.get("tokenizer"),
            seeds=self.seeds or (first.spec.config.seed if first else 0,),
        )

    @property
    def folder(self) -> Path:
        """The run folder. One that has a colon is gone on with; no new one gets it by default."""
        folder = self.runs / (self.name or self.default_name)
        if self.name or folder.exists():
            return folder
        return folder.with_name(folder.name.replace(":", "-"))  # for TensorBoard, a mark of its own

    @property
    def default_name(self) -> str:
        """The run folder's name if none is given: it tells what is not the default."""
        names = map(self._label, self.chosen)
        parts = [self.kind, *names, self.profile, self.protocol, self.trial_budget]
        parts += [f"extend-{self.extend}"] if self.extend else []
        parts += [f"{path}={value}" for path, value in self.values.items()]
        return "-".join(part for part in parts if part and part not in ("quick", "as-run"))

    def _label(self, name: str) -> str:
        """What a chosen configuration adds to the run folder's name."""
        if is_in_file(name):
            return file_label(name)
        return self.past[name].label if name in self.past else name


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Named configurations x seeds on one data set.

    `seeds_of` has the seeds of those configurations that differ in them, as of a promotion.
    """

    kind: str
    folder: Path
    profile: Profile
    protocol: str
    configurations: Mapping[str, TrialConfig]
    seeds: tuple[int, ...]
    tokens: TokenData
    resources: Resources
    search: Mapping[str, Any] | None = None  # what decides the proposals of a search
    ablation: Mapping[str, Any] | None = None  # the design that its configurations are cells of
    promotion: Mapping[str, Any] | None = None  # the rule by which its candidates go on
    seeds_of: Mapping[str, list[int]] = field(default_factory=dict)
    drawn_values: Mapping[str, set[Any]] = field(default_factory=dict)  # of a search's points
    remarks: tuple[str, ...] = ()  # what a user has to know of its configurations

    def trials(self) -> list[TrialSpec]:
        """All trials, seed by seed."""
        return [
            TrialSpec(
                name=name,
                config=replace(config, seed=seed),
                data_fingerprint=self.tokens.manifest.fingerprint,
                folder=self.folder / name / f"seed{seed}",
                provenance=self.provenance,
            )
            for seed, (name, config) in product(self.seeds, self.configurations.items())
        ]

    @contextmanager
    def opened(self) -> Generator[None]:
        """Hold the run folder, with its `experiment.json` written.

        Raises ValueError for a folder of another experiment or in use, and for too small a disk.
        """
        self._check_disk()
        self.folder.mkdir(parents=True, exist_ok=True)
        claims_folder(self.folder.parent)
        try:
            with FileLock(self.folder / LOCK, timeout=0):
                write_text(self.folder / OWNER, f"{os.getpid()} on {platform.node()}")
                write_text(self.folder / EXPERIMENT, json.dumps(self._description(), indent=2))
                yield
        except Timeout as error:
            raise ValueError(
                f"{self.folder} is in use by quarterhour process {owner(self.folder)}: wait for it,"
                " stop it, or pass --name"
            ) from error

    def describe(self) -> dict[str, Any]:
        """What `experiment.json` holds: everything that a reader of the results has to know."""
        return {
            "format": FORMAT_VERSION,
            "name": self.folder.name,
            "kind": self.kind,
            "profile": self.profile.name,
            "protocol": self.protocol,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seeds": list(self.seeds),
            "configurations": [] if self.search else list(self.configurations),
            "search": self.search,
            "ablation": self.ablation,
            "promotion": self.promotion,
            "seeds_of": self.seeds_of,
            "resolved": {name: asdict(config) for name, config in self.configurations.items()},
            "domains": self._domains(),
            "numerics_version": NUMERICS_VERSION,
            "data": asdict(self.profile.data) | asdict(self.tokens.manifest),
            **self.provenance,
            "resources": asdict(self.resources)
            | {"threads": self.resources.threads, "concurrency": self.resources.concurrency},
        }

    @functools.cached_property
    def provenance(self) -> Mapping[str, Any]:
        """Versions, commit and hardware with which its trials are trained now."""
        return {
            "versions": {"python": platform.python_version()} | package_versions(),
            "git_commit": git_commit(),
            "hardware": describe_hardware(self.resources.device),
        }

    def _domains(self) -> dict[str, list[Any]]:
        """Smallest and largest value of each hyperparameter in this experiment, or all choices."""
        domains: dict[str, list[Any]] = {}
        trials = [spec.config.values() for spec in self.trials()]
        for path in trials[0]:
            values = {trial[path] for trial in trials} | self.drawn_values.get(path, set())
            if known := sorted(values - {None}):
                choices = isinstance(known[0], str)
                domains[path] = known if choices else sorted({known[0], known[-1]})
        return domains

    def _description(self) -> dict[str, Any]:
        """What `experiment.json` is to hold: configurations and seeds that it has already stay.

        Raises ValueError where the folder is another experiment's.
        """
        old = read_experiment(self.folder)
        if not old:
            return self.describe()
        there = self._configurations_in(old)
        both = {**there, **self.configurations}
        seeds = sorted({*(old.get("seeds") or []), *self.seeds})
        seeds_of = {**(old.get("seeds_of") or {}), **self.seeds_of}
        merged = replace(self, configurations=both, seeds=tuple(seeds), seeds_of=seeds_of)
        new = merged.describe()
        # A name that is in both must mean the same.
        old |= {"resolved": {name: asdict(config) for name, config in (both | there).items()}}
        for what in _DECIDING:
            difference = _first_difference(value_at(old, what), value_at(new, what), what)
            if difference:
                raise ValueError(
                    f"{self.folder} was made with {difference}: pass --name for another folder"
                )
        before = old.get(BEFORE) or {name: old[name] for name in PROVENANCE if name in old}
        return new | {"created": old.get("created"), BEFORE: before}

    def _configurations_in(self, described: Mapping[str, Any]) -> dict[str, TrialConfig]:
        """The configurations of an `experiment.json`, with fields that came after its version."""
        file = self.folder / EXPERIMENT
        resolved: Mapping[str, Any] = described.get("resolved") or {}
        return {name: config_in(file, values) for name, values in resolved.items()}

    def _check_disk(self) -> None:
        """Raises ValueError without room for all trials' checkpoints and those being written."""
        sizes = [  # with warmup-stable-decay one from before the decay stays
            checkpoint_bytes(config) * (1 + (config.optim.schedule == "warmup-stable-decay"))
            for config in self.configurations.values()
        ]
        needed = sum(sizes) * len(self.seeds) + max(sizes) * self.resources.concurrency
        existing = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        free = shutil.disk_usage(existing).free
        if free < needed:
            raise ValueError(
                f"{self.folder} needs up to {needed / 1e6:,.0f} MB for checkpoints and its disk has"
                f" {free / 1e6:,.0f} MB free: free some, or pass --runs with a folder elsewhere"
            )


def checkpoint_bytes(config: TrialConfig) -> int:
    """Of a trial's checkpoint: in fp32 weights, AdamW's two moments, and averages if it has any."""
    return 4 * config.model.parameters * (4 if config.optim.ema_decay else 3)


def package_versions() -> dict[str, str]:
    """Versions of those PACKAGES that are installed: `run` needs neither Ray nor Optuna."""
    versions: dict[str, str] = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def build_experiment(request: ExperimentRequest) -> Experiment:
    """Resolve what a command was asked.

    Raises ValueError for anything that cannot be trained, before anything trains.
    """
    folder, request = request.folder, request.defaulted()
    profile = _profile(request)
    # Settings are checked before the corpus is read, which may take a while.
    chosen = _configurations(request, profile)
    tokens = prepare_tokens(profile.data)
    configurations = {
        name: _with_vocabulary(config, values, tokens) for name, (config, values) in chosen.items()
    }
    for config in configurations.values():
        Batches(tokens, config.data, config.seed)
    fingerprint = tokens.manifest.fingerprint
    remarks = [past.remarks(profile, fingerprint) for past in request.past.values()]
    return Experiment(
        kind=request.kind,
        folder=folder,
        profile=profile,
        protocol=request.protocol or "",
        configurations=configurations,
        seeds=request.seeds or (),
        tokens=tokens,
        resources=replace(request.resources, train_tokens=tokens.manifest.train_tokens),
        remarks=tuple(chain.from_iterable(remarks)),
    )


def _profile(request: ExperimentRequest) -> Profile:
    """The profile with the corpus and the tokenizer that were asked for."""
    profile = profile_named(request.profile or "quick")
    data = replace(
        profile.data,
        corpus=request.corpus or profile.data.corpus,
        tokenizer=request.tokenizer or profile.data.tokenizer,
    )
    return replace(profile, data=data)


def _configurations(
    request: ExperimentRequest, profile: Profile
) -> dict[str, tuple[TrialConfig, Mapping[str, Any]]]:
    """Each configuration, and the settings that were asked for, which it has."""
    six = reference_configurations(profile, request.protocol or "as-run")
    best: dict[str, Any] = {"precision": best_precision(request.resources.device)}
    asked = dict(request.values)
    found: dict[str, tuple[TrialConfig, Mapping[str, Any]]] = {}
    for name in request.chosen or six:
        if past := request.past.get(name):
            own = past.vocabulary if profile.name == past.profile.name else best
            named = {past.label: (past.config_at(profile), own)}
        elif is_in_file(name):
            read = own_configurations(name, six)
            named = {label: (config, {**best, **own}) for label, (config, own) in read.items()}
        else:
            named = {name: (six[name], best)}
        for label, (config, own) in named.items():
            if label in found:
                raise ValueError(
                    f"two of the configurations are called {label}: leave one of them out"
                )
            values = {**own, **asked}
            config = within_budget(request.trial_budget, config.with_values(values))
            found[label] = longer(config, request.extend) if request.extend else config, values
    return found


def within_budget(budget: str | None, config: TrialConfig) -> TrialConfig:
    """The configuration with the steps that fit into a budget, whatever it had before.

    Raises ValueError for what is no budget, or too small a one.
    """
    if budget is None:
        return config
    unlimited = replace(config.budget, steps=config.budget.steps or 1, max_steps=None, seconds=None)
    return SearchBudget.parse(budget).applied_to(replace(config, budget=unlimited))


def _with_vocabulary(
    config: TrialConfig, values: Mapping[str, Any], tokens: TokenData
) -> TrialConfig:
    vocab_size = values.get("model.vocab_size", tokens.manifest.vocab_size)
    if vocab_size < tokens.manifest.vocab_size:
        raise ValueError(
            f"model.vocab_size is {vocab_size}: the tokenizer has {tokens.manifest.vocab_size}"
            " entries; leave it out, or give at least that"
        )
    return config.with_values({"model.vocab_size": vocab_size})


def git_commit() -> str | None:
    """Commit of this source tree, with `+changes` where files differ from it; None outside git.

    A repository around an installed copy, which it does not hold, is none of ours.
    """

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        others = {name: value for name, value in os.environ.items() if name[:4] != "GIT_"}
        try:
            done = subprocess.run(command, env=others, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    commit = git("rev-parse", "HEAD")
    return f"{commit}+changes" if commit and git("status", "--porcelain") else commit


def _first_difference(old: Any, new: Any, path: str) -> str | None:
    """The first place where two JSON values differ, in words; None where they are equal."""
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        parts = (_first_difference(old[name], new[name], f"{path}.{name}") for name in new)
        return next((part for part in parts if part), None)
    if isinstance(old, dict) and isinstance(new, dict):
        old, new = (f"of {', '.join(each)}" for each in (old, new))
    if path == "search.space":  # its file may have been moved: that has its hash beside it
        old, new = Path(str(old)).name, Path(str(new)).name
    return None if old == new else f"{path} {old}, and this is {new}"
