"""The ground on which searches are measured: a tiny profile, its space, and the table's points."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import tokenizers
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FixedTrial
from scipy.stats import qmc

from quarterhour.data.builtin import builtin_documents
from quarterhour.data.files import write_file
from quarterhour.data.tokens import DataConfig
from quarterhour.search_spaces.budget import SearchBudget
from quarterhour.search_spaces.open_ended import locate, open_ended
from quarterhour.search_spaces.point import TrialConfig
from quarterhour.search_spaces.profiles import QUICK, Profile
from quarterhour.search_spaces.reference import reference_configurations

TABLE = Path(__file__).with_name("table.parquet")
VOCAB_SIZE = 1_024
SIZES = {
    "model.vocab_size": VOCAB_SIZE, "model.d_model": 48, "model.d_ff": 192, "data.seq_len": 32,
    "optim.learning_rate": 2.4e-3,
}  # fmt: skip
MOVED, STEP, REDRAWN = 0.5, 0.15, 0.2
"""Share of the numbers that move, their step as a share of the range; share of new choices."""

TINY = Profile(
    name="tiny",
    data=DataConfig(corpus="builtin", tokenizer="", heldout_documents=5),
    baseline=QUICK.baseline.with_values(SIZES),
)
SPACE = open_ended(TINY)
BUDGET = SearchBudget.same_tokens_as(TINY.baseline)
SIX = {
    name: BUDGET.applied_to(config)
    for name, config in reference_configurations(TINY, "as-run").items()
}


def params_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a table's row, as the space takes them."""
    paths = ("model.", "optim.", "data.")
    params = {name: row[name] for name in row if name.startswith(paths) and row[name] == row[name]}
    if "optim.cycles" in params:
        params["optim.cycles"] = int(params["optim.cycles"])
    return params


@dataclass(frozen=True, kw_only=True)
class Point:
    """A row's point: where it is from, and the values of the space's parameters."""

    origin: str
    params: Mapping[str, Any]

    @property
    def config(self) -> TrialConfig:
        """What it trains, with the budget of all."""
        return BUDGET.applied_to(SIX["baseline"].with_values(SPACE(FixedTrial({**self.params}))))


def data_config(folder: Path) -> DataConfig:
    """The tiny profile's data, with a small byte-level BPE that is trained once, in `folder`."""
    path = folder / f"bpe{VOCAB_SIZE}.json"
    if not path.exists():
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE,
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(builtin_documents()[: TINY.data.train_documents], trainer)
        write_file(path, lambda temporary: tokenizer.save(str(temporary)))
    return replace(TINY.data, tokenizer=str(path))


def points() -> Iterator[Point]:
    """The six; then without end, by turns, a point of the spread and one around one of the six.

    The spread is a scrambled Sobol sequence. So the beginning of them all is as even as the whole.
    """
    yield from (Point(origin=name, params=locate_six(name)) for name in SIX)
    names = parameter_names()
    sobol = qmc.Sobol(len(names), seed=0)
    rng = np.random.default_rng(0)
    for origin in itertools.cycle(SIX):
        units = dict(zip(names, sobol.random(1)[0], strict=True))
        yield Point(origin="spread", params=params_at(units))
        units = moved(locate_six(origin), names, rng)
        yield Point(origin=f"around {origin}", params=params_at(units))


def points_around(centers: Mapping[str, Mapping[str, Any]]) -> Iterator[Point]:
    """Points without end around these points by name, by turns."""
    names, rng = parameter_names(), np.random.default_rng(1)
    for name, params in itertools.cycle(centers.items()):
        units = moved(params, names, rng)
        yield Point(origin=f"around {name}", params=params_at(units))


def locate_six(name: str) -> dict[str, Any]:
    """One of the six as the space's parameters."""
    return locate(SPACE, SIX["baseline"], SIX[name]).params


def parameter_names() -> list[str]:
    """All parameters of the space, also those that only some points have."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [study.ask() for _ in range(100)]
    for trial in trials:
        SPACE(trial)
    return sorted({name for trial in trials for name in trial.params})


class UnitTrial(FixedTrial):
    """Suggests what lies at given places of the parameters' ranges, each from 0 to 1."""

    def __init__(self, units: Mapping[str, float]) -> None:
        super().__init__({})
        self._units = units

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        self._params[name] = value_at(distribution, self._units[name])
        return super()._suggest(name, distribution)


def params_at(units: Mapping[str, float]) -> dict[str, Any]:
    """The values of the parameters at these places of their ranges."""
    trial = UnitTrial(units)
    SPACE(trial)
    return trial.params


def value_at(distribution: Any, unit: float) -> Any:
    """The value at a place from 0 to 1 of a distribution's range."""
    if isinstance(distribution, CategoricalDistribution):
        n = len(distribution.choices)
        return distribution.choices[min(int(unit * n), n - 1)]
    if distribution.step:
        n = (distribution.high - distribution.low) // distribution.step + 1
        return distribution.low + distribution.step * min(int(unit * n), n - 1)
    if distribution.log:
        return float(distribution.low * (distribution.high / distribution.low) ** unit)
    return float(distribution.low + (distribution.high - distribution.low) * unit)


def unit_of(distribution: Any, value: Any) -> float:
    """The place of a value in a distribution's range: what `value_at` takes back to it."""
    if isinstance(distribution, CategoricalDistribution):
        return (distribution.choices.index(value) + 0.5) / len(distribution.choices)
    if distribution.step:
        n = (distribution.high - distribution.low) // distribution.step + 1
        return ((value - distribution.low) // distribution.step + 0.5) / n
    if distribution.log:
        range_ = np.log(distribution.high / distribution.low)
        return float(np.log(value / distribution.low) / range_)
    return (value - distribution.low) / (distribution.high - distribution.low)


def moved(
    params: Mapping[str, Any], names: list[str], rng: np.random.Generator
) -> dict[str, float]:
    """Places around a point; what it does not have is drawn evenly."""
    located = FixedTrial({**params})
    SPACE(located)
    units = {name: float(rng.random()) for name in names}
    steps = {name: float(rng.normal(0, STEP)) for name in names}
    chances = {name: float(rng.random()) for name in names}
    for name, distribution in located.distributions.items():
        unit = unit_of(distribution, located.params[name])
        if isinstance(distribution, CategoricalDistribution):
            units[name] = units[name] if chances[name] < REDRAWN else unit
        else:
            step = steps[name] if chances[name] < MOVED else 0.0
            units[name] = reflected(unit + step)
    return units


def reflected(unit: float) -> float:
    """A place beyond 0 or 1 as far on this side of it."""
    return abs((unit + 1) % 2 - 1) if not 0 <= unit <= 1 else unit
