"""The section of the paper's eight tables, each beside the published one, and of its figures."""

from quarterhour.analysis.chapters.paper import figures
from quarterhour.analysis.chapters.paper.comparison import compare
from quarterhour.analysis.chapters.paper.published import beside_the_study, has_studied
from quarterhour.analysis.chapters.paper.tables import TABLES
from quarterhour.analysis.runs import Run
from quarterhour.analysis.sections import Section, Table, TableMaker, compares_configurations


def _beside_published(name: str) -> TableMaker[Run]:
    def make(run: Run) -> Table:
        return compare(run, name).as_table()

    make.__doc__ = TABLES[name][1].__doc__
    return make


PAPER = Section[Run](
    name="paper",
    title="The paper's tables and figures",
    applies=compares_configurations,
    sentences=lambda run: [] if has_studied(run) else [beside_the_study(run)],
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
)
