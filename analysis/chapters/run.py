"""What a run is, and how its trials ended."""

from pathlib import Path
from typing import Any

import pandas as pd

from quarterhour.analysis.chapters.paper.comparison import unfinished_notes
from quarterhour.analysis.chapters.paper.published import STUDY, differences, has_studied
from quarterhour.analysis.runs import Run
from quarterhour.analysis.sections import Section
from quarterhour.tune import run_folder
from quarterhour.tune.run_folder import TRIAL, Status, setting_place, trial_label

_MEASURES = [
    *("tokens", "seconds", run_folder.TRAIN_LOSS, run_folder.EVAL_LOSS),
    *(run_folder.HELDOUT_LOSS, run_folder.EMA_HELDOUT_LOSS, run_folder.HELDOUT_BITS_PER_BYTE),
]


def headline(run: Run) -> str:
    """What was run on what, in a line, and what it is compared with."""
    experiment, data = run.experiment, run.experiment["data"]
    facts = [
        *(experiment.get(name) for name in ("kind", "profile", "created")),
        *(data.get(name) for name in ("corpus", "tokenizer")),
        *(_distinct(run, "precision"), (experiment.get("hardware") or {}).get("name")),
    ]
    kind, profile, created, corpus, tokenizer, precision, hardware = (
        "missing" if fact is None else str(fact) for fact in facts
    )
    compared = f" · study: {STUDY}" if has_studied(run) else ""
    return (
        f"{kind}, profile {profile} · data {corpus}, tokenizer {tokenizer} · {precision} on"
        f" {hardware} · begun {created[:10]}{compared}"
    )


def remarks(run: Run) -> list[str]:
    """What a reader has to know before any figure of the run."""
    said: list[str] = []
    if not all(Status(status).ended for status in run.trials["status"]):
        said.append(
            f"The run is not finished: {_counted(run)}. The command that began it goes on, and"
            " fills what is missing."
        )
    elif {*run.trials["status"]} != {Status.COMPLETE}:
        said.append(f"Trials: {_counted(run)}.")
    if not run.is_search:
        said += [f"{name}: {note}." for name, note in unfinished_notes(run).items()]
    if lost := run.experiment["data"].get("heldout_lost_share"):
        said.append(
            f"The tokenizer loses {100 * lost:.2g} % of the held-out text: no bits per byte."
        )
    if copies := run.experiment["data"].get("heldout_copies"):
        said.append(f"Held-out documents that are training documents too: {copies}.")
    return said


def settings(run: Run) -> pd.DataFrame:
    """The settings in which the configurations differ, in a run of such."""
    if run.is_search:
        return pd.DataFrame()
    trials: Any = run.trials.drop_duplicates("configuration").set_index("configuration")
    paths = [name for name in trials if "." in str(name) and trials[name].nunique(dropna=True) > 1]
    return trials.loc[:, sorted(paths, key=setting_place)]


def provenance(run: Run) -> pd.DataFrame:
    """Hardware, versions, commit, data and protocol that the figures of this run come from."""
    experiment: dict[str, Any] = run.experiment
    facts = {
        "run folder": run.folder.name,
        **{name: experiment.get(name) for name in ("kind", "created", "profile", "protocol")},
        "precision": _distinct(run, "precision"),
        "steps": _distinct(run, "budget.steps"),
        "seeds": ", ".join(map(str, sorted(run.trials["seed"].unique()))),
        "trials": _counted(run),
        **{
            name: _listed(value)
            for name, value in (experiment.get("search") or {}).items()
            if value is not None
        },
        "hardware": _of_trials(run, "hardware"),
        "resources": _listed(experiment.get("resources")),
        "versions": _of_trials(run, "versions"),
        "git commit": _of_trials(run, "git_commit"),
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
    """Every trial: how it ended, how far it got, and the last known value of each measure.

    An adopted trial was trained in the folder that it is adopted from.
    """
    columns = [*TRIAL, "origin", "adopted_from", "status", "steps_done", "parameters", "reason"]
    table = run.trials.reindex(columns=columns)
    told = [name for name in ("origin", "adopted_from") if table[name].isna().to_numpy().all()]
    table = table.drop(columns=told)
    if not run.rows.empty:
        last = run.rows.groupby(TRIAL, as_index=False).last()
        known = [name for name in _MEASURES if name != run_folder.EMA_HELDOUT_LOSS or name in last]
        table = table.merge(last.reindex(columns=[*TRIAL, *known]), how="left", on=TRIAL)
    return table.assign(reason=table.pop("reason")).set_index(TRIAL)


def _of_trials(run: Run, what: str) -> str | None:
    """Where the trials were trained; where they differ, each place with the trials of it."""
    trials_at: dict[str | None, list[str]] = {}
    for trial in run.trials.to_dict("records"):
        for place in trial["provenance"]:
            label = trial_label(trial["configuration"], Path(trial["folder"]), trial["origin"])
            trials_at.setdefault(_listed(place.get(what)), []).append(label)
    if not trials_at:
        return _listed(run.experiment.get(what))
    if len(trials_at) == 1:
        return next(iter(trials_at))
    return "; ".join(f"{place or 'missing'} ({_some(of)})" for place, of in trials_at.items())


def _some(labels: list[str]) -> str:
    """A few of them, and how many more."""
    more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
    return f"{', '.join(labels[:3])}{more}"


def _distinct(run: Run, column: str) -> str | None:
    """The values that the begun trials have; None if none has begun."""
    values: Any = run.trials[column].dropna().unique() if column in run.trials else []
    few = [f"{value:g}" if isinstance(value, float) else str(value) for value in sorted(values)]
    if len(few) > 3:
        few = [few[0], "…", few[-1]]
    return ", ".join(few) or None


def _counted(run: Run) -> str:
    """How the trials ended, and how many of them a search has trained with fresh seeds."""
    fresh = run.trials["seed"] != run.experiment["search"]["seed"] if run.is_search else None
    if fresh is None or not fresh.any():
        return _by_status(run.trials)
    own, again = _by_status(run.trials.loc[~fresh]), _by_status(run.trials.loc[fresh])
    return f"{own}; with fresh seeds {again}"


def _by_status(trials: pd.DataFrame) -> str:
    counts = trials["status"].value_counts().items()
    return ", ".join(f"{count} {status}" for status, count in counts)


def _listed(value: Any) -> str | None:
    """A mapping of experiment.json in words."""
    if not isinstance(value, dict):
        return None if value is None else str(value)
    parts = {name.replace("_", " "): part for name, part in value.items() if part is not None}
    return ", ".join(f"{name} {_with_thousands(part)}" for name, part in parts.items())


def _with_thousands(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


SECTION = Section[Run](
    name="run",
    title="Trials and provenance",
    folded=True,
    tables={
        "settings": ("Settings", settings),
        "trials": ("Trials", trials),
        "provenance": ("Provenance", provenance),
    },
)
