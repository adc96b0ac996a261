"""What a chapter of the report is made of: sections with their sentences, tables and figures.

A table is made by a function of a run that gives a DataFrame, or a Table where the page shows
something else than the csv holds. A figure is made by one that gives a matplotlib Figure, or None
while there is nothing to draw. What compares runs is made from all of them. A maker's docstring is
its caption.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

import pandas as pd

from quarterhour.analysis.runs import Run

if TYPE_CHECKING:  # `quarterhour verify` draws nothing
    from matplotlib.figure import Figure

Subject = TypeVar("Subject")


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table whose csv holds `frame`, and which is read as `cells`, all of them texts.

    The `notes` stand below it, or in its place where there are no cells. A `title` replaces that of
    the section.
    """

    frame: pd.DataFrame
    cells: pd.DataFrame
    notes: list[str] = field(default_factory=list)
    title: str = ""


TableMaker = Callable[[Subject], pd.DataFrame | Table]
FigureMaker = Callable[[Subject], "Figure | None"]


@dataclass(frozen=True, kw_only=True)
class Section(Generic[Subject]):
    """A section of the page, for the subjects that it `applies` to: a run, or all runs.

    `tables` and `figures` have a title and a maker by the name of their files. `sentences` come
    before them. Where `lacks` says what is missing, that stands for the whole section. What is
    `folded` opens at a click.
    """

    name: str
    title: str
    applies: Callable[[Subject], bool] = lambda _: True
    lacks: Callable[[Subject], str] = lambda _: ""
    sentences: Callable[[Subject], list[str]] = lambda _: []
    figures: Mapping[str, tuple[str, FigureMaker[Subject]]] = field(default_factory=dict)
    tables: Mapping[str, tuple[str, TableMaker[Subject]]] = field(default_factory=dict)
    folded: bool = False


def compares_configurations(run: Run) -> bool:
    """Whether each of the run's named configurations is compared with each other: it is no search,
    ablation or promotion, which ask other questions."""
    return not any(run.experiment.get(kind) for kind in ("search", "ablation", "promotion"))
