"""Several runs, the trials of each below those of the one before."""

from collections.abc import Sequence

import pandas as pd

from quarterhour.analysis.chapters.run import trials
from quarterhour.analysis.runs import Run
from quarterhour.analysis.sections import Section
from quarterhour.tune.run_folder import TRIAL


def last_measures(runs: Sequence[Run]) -> pd.DataFrame:
    """The trials of all runs below each other, with the data that each was trained on."""
    tables = {run.folder.name: trials(run) for run in runs}
    together = pd.concat(tables, names=["run", *TRIAL])
    fingerprints = {run.folder.name: run.experiment["data"].get("fingerprint") for run in runs}
    return together.assign(data=together.index.get_level_values("run").map(fingerprints))


SECTION = Section[Sequence[Run]](
    name="runs",
    title="The runs side by side",
    applies=lambda runs: len(runs) > 1,
    tables={"runs": ("Trials of all runs", last_measures)},
)
