"""What a chapter of the report is made of: sections with their tables and figures.

A table is made by a function of a run that gives a DataFrame, or a Comparison where the study has
published it. A figure is made by one that gives a matplotlib Figure, or None while there is nothing
to draw. What compares runs is made from all of them. A maker's docstring is its caption.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

import pandas as pd

from quarterhour.analysis.chapters.paper.comparison import Comparison
from quarterhour.analysis.runs import Run

if TYPE_CHECKING:  # `quarterhour verify` draws nothing
    from matplotlib.figure import Figure

Subject = TypeVar("Subject")
TableMaker = Callable[[Subject], pd.DataFrame | Comparison]
FigureMaker = Callable[[Subject], "Figure | None"]


@dataclass(frozen=True, kw_only=True)
class Section(Generic[Subject]):
    """A section of the page, for the subjects that it `applies` to: a run, or all runs.

    `tables` and `figures` have a title and a maker by the name of their files.
    """

    name: str
    title: str
    applies: Callable[[Subject], bool] = lambda _: True
    tables: Mapping[str, tuple[str, TableMaker[Subject]]] = field(default_factory=dict)
    figures: Mapping[str, tuple[str, FigureMaker[Subject]]] = field(default_factory=dict)


def compares_configurations(run: Run) -> bool:
    """Whether the run's trials are of named configurations, and not a search's."""
    return not run.is_search
