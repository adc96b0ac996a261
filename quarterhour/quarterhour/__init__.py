"""Hyperparameter search for quarter-hour pretraining runs of small decoder language models.

The five packages lie at the top of the source tree; the links beside this file give them this name.
`quarterhour.tune.interface` has the functions that can be called from here.
"""

# Not from `typing`: with `python -m` that could be a module of the working directory.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from quarterhour.analysis.runs import Run, load_run
    from quarterhour.tune.interface import (
        ablate,
        best_trials,
        export,
        grid,
        promote,
        report,
        resolve,
        run,
        sample,
        search,
    )

__all__ = [
    "Run",
    "ablate",
    "best_trials",
    "export",
    "grid",
    "load_run",
    "promote",
    "report",
    "resolve",
    "run",
    "sample",
    "search",
]


def __getattr__(name: str) -> object:
    """One of those functions, imported when it is asked for: torch and pandas take seconds."""
    if name not in __all__:
        raise AttributeError(f"module 'quarterhour' has no attribute '{name}'")
    from quarterhour.tune import interface

    return getattr(interface, name)
