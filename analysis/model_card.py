"""The model card of an exported trial: what it is, how good it is, and how to make it again."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from quarterhour.analysis import formats
from quarterhour.analysis.chapters.paper.published import SIX, differences
from quarterhour.analysis.measures import final_rows
from quarterhour.analysis.publication import publishable, published_text
from quarterhour.analysis.runs import Run
from quarterhour.analysis.statistics import Interval, mean_interval
from quarterhour.tune.run_folder import HELDOUT_BITS_PER_BYTE, HELDOUT_LOSS, TRIAL, Row

_HUB_NAME = r"(\w[\w.-]*/[\w.-]+)(:[\w.-]+)?"
_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- quarterhour
{datasets}# license: the licence is yours to choose
---

# {name}

A small decoder language model, trained from scratch by quarterhour: it continues texts like those
that it was trained on. The licence is yours to choose: name it in the header, as `license: …`.

{facts}
```python
from transformers import pipeline

pipeline("text-generation", model="PATH_OF_THIS_FOLDER")("The history of")
```

## What differs from the study

{differences}

## The command that makes it again

```console
$ {command}
```
"""


def model_card(
    run: Run, configuration: str, settings: Mapping[str, Any], row: Row, command: str
) -> str:
    """A README.md as the Hugging Face hub takes it, without paths and names of machines.

    It is of a trial with these `settings`, by dotted path; `row` is of when it was exported, and
    `command` trains it again.
    """
    run = publishable(run)
    is_trial = (run.trials[TRIAL] == [configuration, settings["seed"]]).all(axis="columns")
    known = configuration if configuration in SIX else "baseline"
    alone = replace(run, trials=run.trials.loc[is_trial].assign(configuration=known))
    dataset = _hub_dataset(run.experiment["data"])
    facts = _facts(run.experiment["data"], settings, row) | {
        "bits per byte by seeds": _seeds(run, configuration)
    }
    reasons = [f"- {_code(reason)}" for reason in differences(alone, known).values()]
    return _CARD.format(
        name=_code(f"{run.folder.name} {configuration}"),
        datasets=f"datasets:\n- {dataset}\n" if dataset else "",
        facts=formats.markdown(
            pd.DataFrame({"fact": facts.keys(), "value": facts.values()}),
            [],
            ["Bits per byte are of documents that no training batch contains."],
        ),
        differences="\n".join(reasons) or "Nothing.",
        command=" ".join(published_text(command).replace("`", "'").split()),
    )


def seed_interval(run: Run, configuration: str) -> Interval:
    """Held-out bits per byte over the configuration's complete seeds, with its 95 % interval.

    In a search the seed by which it was chosen does not count: that figure flatters.
    """
    rows = final_rows(run, [HELDOUT_BITS_PER_BYTE]).dropna()
    rows = rows.loc[rows["configuration"] == configuration]
    if run.is_search:
        rows = rows.loc[rows["seed"] != run.experiment["search"]["seed"]]
    return mean_interval(rows[HELDOUT_BITS_PER_BYTE].to_list())


def _facts(data: Mapping[str, Any], settings: Mapping[str, Any], row: Row) -> dict[str, str]:
    tokens = row["step"] * settings["data.batch_size"] * settings["data.seq_len"]
    model = {path: settings[f"model.{path}"] for path in ("n_layers", "d_model", "n_heads", "d_ff")}
    return {
        "model": ", ".join(f"{name} {value}" for name, value in model.items()),
        "positions": settings["model.positions"],
        "window": f"{settings['data.seq_len']} tokens",
        "data": f"{_code(data['corpus'])}, {data['train_documents']} documents",
        "tokenizer": f"{_code(data['tokenizer'])}, {settings['model.vocab_size']:,} entries",
        "budget": f"{row['step']:,} of {settings['budget.steps']:,} steps, {tokens:,} tokens",
        "trained in": f"{settings['precision']}, seed {settings['seed']}",
        "held-out loss": _figure(row.get(HELDOUT_LOSS)),
        "held-out bits per byte": _figure(row.get(HELDOUT_BITS_PER_BYTE)),
    }


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"


def _seeds(run: Run, configuration: str) -> str:
    """The mean over seeds, in words."""
    n, mean, low, high = seed_interval(run, configuration)
    if not n:
        return "no further seed has been trained: its own figure may be luck" * run.is_search or "–"
    interval = f", 95 % interval {low:.4f} to {high:.4f}" if n > 1 else ": no interval"
    return f"{mean:.4f}, n = {n}{interval}"


def _hub_dataset(data: Mapping[str, Any]) -> str | None:
    """The hub's name of a run's data set; None where the corpus is another."""
    found = re.fullmatch(_HUB_NAME, data["corpus"])
    return found[1] if found and not data.get("corpus_files") else None


def _code(value: Any) -> str:
    """A text of anybody's as code in markdown, which nothing in it ends."""
    return "`" + " ".join(str(value).replace("`", "'").split()) + "`"
