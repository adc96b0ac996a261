"""The one registry of what a report holds: its sections, their tables and their figures.

A table is a function of a run that gives a DataFrame, or a Comparison where the study has published
it; a figure is one that gives a matplotlib Figure, or None while there is nothing to draw. What
compares runs is a function of all of them. A maker's docstring is its caption: to add a table or a
figure, write the function and name it here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import pandas as pd
from matplotlib.figure import Figure

from quarterhour.analysis.chapters import (
    calibration,
    contradictions,
    equal_cost,
    memorisation,
    scaling,
    seeds,
    trust_figures,
    verify,
)
from quarterhour.analysis.chapters import run as overview
from quarterhour.analysis.chapters.paper import figures
from quarterhour.analysis.chapters.paper.comparison import Comparison, compare
from quarterhour.analysis.chapters.paper.tables import TABLES
from quarterhour.analysis.chapters.search import figures as search_figures
from quarterhour.analysis.chapters.search import tables as search_tables
from quarterhour.analysis.plots import COLOURS
from quarterhour.analysis.runs import Run

Subject = TypeVar("Subject")
TableMaker = Callable[[Subject], pd.DataFrame | Comparison]
FigureMaker = Callable[[Subject], Figure | None]


@dataclass(frozen=True, kw_only=True)
class Section(Generic[Subject]):
    """A section of the page, for the subjects that it `applies` to: a run, or all runs.

    `tables` and `figures` have title and maker by the name that their files get.
    """

    name: str
    title: str
    applies: Callable[[Subject], bool] = lambda _: True
    tables: Mapping[str, tuple[str, TableMaker[Subject]]] = field(default_factory=dict)
    figures: Mapping[str, tuple[str, FigureMaker[Subject]]] = field(default_factory=dict)


def is_search(run: Run) -> bool:
    """Whether the run's trials are those of a search."""
    return bool(run.experiment.get("search"))


def is_no_search(run: Run) -> bool:
    """Whether the run's trials are named configurations."""
    return not is_search(run)


def has_several_objectives(run: Run) -> bool:
    """Whether the run is a search with a Pareto front."""
    return is_search(run) and len(run.experiment["search"]["objectives"]) > 1


def has_studied(run: Run) -> bool:
    """Whether one of the run's configurations is one of the study's six."""
    return not COLOURS.keys().isdisjoint(run.trials["configuration"])


def has_several_sizes(runs: Sequence[Run]) -> bool:
    """Whether complete trials differ in parameters, tokens or FLOPs."""
    measured = scaling.points(runs)
    return len(measured.loc[:, [*scaling.AXES]].drop_duplicates()) > 1


def _beside_published(name: str) -> TableMaker[Run]:
    def make(run: Run) -> Comparison:
        return compare(run, name)

    make.__doc__ = TABLES[name][1].__doc__
    return make


def _contradictions(_: Sequence[Run]) -> pd.DataFrame:
    return contradictions.contradictions()


_contradictions.__doc__ = contradictions.contradictions.__doc__


RUN_SECTIONS: tuple[Section[Run], ...] = (
    Section(
        name="run",
        title="The run",
        tables={
            "provenance": ("Provenance", overview.provenance),
            "trials": ("Trials", overview.trials),
        },
    ),
    Section(
        name="paper",
        title="The paper's tables and figures",
        applies=is_no_search,
        tables={
            f"table{number}_{name}": (f"Table {number} · {title}", _beside_published(name))
            for number, (name, (title, _)) in enumerate(TABLES.items(), start=1)
        },
        figures={
            "training_loss": ("Training loss", figures.training_loss),
            "final_performance": ("Final loss and accuracy", figures.final_performance),
            "throughput": ("Steps per second", figures.throughput),
            "convergence": ("Convergence", figures.convergence),
            "training_curves": ("Training curves", figures.training_curves),
            "validation_curves": ("Validation curves", figures.validation_curves),
            "efficiency": ("Efficiency", figures.efficiency),
        },
    ),
    Section(
        name="verify",
        title="Against the published study",
        applies=has_studied,
        tables={
            "verify_orderings": ("Orderings", verify.verify_orderings),
            "verify_cells": ("Cells", verify.verify_cells),
        },
    ),
    Section(
        name="uncertainty",
        title="What the seeds say",
        applies=is_no_search,
        tables={
            "seed_intervals": ("Means and intervals", seeds.seed_intervals),
            "pairwise": ("Every pair", seeds.pairwise),
        },
    ),
    Section(
        name="equal_cost",
        title="At equal cost",
        applies=is_no_search,
        tables={
            "rank_changes": ("Ranks at equal cost", equal_cost.rank_changes),
            "equal_cost": ("Losses at equal cost", equal_cost.equal_cost),
        },
        figures={"equal_cost": ("Losses at equal cost", trust_figures.equal_cost_losses)},
    ),
    Section(
        name="memorisation",
        title="Memorisation or learning",
        applies=is_no_search,
        tables={"memorisation": ("Leaky against held-out", memorisation.memorisation)},
        figures={"memorisation": ("The gap over time", trust_figures.memorisation_gap)},
    ),
    Section(
        name="calibration",
        title="Calibration",
        applies=is_no_search,
        tables={
            "calibration": ("Expected calibration error", calibration.calibration),
            "reliability": ("Bins of confidence", calibration.reliability),
            "correlations": ("Correlations", calibration.correlations),
        },
        figures={"reliability": ("Reliability diagram", trust_figures.reliability_diagram)},
    ),
    Section(
        name="search",
        title="The search",
        applies=is_search,
        tables={
            "states": ("Trials by state", search_tables.states),
            "cost": ("Cost", search_tables.cost),
            "best": ("Best trials", search_tables.best),
            "commands": ("Best trials as commands", search_tables.commands),
            "against_the_six": ("Against the best of the six", search_tables.against_the_six),
            "importances": ("Parameter importances", search_figures.importances),
        },
        figures={
            "history": ("Optimisation history", search_figures.optimisation_history),
            "fresh_seeds": ("Fresh seeds", search_figures.fresh_seeds),
            "importances": ("Parameter importances", search_figures.importance_bars),
            "slices": ("Slices", search_figures.slices),
            "parallel": ("Parallel coordinates", search_figures.parallel_coordinates),
            "learning_curves": ("Learning curves", search_figures.learning_curves),
        },
    ),
    Section(
        name="front",
        title="Pareto front",
        applies=has_several_objectives,
        tables={"front": ("Trials on the front", search_figures.front)},
        figures={"front": ("Pareto front", search_figures.pareto_front)},
    ),
    Section(
        name="samples",
        title="Text samples",
        tables={"samples": ("Text samples", overview.samples)},
    ),
)
"""Sections of each run."""

COMMON_SECTIONS: tuple[Section[Sequence[Run]], ...] = (
    Section(
        name="runs",
        title="The runs side by side",
        applies=lambda runs: len(runs) > 1,
        tables={"runs": ("Trials of all runs", overview.last_measures)},
    ),
    Section(
        name="scaling",
        title="Scaling",
        applies=has_several_sizes,
        tables={
            "scaling_fits": ("Power laws with an offset", scaling.fits),
            "scaling_points": ("What they are fitted to", scaling.points),
        },
        figures={"scaling": ("Held-out loss against size", trust_figures.scaling_laws)},
    ),
    Section(
        name="contradictions",
        title="Where the paper contradicts itself",
        applies=lambda runs: any(map(has_studied, runs)),
        tables={"contradictions": ("Contradictions", _contradictions)},
    ),
)
"""Sections of all runs together."""
