"""One point of a search space: everything that decides a trial's numbers, and its key."""

import ast
import dataclasses
import difflib
import functools
import hashlib
import heapq
import itertools
import json
import math
import operator
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np

from quarterhour.data.batches import BatchConfig
from quarterhour.model.choice import CHOICE
from quarterhour.model.decoder import DecoderConfig
from quarterhour.model.optim import OptimConfig

# Raised whenever the training loop's numbers change for an equal configuration.
NUMERICS_VERSION = 3

Precision = Literal["fp32", "bf16", "fp16"]

QUARTERS = 4  # of a trial: each has at least one step, and a row at its end
REPORTS = 100  # rows of a whole trial, as in the study
REPORTS_PER_EVALUATION = 20


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """How long to train and when to measure, in optimizer steps.

    The schedule spans `steps`; `max_steps` stops earlier without changing it. Rows are reported
    after 0-based steps 0, report_every, 2 · report_every, … and at the quarters of `steps`;
    evaluations follow 0-based steps 0, eval_every, … and the last. With `seconds`, the trial
    measures at its start how many `steps` fit into that time; until then they are 0.
    Raises ValueError for impossible combinations.
    """

    steps: int = 0
    report_every: int
    eval_every: int
    eval_batches: int = 20
    max_steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "report_every", "eval_every", "eval_batches", "max_steps"):
            value = getattr(self, name)
            measured_later = name == "steps" and self.seconds and value == 0
            if value is not None and value < 1 and not measured_later:
                raise ValueError(f"budget.{name} is {value}: it must be at least 1")
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise ValueError(f"budget.seconds is {self.seconds}: it must be above 0")
        if self.eval_every % self.report_every:
            raise ValueError(
                f"budget.eval_every is {self.eval_every}: it must be a multiple of"
                f" budget.report_every {self.report_every}"
            )

    @property
    def trained_steps(self) -> int:
        """Number of updates after which training ends."""
        return min(self.steps, self.max_steps or self.steps)

    def quarter_ends(self) -> list[int]:
        """For each quarter, the number of updates after which it is done."""
        return [self.steps * quarter // QUARTERS for quarter in range(1, QUARTERS + 1)]

    def window_ends(self) -> Iterator[int]:
        """Numbers of updates after which a row is reported; it covers those since the last row."""
        last = self.trained_steps
        others = sorted(end for end in [*self.quarter_ends(), last] if 0 < end <= last)
        ends = heapq.merge(range(1, last + 1, self.report_every), others)
        return (end for end, _ in itertools.groupby(ends))

    def evaluates_at(self, updates: int) -> bool:
        """Whether the row after so many updates has an evaluation."""
        return (updates - 1) % self.eval_every == 0 or updates == self.trained_steps

    def with_steps(self, steps: int) -> Self:
        """This budget with other steps; rows and evaluations are as dense as in the study."""
        report_every = max(1, round(steps / REPORTS))
        eval_every = report_every * REPORTS_PER_EVALUATION
        return replace(self, steps=steps, report_every=report_every, eval_every=eval_every)


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """A resolved point: model, optimizer, batch, budget, precision and seed."""

    model: DecoderConfig
    optim: OptimConfig
    data: BatchConfig
    budget: BudgetConfig
    precision: Precision
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}: it must be at least 0")

    def with_values(self, values: Mapping[str, Any]) -> Self:
        """A new configuration with other values: `{"optim.learning_rate": 1e-3, …}`.

        Numpy's numbers pass for Python's. With `budget.seconds` among them, the trial measures its
        steps, unless they are given too.

        Raises ValueError for an unknown path, a wrong type or an impossible combination.
        """
        if "budget.seconds" in values:
            values = {"budget.steps": 0, **values}
        top = {path: value for path, value in values.items() if "." not in path}
        result = replace(
            self, **{path: _checked(type(self), path, path, v) for path, v in top.items()}
        )
        sections: dict[str, dict[str, Any]] = {}
        for path in values.keys() - top.keys():
            section, field = path.split(".", 1)
            sections.setdefault(section, {})[field] = values[path]
        for section, fields in sections.items():
            part = getattr(result, section, None)
            if not dataclasses.is_dataclass(part) or isinstance(part, type):
                raise _unknown(f"{section}.{next(iter(fields))}")
            checked = {f: _checked(type(part), f, f"{section}.{f}", v) for f, v in fields.items()}
            result = replace(result, **{section: replace(part, **checked)})
        return result

    def key(self, data_fingerprint: str) -> str:
        """Identity of the trial: equal keys mean equal numbers, so only one of them has to run.

        With a budget in seconds they only mean the same question: the machine decides the steps.
        """
        config = self
        if self.budget.seconds:  # its steps are measured, not asked for
            config = replace(
                self, budget=replace(self.budget, steps=0, report_every=1, eval_every=1)
            )
        identity = [_identity(config), data_fingerprint, NUMERICS_VERSION]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    def values(self) -> dict[str, Any]:
        """All dotted paths and their values, as `with_values` takes them."""
        return {path: operator.attrgetter(path)(self) for path in _paths()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The configuration whose `asdict` gave `values`.

        Raises ValueError or TypeError where they are of none.
        """
        parts: dict[str, Any] = {}
        for name, value in values.items():
            kind: Any = _kinds(cls).get(name)
            if (
                isinstance(kind, type)
                and dataclasses.is_dataclass(kind)
                and isinstance(value, dict)
            ):
                for field, part in value.items():
                    _checked(kind, field, f"{name}.{field}", part)
                parts[name] = kind(**value)
            else:
                parts[name] = _checked(cls, name, name, value)
        return cls(**parts)


def _identity(part: Any) -> Any:
    """`asdict(part)` without the choices that are at their default."""
    if not dataclasses.is_dataclass(part):
        return part
    values = {field: getattr(part, field.name) for field in dataclasses.fields(part)}
    return {
        field.name: _identity(value)
        for field, value in values.items()
        if field.metadata != CHOICE or value != field.default
    }


def parse_assignment(text: str) -> tuple[str, Any]:
    """`optim.learning_rate=1e-3` as a path and a Python value; else ValueError."""
    path, equals, value = text.partition("=")
    if not (path and equals and value):
        raise ValueError(f"'{text}' is not an assignment: write it as optim.learning_rate=1e-3")
    try:
        return path, ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError):
        return path, value


def _paths() -> list[str]:
    """All dotted paths of a TrialConfig."""
    paths: list[str] = []
    for name, kind in _kinds(TrialConfig).items():
        if dataclasses.is_dataclass(kind):
            paths += [f"{name}.{field.name}" for field in dataclasses.fields(kind)]
        else:
            paths.append(name)
    return paths


def _unknown(path: str) -> ValueError:
    keys = _paths()
    close = difflib.get_close_matches(path, keys, 1, cutoff=0.5)
    meant = f" (did you mean {close[0]}?)" if close else ""
    return ValueError(f"unknown key '{path}'{meant}: use one of {', '.join(keys)}")


def plain(value: Any) -> Any:
    """A number or a text of numpy's as Python's; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


_kinds = functools.cache(typing.get_type_hints)
"""The fields of a class, and what they hold."""


def _checked(part: type, field: str, path: str, value: Any) -> Any:
    """`value` as the field's type; a whole number passes for a float. Else ValueError."""
    value = plain(value)
    kind = _kinds(part).get(field)
    if kind is None or dataclasses.is_dataclass(kind):
        raise _unknown(path)
    if typing.get_origin(kind) is Literal:
        if value in typing.get_args(kind):
            return value
        allowed = " or ".join(typing.get_args(kind))
        raise ValueError(f"{path} is {value!r}: it must be {allowed}")
    allowed_kinds = typing.get_args(kind) or (kind,)
    if float in allowed_kinds and type(value) is int and abs(value) < 2**53:
        return float(value)
    if type(value) not in allowed_kinds:
        names = " or ".join("None" if k is type(None) else k.__name__ for k in allowed_kinds)
        raise ValueError(f"{path} is {value!r}: it must be of type {names}")
    return value
