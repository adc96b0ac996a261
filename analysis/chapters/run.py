"""What a run is, how its trials ended, and what their models write."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from quarterhour.analysis.chapters.paper.comparison import unfinished_notes
from quarterhour.analysis.chapters.paper.published import differences
from quarterhour.analysis.chapters.search.results import search_results
from quarterhour.analysis.runs import Run

SHOWN_SAMPLES = 6
_ENDED = ["COMPLETE", "FAILED", "PRUNED", "INFEASIBLE"]
_TRIAL = ["configuration", "seed"]
_MEASURES = [
    "tokens",
    "seconds",
    "train_loss",
    "eval_loss",
    "heldout_loss",
    "heldout_bits_per_byte",
]


def remarks(run: Run) -> list[str]:
    """What a reader has to know before any figure of the run."""
    said = [f"Trials: {_counted(run.trials['status'])}."]
    if not run.trials["status"].isin(_ENDED).to_numpy().all():
        said.append("The run is not finished: figures that are not there are missing or –.")
    if not run.experiment.get("search"):
        said += [f"{name}: {note}." for name, note in unfinished_notes(run).items()]
    if run.trials.duplicated("configuration").sum() == 0:
        said.append("One seed: a difference between configurations may be seed noise alone.")
    if run.rows.reindex(columns=["trials_on_device"]).gt(1).to_numpy().any():
        said.append("Trials shared the device: seconds and steps per second are those of sharing.")
    if kinds := differences(run):
        said.append(f"Not comparable with the study: other {', '.join(kinds)}.")
    return said


def provenance(run: Run) -> pd.DataFrame:
    """Hardware, versions, commit, data and protocol that the figures of this run come from."""
    experiment: dict[str, Any] = run.experiment
    facts = {
        "run folder": run.folder,
        "kind": experiment.get("kind"),
        "created": experiment.get("created"),
        "profile": experiment.get("profile"),
        "protocol": experiment["protocol"],
        "precision": _distinct(run, "precision"),
        "steps": _distinct(run, "budget.steps"),
        "seeds": ", ".join(map(str, sorted(run.trials["seed"].unique()))),
        "trials": _counted(run.trials["status"]),
        **{name: _listed(value) for name, value in (experiment.get("search") or {}).items()},
        "hardware": _listed(experiment.get("hardware")),
        "resources": _listed(experiment.get("resources")),
        "versions": _listed(experiment.get("versions")),
        "git commit": experiment.get("git_commit"),
        **{f"data: {name}": value for name, value in experiment["data"].items()},
        "numerics version": experiment.get("numerics_version"),
        "differences from the study": "; ".join(differences(run).values()) or "none",
    }
    told = {
        fact.replace("_", " "): "missing" if value is None else _with_thousands(value)
        for fact, value in facts.items()
    }
    return pd.DataFrame({"value": told}).rename_axis("fact")


def trials(run: Run) -> pd.DataFrame:
    """Every trial: how it ended, how far it got, and the last known value of each measure."""
    columns = [*_TRIAL, "origin", "status", "steps_done", "parameters", "reason"]
    table = run.trials.reindex(columns=columns)
    if run.trials["origin"].isna().to_numpy().all():
        table = table.drop(columns="origin")
    if not run.rows.empty:
        last = run.rows.groupby(_TRIAL, as_index=False).last()
        table = table.merge(last.reindex(columns=[*_TRIAL, *_MEASURES]), how="left", on=_TRIAL)
    return table.assign(reason=table.pop("reason")).set_index(_TRIAL)


def samples(run: Run) -> pd.DataFrame:
    """What the models make of the same prompts after their last evaluation, side by side.

    Of each configuration the first seed; of a search the best trials.
    """
    chosen = run.trials.loc[run.trials["folder"].notna()].drop_duplicates("configuration")
    if run.experiment.get("search"):
        ranked = search_results(run).ranked()["configuration"]
        chosen = chosen.set_index("configuration", drop=False).loc[ranked]
    written = {
        f"{trial['configuration']} (step {texts[0]['step']})": {
            text["prompt"]: text["continuation"]
            for text in texts
            if text["step"] == texts[0]["step"]
        }
        for trial in chosen.head(SHOWN_SAMPLES).to_dict("records")
        if (texts := _read_samples(Path(trial["folder"])))
    }
    return pd.DataFrame(written).rename_axis("prompt")


def last_measures(runs: Sequence[Run]) -> pd.DataFrame:
    """The trials of all runs below each other, with the data that each was trained on."""
    tables = {run.folder.name: trials(run) for run in runs}
    together = pd.concat(tables, names=["run", *_TRIAL])
    fingerprints = {run.folder.name: run.experiment["data"].get("fingerprint") for run in runs}
    return together.assign(data=together.index.get_level_values("run").map(fingerprints))


def _read_samples(folder: Path) -> list[dict[str, Any]]:
    file = folder / "samples.json"
    return json.loads(file.read_bytes()) if file.is_file() else []


def _distinct(run: Run, column: str) -> str | None:
    """The values that the begun trials have, or None if none has begun."""
    values: Any = run.trials[column].dropna().unique() if column in run.trials else []
    few = [f"{value:g}" if isinstance(value, float) else str(value) for value in sorted(values)]
    if len(few) > 3:
        few = [few[0], "…", few[-1]]
    return ", ".join(few) or None


def _counted(statuses: Any) -> str:
    return ", ".join(f"{count} {status}" for status, count in statuses.value_counts().items())


def _listed(value: Any) -> str | None:
    """A mapping of experiment.json in words."""
    if not isinstance(value, dict):
        return None if value is None else str(value)
    parts = {name.replace("_", " "): part for name, part in value.items() if part is not None}
    return ", ".join(f"{name} {_with_thousands(part)}" for name, part in parts.items())


def _with_thousands(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
