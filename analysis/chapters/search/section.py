"""The sections of a search: what it has come to, and the front of one with several objectives."""

from quarterhour.analysis.chapters.search import figures, tables
from quarterhour.analysis.chapters.search.rungs import rungs
from quarterhour.analysis.runs import Run
from quarterhour.analysis.sections import Section

SEARCH = Section[Run](
    name="search",
    title="The search",
    applies=lambda run: run.is_search,
    tables={
        "states": ("Trials by state", tables.states),
        "cost": ("Cost", tables.cost),
        "best": ("Best trials", tables.best),
        "commands": ("Best trials as commands", tables.commands),
        "against_the_six": ("The best with fresh seeds", tables.against_the_six),
        "rungs": ("Early stopping", rungs),
        "importances": ("Parameter importances", tables.importances),
    },
    figures={
        "history": ("Optimisation history", figures.optimisation_history),
        "importances": ("Parameter importances", figures.importance_intervals),
        "slices": ("Slices", figures.slices),
        "parallel": ("Parallel coordinates", figures.parallel_coordinates),
        "learning_curves": ("Learning curves", figures.learning_curves),
    },
)

FRONT = Section[Run](
    name="front",
    title="Pareto front",
    applies=lambda run: run.is_search and len(run.experiment["search"]["objectives"]) > 1,
    tables={"front": ("Trials on the front", tables.front)},
    figures={"front": ("Pareto front", figures.pareto_front)},
)
