"""The open-ended spaces around the six reference points, and the loader of a user's own space.

A space is a function: it takes an Optuna trial and returns a point, dotted paths with values. Its
parameters are named after what they set ("optim.learning_rate"; "model.d_head" for the width of a
head), so any configuration can be looked up in it.
"""

import dataclasses
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast, get_args

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import BaseTrial, FixedTrial

from quarterhour.model.decoder import Positions
from quarterhour.model.feed_forward import FeedForwardName
from quarterhour.model.norms import NormName
from quarterhour.model.optim import Schedule
from quarterhour.search_spaces.point import TrialConfig
from quarterhour.search_spaces.profiles import Profile
from quarterhour.search_spaces.reference import scaled
from quarterhour.search_spaces.space_file import Space, quiet, run_space_file

optuna.logging.set_verbosity(optuna.logging.WARNING)

# Parts of decoder and optimizer that go with all others.
PARTS: dict[str, Sequence[Any]] = {
    "model.feed_forward": get_args(FeedForwardName),
    "model.norm": get_args(NormName),
    "model.norm_place": ["pre", "pre-and-post"],
    "model.qk_norm": ["none", "rms"],
    "model.attention": ["full", "window"],
    "model.soft_cap": [0.0, 30.0, 50.0],
    "model.head": ["tied", "untied"],
    "model.residual_init": ["equal", "by-depth"],
    "optim.z_loss": [0.0, 1e-4],
    "optim.optimizer": ["adamw", "muon"],
}
MUON = [("optim.muon_learning_rate", 2e-3, 0.2), ("optim.muon_momentum", 0.8, 0.98)]


def open_ended(profile: Profile, positions: Sequence[str] = ("none", "rope")) -> Space:
    """The study's ranges, scaled to the profile's baseline; the six lie within them.

    A head has one of two widths. The model's width is a whole number of heads.
    """

    def size(path: str, *values: int) -> list[int]:
        return [int(scaled(profile, path, value)) for value in values]

    def space(trial: BaseTrial) -> dict[str, Any]:
        low, high, step = size("model.d_model", 128, 768, 64)
        d_model = trial.suggest_int("model.d_model", low, high, step=step)
        d_head = trial.suggest_categorical("model.d_head", size("model.d_head", 32, 64))
        layers = size("model.n_layers", 4, 24)
        batch_size, seq_len = (
            size("data.batch_size", 2, 32, 2),
            size("data.seq_len", 128, 1024, 128),
        )
        rates = [scaled(profile, "optim.learning_rate", rate) for rate in (3e-5, 1e-2)]
        point = {
            "model.d_model": d_model,
            "model.n_heads": d_model // d_head,
            "model.d_ff": 4 * d_model,
            "model.n_layers": trial.suggest_int("model.n_layers", *layers),
            "model.positions": trial.suggest_categorical("model.positions", positions),
            "model.dropout": trial.suggest_float("model.dropout", 0.0, 0.3),
            "data.batch_size": trial.suggest_int(
                "data.batch_size", *batch_size[:2], step=batch_size[2]
            ),
            "data.seq_len": trial.suggest_int("data.seq_len", *seq_len[:2], step=seq_len[2]),
            "optim.learning_rate": trial.suggest_float("optim.learning_rate", *rates, log=True),
            "optim.weight_decay": trial.suggest_float("optim.weight_decay", 1e-3, 1.0, log=True),
            "optim.beta1": trial.suggest_float("optim.beta1", 0.8, 0.98),
            "optim.beta2": trial.suggest_float("optim.beta2", 0.9, 0.999),
            "optim.clip_norm": trial.suggest_float("optim.clip_norm", 0.1, 10.0, log=True),
            "optim.warmup_fraction": trial.suggest_float("optim.warmup_fraction", 0.0, 0.5),
            "optim.schedule": trial.suggest_categorical("optim.schedule", get_args(Schedule)),
        }
        if point["optim.schedule"] == "warmup-stable-decay":
            point["optim.decay_fraction"] = trial.suggest_float("optim.decay_fraction", 0.1, 0.9)
        if point["optim.schedule"] == "cyclical":
            point["optim.cycles"] = trial.suggest_int("optim.cycles", 1, 8)
        return point

    return space


def architectures(profile: Profile) -> Space:
    """The open-ended space, and the parts of decoder and optimizer; the six lie within it too.

    A gated feed-forward is narrower, by its third matrix.
    """
    sizes_and_rates = open_ended(profile, get_args(Positions))
    shortest, longest = (int(scaled(profile, "data.seq_len", tokens)) for tokens in (32, 512))

    def space(trial: BaseTrial) -> dict[str, Any]:
        point = {**sizes_and_rates(trial)}
        for path, values in PARTS.items():
            point[path] = trial.suggest_categorical(path, values)
        if point["model.feed_forward"] == "swiglu":
            point["model.d_ff"] = 8 * point["model.d_model"] // 3
        if point["model.feed_forward"] == "moe":
            point["model.n_experts"] = trial.suggest_categorical("model.n_experts", [4, 8, 16])
            active = trial.suggest_int("model.active_experts", 1, 4)
            point["model.active_experts"] = active
            point["model.d_ff"] = 8 * point["model.d_model"] // (3 * active)
            point["optim.balance_loss"] = trial.suggest_float(
                "optim.balance_loss", 1e-3, 0.1, log=True
            )
        if point["model.n_heads"] % 2 == 0:
            point["model.heads_per_kv"] = trial.suggest_categorical("model.heads_per_kv", [1, 2])
        if point["model.positions"] != "none":
            point["model.rope_base"] = trial.suggest_float("model.rope_base", 100.0, 1e6, log=True)
        if point["model.attention"] == "window":
            point["model.window"] = trial.suggest_int("model.window", shortest, longest, log=True)
            point["model.full_every"] = trial.suggest_int("model.full_every", 2, 6)
        if point["optim.optimizer"] == "muon":
            for path, low, high in MUON:
                point[path] = trial.suggest_float(path, low, high, log=True)
        return point

    return space


SPACES = {"open-ended": open_ended, "architectures": architectures}


@dataclass(frozen=True, kw_only=True)
class SpacePoint:
    """A configuration as Optuna sees it: values and distributions of the space's parameters."""

    params: dict[str, Any]
    distributions: dict[str, BaseDistribution]


class _Lookup(FixedTrial):
    """Suggests a configuration's own values; an error names the parameter that cannot take its."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        if name in self._params and self._params[name] not in choices:
            raise ValueError(f"{name} is {self._params[name]!r} and must be one of {choices}")
        return super().suggest_categorical(name, choices)

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        """The value. As in Optuna's own trials, the first range that a name is given holds."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Optuna only warns of a value out of range
            try:
                return super()._suggest(name, self._distributions.get(name, distribution))
            except Warning as error:
                raise ValueError(str(error)) from error


def locate(space: Space, baseline: TrialConfig, config: TrialConfig) -> SpacePoint:
    """`config` as a point of `space` on `baseline`, whatever its budget, precision and seed.

    Raises ValueError with the name of what lies outside the space.
    """
    values = _values(config)
    trial = _Lookup(values)
    try:
        point = space(trial)
    except ValueError as error:
        raise ValueError(f"outside the search space: {error}") from error
    built = _values(baseline.with_values(point))
    for path, value in values.items():
        if built[path] != value:
            raise ValueError(
                f"outside the search space: {path} is {value!r}, and with the other values given"
                f" the space has only {built[path]!r}"
            )
    return SpacePoint(params=trial.params, distributions=trial.distributions)


def draw(space: Space, baseline: TrialConfig, trial: optuna.Trial) -> TrialConfig:
    """The configuration of the point that a space has for an Optuna trial, on `baseline`.

    Raises ValueError where it cannot be built, or `locate` would not find it again.
    """
    point = space(trial)
    config = baseline.with_values(point)
    if fault := _fault(point, config, trial.params):
        raise ValueError(f"it {fault}")
    try:
        locate(space, baseline, config)
    except ValueError as error:
        raise ValueError(
            f"no search could go on from it, for given the same values the space has another"
            f" ({error}); let it depend on its parameters alone"
        ) from error
    return config


class _Holding:
    """An Optuna trial in which some parameters are held: it suggests these values alone."""

    def __init__(self, trial: BaseTrial, held: Mapping[str, Any]) -> None:
        self._trial = trial
        self._held = held

    def __getattr__(self, method: str) -> Any:
        own = getattr(self._trial, method)
        if not method.startswith("suggest_"):
            return own
        return lambda name, *a, **k: self._held[name] if name in self._held else own(name, *a, **k)


def reduced(space: Space, around: TrialConfig, free: Collection[str]) -> Space:
    """The space in which the `free` parameters vary, and those that only they bring with them.

    With none free, all are. All others are held as `around` has them. Raises ValueError where that
    lies outside the space, or what shall be free is no parameter there.
    """
    try:
        known = locate(space, around, around).params
    except ValueError as error:
        raise ValueError(f"what --around names is {error}; try another --space") from error
    if unknown := [path for path in free if path not in known]:
        raise ValueError(
            f"--free {unknown[0]} is no parameter of the space there: use some of"
            f" {', '.join(known)}"
        )
    held = {path: value for path, value in known.items() if free and path not in free}
    return lambda trial: space(cast(BaseTrial, _Holding(trial, held)))


def load_space(name: str, profile: Profile) -> Space:
    """One of SPACES, or NAME of a user's FILE.py, given as `FILE.py:NAME`. It warns only here.

    Raises ValueError if there is no such space, or its points cannot be used.
    """
    space = SPACES[name](profile) if name in SPACES else run_space_file(name)
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    try:
        point = space(trial)
        config = profile.baseline.with_values(point)
    except Exception as error:
        raise ValueError(f"--space {name}: {str(error) or type(error).__name__}") from error
    if fault := _fault(point, config, trial.params):
        raise ValueError(f"--space {name} {fault}")
    return partial(quiet, space)


def _fault(point: Mapping[str, Any], config: TrialConfig, params: Mapping[str, Any]) -> str | None:
    """Why a point that can be built is no point of a search, or None."""
    fixed = [path for path in point if path.startswith("budget.") or path in ("seed", "precision")]
    if fixed:
        return f"sets {fixed[0]}: use --budget, --seed or --precision"
    if not params:
        return "has no parameter: call trial.suggest_float(…) in it"
    values = _values(config)
    for parameter, value in params.items():
        if values.get(parameter) != value:
            return (
                f"has a parameter '{parameter}' that does not set what it is named after: name it"
                f" one of {', '.join(values)}"
            )
    return None


def _values(config: TrialConfig) -> dict[str, Any]:
    """All dotted paths that a space can set and `model.d_head`, with their values."""
    sections = {name: getattr(config, name) for name in ("model", "optim", "data")}
    paths = {
        f"{name}.{field.name}": getattr(section, field.name)
        for name, section in sections.items()
        for field in dataclasses.fields(section)
    }
    return paths | {"model.d_head": config.model.d_head}
