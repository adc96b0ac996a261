"""Designs of experiments: which combinations of a few settings are trained to tell their effects.

A factor is a setting by its dotted path, with the levels that it takes. A cell is a combination of
levels, trained as one configuration.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations, product
from typing import Any, Literal, get_args

import numpy as np

from quarterhour.search_spaces.point import TrialConfig, parse_assignment

Kind = Literal["one-at-a-time", "cross", "fraction"]
REFERENCE = "reference"
MOST_CELLS = 256
Levels = tuple[Any, ...]
Cell = Mapping[str, Any]
_WIDTH, _N_HEADS, _D_FF = "model.d_model", "model.n_heads", "model.d_ff"


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What a change of one factor does, or of two beyond what each does alone: those of `paths`.

    It is the coefficient of `codes`, a number a cell, in a linear model with an intercept. The
    design cannot tell it from its `aliases`.
    """

    paths: Sequence[str]
    codes: Mapping[str, float]
    aliases: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Design:
    """The `cells` by name; a setting that a cell does not name is that of the point varied.

    `generators` tell, of a fraction, which factors follow from others.
    """

    kind: Kind
    factors: Mapping[str, Levels]
    cells: Mapping[str, Cell]
    generators: list[str] = field(default_factory=list)

    def effects(self) -> dict[str, Effect]:
        """The effects that can be told, by name: those of single factors first."""
        if self.kind == "one-at-a-time":
            others = [name for name in self.cells if name != REFERENCE]
            return {
                name: Effect(
                    paths=[*self.cells[name]], codes=self._codes(lambda n, _, o=name: n == o)
                )
                for name in others
            }
        told: dict[str, Effect] = {}
        for name, effect in chain(self._mains(), self._interactions()):
            negated = {cell: -code for cell, code in effect.codes.items()}
            same = (known for known in told.values() if known.codes in (effect.codes, negated))
            if known := next(same, None):
                known.aliases.append(name)
            else:
                told[name] = effect
        return told

    def _mains(self) -> Iterator[tuple[str, Effect]]:
        """The change from a factor's first level to another; of two levels, half on either side."""
        for path, (first, *others) in self.factors.items():
            middle = 0.5 if len(others) == 1 else 0.0
            for level in others:
                codes = self._codes(lambda _, cell, p=path, v=level: cell[p] == v)
                centred = {name: code - middle for name, code in codes.items()}
                name = f"{self._short(path)} {first} → {level}"
                yield name, Effect(paths=[path], codes=centred)

    def _interactions(self) -> Iterator[tuple[str, Effect]]:
        """Of factors with two levels: half the change of one's effect from the other's first to its
        second level (Box, Hunter and Hunter 2005, Statistics for Experimenters)."""
        of_two = [path for path, levels in self.factors.items() if len(levels) == 2]
        for one, other in combinations(of_two, 2):
            last = self.factors[one][1], self.factors[other][1]
            agree = self._codes(
                lambda _, cell, a=one, b=other, v=last: (cell[a] == v[0]) == (cell[b] == v[1])
            )
            name = f"{self._short(one)} × {self._short(other)}"
            codes = {cell: code - 0.5 for cell, code in agree.items()}
            yield name, Effect(paths=[one, other], codes=codes)

    def _short(self, path: str) -> str:
        return short_name(path, self.factors)

    def _codes(self, holds: Callable[[str, Cell], bool]) -> dict[str, float]:
        return {name: float(holds(name, cell)) for name, cell in self.cells.items()}


def short_name(path: str, paths: Iterable[str]) -> str:
    """The last part of a dotted path, where no other of the paths ends so."""
    field = path.rpartition(".")[2]
    return field if sum(other.rpartition(".")[2] == field for other in paths) == 1 else path


def parse_factors(texts: Iterable[str]) -> dict[str, Levels]:
    """`optim.learning_rate=6e-4,2.4e-3` and others like it; raises ValueError for what is none."""
    factors: dict[str, Levels] = {}
    for text in texts:
        path, _, values = text.partition("=")
        levels = [parse_assignment(f"{path}={value}")[1] for value in values.split(",")]
        if path in factors:
            raise ValueError(f"--vary {path} is given twice: give all its levels at once")
        if twice := [level for level in levels if levels.count(level) > 1]:
            raise ValueError(f"--vary {text} has the level {twice[0]} twice: leave one out")
        factors[path] = tuple(levels)
    return factors


def build_design(kind: str, factors: Mapping[str, Levels], resolution: int, base: Cell) -> Design:
    """The design of that kind around a point, given as all its values by dotted path.

    Raises ValueError for an unknown kind or path, too few factors or levels, or too many cells.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"unknown --design '{kind}': use {', '.join(get_args(Kind))}")
    _check(kind, factors)
    generators: list[str] = []
    if kind == "one-at-a-time":
        cells = _one_at_a_time(factors, base)
    else:
        combined = [*product(*factors.values())]
        if kind == "fraction":
            combined = _fraction(factors, resolution)
            generators = _generators(factors, combined)
        found = [dict(zip(factors, levels, strict=True)) for levels in combined]
        digits = len(str(len(found)))
        cells = {f"cell{n:0{digits}d}": cell for n, cell in enumerate(found, start=1)}
    checked: Any = kind
    return Design(kind=checked, factors=factors, cells=cells, generators=generators)


def _check(kind: str, factors: Mapping[str, Levels]) -> None:
    if not factors:
        raise ValueError("nothing varies: pass --vary PATH=VALUE,VALUE, for each setting one")
    n_levels = {path: len(levels) for path, levels in factors.items()}
    if kind != "one-at-a-time" and (few := [path for path, n in n_levels.items() if n < 2]):
        raise ValueError(f"--vary {few[0]} has one level: --design {kind} needs two or more")
    if kind == "fraction" and (many := [path for path, n in n_levels.items() if n > 2]):
        raise ValueError(
            f"--vary {many[0]} has {n_levels[many[0]]} levels: a fraction has two of each; give"
            " two, or pass --design cross"
        )
    if kind == "fraction" and len(factors) < 2:
        raise ValueError("a fraction needs two settings that vary: pass another --vary")
    if kind == "cross" and (cells := math.prod(n_levels.values())) > MOST_CELLS:
        raise ValueError(
            f"--design cross has {cells:,} cells, and at most {MOST_CELLS} can be trained: pass"
            " --design fraction, or fewer levels"
        )


def _one_at_a_time(factors: Mapping[str, Levels], base: Cell) -> dict[str, Cell]:
    """The point itself, and each level in which another differs from it alone."""
    cells: dict[str, Cell] = {REFERENCE: {}}
    for path, levels in factors.items():
        changed = [level for level in levels if level != base.get(path)]
        cells |= {f"{short_name(path, factors)}={level}": {path: level} for level in changed}
    return cells


def _fraction(factors: Mapping[str, Levels], resolution: int) -> list[Levels]:
    """The smallest regular two-level fraction of at least that resolution (Box and Hunter 1961)."""
    if not 3 <= resolution <= 5:
        raise ValueError(f"--resolution is {resolution}: it must be 3, 4 or 5")
    from pydoe import fracfact_by_res  # takes a second, and only this design needs it

    coded = fracfact_by_res(len(factors), resolution)
    return [
        tuple(levels[int(place > 0)] for levels, place in zip(factors.values(), row, strict=True))
        for row in coded
    ]


def _generators(factors: Mapping[str, Levels], cells: list[Levels]) -> list[str]:
    """The factors that are a product of others, where a first level counts as -1 and a second as 1:
    `f = a × b × c`, or `f = -a × b × c`."""
    second = [levels[1] for levels in factors.values()]
    signs = [
        [1 if level == last else -1 for level, last in zip(cell, second, strict=True)]
        for cell in cells
    ]
    codes, names = np.array(signs), [short_name(path, factors) for path in factors]
    base: list[int] = []
    told: list[str] = []
    for n, name in enumerate(names):
        groups = chain.from_iterable(combinations(base, size) for size in range(2, len(base) + 1))
        products = ((group, codes[:, [n, *group]].prod(1).mean()) for group in groups)
        made = next(((group, sign) for group, sign in products if abs(sign) == 1), None)
        if made:
            parts = " × ".join(names[part] for part in made[0])
            told.append(f"{name} = {'-' if made[1] < 0 else ''}{parts}")
        else:
            base.append(n)
    return told


def with_levels(base: TrialConfig, cell: Cell) -> TrialConfig:
    """The point with a cell's levels, and what follows from them unless the cell says otherwise.

    A width keeps the width of its heads. The feed-forward keeps its ratio to the width, and the
    multiplications a token: with a third matrix or several active experts it is narrower.
    Raises ValueError for a cell that cannot be built.
    """
    try:
        followers = _followers(base.values(), cell)
    except (TypeError, ArithmeticError):  # of a level that is no size
        followers = {}
    return base.with_values({**followers, **cell})


def _followers(known: Cell, cell: Cell) -> Cell:
    values = {**known, **cell}
    wider = values[_WIDTH] / known[_WIDTH]
    narrower = _matrices(known) / _matrices(values)
    return {
        _N_HEADS: round(known[_N_HEADS] * wider),
        _D_FF: round(known[_D_FF] * wider * narrower),
    }


def _matrices(values: Cell) -> int:
    """How many matrices of the feed-forward's width a token is multiplied by."""
    gated = {"swiglu": 3, "moe": 3 * values["model.active_experts"]}
    return gated.get(values["model.feed_forward"], 2)
