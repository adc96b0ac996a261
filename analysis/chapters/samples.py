"""What the models of a run write."""

import pandas as pd

from quarterhour.analysis.chapters.search.results import search_results
from quarterhour.analysis.runs import Run
from quarterhour.analysis.sections import Section
from quarterhour.tune.foreign import plain
from quarterhour.tune.run_reader import read_samples

SHOWN = 6


def samples(run: Run) -> pd.DataFrame:
    """What the models make of the same prompts after their last evaluation, side by side.

    They are the first seed of each configuration, and of a search the best trials.
    """
    chosen = run.trials.loc[run.trials["folder"].notna()].drop_duplicates("configuration")
    if run.is_search:
        ranked = search_results(run).ranked()["configuration"]
        chosen = chosen.set_index("configuration", drop=False).loc[ranked]
    written = {
        f"{trial['configuration']} (step {texts[0]['step']})": {
            plain(text["prompt"]): plain(text["continuation"])
            for text in texts
            if text["step"] == texts[0]["step"]
        }
        for trial in chosen.head(SHOWN).to_dict("records")
        if (texts := read_samples(trial["folder"]))
    }
    return pd.DataFrame(written).rename_axis("prompt")


SECTION = Section[Run](
    name="samples", title="Text samples", tables={"samples": ("Text samples", samples)}
)
