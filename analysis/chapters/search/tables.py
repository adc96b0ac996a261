"""Tables of a search: how its trials ended, its best, and what they are worth."""

from pathlib import Path

import pandas as pd

from quarterhour.analysis.chapters.search.results import (
    best_trials,
    rerun_command,
    search_results,
    seed_comparison,
    spent,
)
from quarterhour.analysis.runs import Run

SHOWN = 10
SHOWN_COMMANDS = 3


def states(run: Run) -> pd.DataFrame:
    """How many trials of the search proper ended how."""
    statuses = search_results(run).searched["status"]
    return statuses.value_counts().rename("trials").rename_axis("state").to_frame()


def cost(run: Run) -> pd.DataFrame:
    """What the search has spent, fresh seeds counted and adopted results not."""
    amounts = spent(search_results(run)).rename({"step": "steps", "seconds": "device-seconds"})
    return amounts.rename("spent").rename_axis("of").to_frame()


def best(run: Run) -> pd.DataFrame:
    """The best complete trials by the first objective, and the best of the six, at equal budget.

    Settings that are the same for all are left out.
    """
    return best_trials(search_results(run), SHOWN).rename_axis("trial")


def commands(run: Run) -> pd.DataFrame:
    """The best trials as commands that train them again, each in a run folder of its own.

    Run beside the search's folder, such a command adopts the result; with another --runs it trains.
    """
    folders = [
        Path(folder) for folder in search_results(run).ranked()["folder"].head(SHOWN_COMMANDS)
    ]
    shown = [rerun_command(run, folder) for folder in folders]
    names = pd.Index([folder.name for folder in folders], name="trial")
    return pd.DataFrame({"command": shown}, index=names, dtype=str)


def against_the_six(run: Run) -> pd.DataFrame:
    """The best trials against the best of the six, each trained again with n fresh seeds.

    The difference has a Welch interval, 95 % for all together (Bonferroni); where it holds 0, the
    difference is within seed noise.
    """
    compared = seed_comparison(search_results(run))
    if compared.empty:
        return compared
    return compared.fillna({"verdict": "the best of the six"}).set_index("trial")
