"""Reads a run folder: the experiment, its trials, and the rows they have written so far."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from quarterhour.tune.foreign import MEND, DamagedError, plain, tell
from quarterhour.tune.run_folder import CONFIG, EXPERIMENT, TRIAL, Row, Status
from quarterhour.tune.run_reader import (
    check_names,
    owner,
    provenance,
    read_config,
    read_ending,
    read_experiment,
    read_rows,
    run_of,
    trial_folders,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A run folder, read; equal only to itself, so that what is computed from it can be cached.

    `trials` has one row for each configuration and seed, in the experiment's order: `status` (a
    `Status`; WAITING trials are listed in experiment.json and have not begun), `reason`,
    `diverged`, `parameters`, `key`, `adopted_from`, `steps_done` (optimizer updates in its last
    row), `origin` (in a search: who asked for it), `provenance` (as `run_reader.provenance` has
    it), `folder` (None while WAITING) and its configuration under dotted names
    ("optim.learning_rate"). In a search a trial's number stands as `configuration`.
    `beside` are the other runs of a report.
    `rows` has every row of every metrics.jsonl, with its `configuration` and `seed`; it has no
    columns while no trial has written a row.
    """

    folder: Path
    experiment: dict[str, Any]
    trials: pd.DataFrame
    rows: pd.DataFrame
    beside: tuple["Run", ...] = ()

    @property
    def is_search(self) -> bool:
        """Whether its trials are those of a search, and not of named configurations."""
        return bool(self.experiment.get("search"))


def load_run(folder: Path) -> Run:
    """Reads `folder`, finished or still being written.

    A trial with a damaged file counts as FAILED, without rows, and the user is told. A cut-off last
    line of a metrics.jsonl is left out. Raises ValueError, one line, where the folder is missing,
    is no run folder or has no trial, and where its experiment.json cannot be read.
    """
    experiment = _read_experiment(folder)
    trials = {
        (name, seed): _waiting(name, seed)
        for name in map(plain, experiment["configurations"])
        for seed in (experiment.get("seeds_of") or {}).get(name, experiment["seeds"])
    }
    rows: list[Row] = []
    row_of: list[tuple[str, int]] = []
    unended = Status.RUNNING if owner(folder) else Status.STOPPED
    for trial_folder in trial_folders(folder):
        try:
            trial, trial_rows = _read_trial(trial_folder, experiment, unended)
        except DamagedError as error:
            tell(str(error))
            trial, trial_rows = _damaged(trial_folder, experiment, error.reason), []
        trial |= {name: plain(value) for name, value in trial.items() if type(value) is str}
        if trial["configuration"] not in map(plain, trial_folder.parts[-2:]):
            continue  # somebody's copy
        key = trial["configuration"], trial["seed"]
        if key in trials and trials[key]["folder"]:
            raise ValueError(
                f"{trial_folder} and {trials[key]['folder']} are the same trial: move one of"
                " them out of the run folder"
            )
        trials[key] = trial
        rows += trial_rows
        row_of += [key] * len(trial_rows)
    if not trials:
        raise ValueError(f"{folder} has no trial yet: its experiment.json lists none; start one")
    return Run(
        folder=Path(os.path.abspath(folder)),  # has a name where `folder` is "."; keeps links
        experiment=experiment,
        trials=pd.DataFrame(list(trials.values())),
        rows=_rows_frame(rows, row_of),
    )


def typed_path(folder: Path) -> str:
    """A trial's folder as somebody types it in the working directory; elsewhere, from its run's
    name on."""
    folder, here = folder.absolute(), Path.cwd()
    run = run_of(folder) or folder
    return str(folder.relative_to(here if folder.is_relative_to(here) else run.parent))


def last_evaluation(steps: int, eval_every: int) -> int:
    """The step index (from 0) of the reference's last evaluation: it has none after the last step.

    2,000 steps evaluated every 400 give 1,600.
    """
    return (steps - 1) // eval_every * eval_every


def dotted(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration as config.json has it, under dotted names ("optim.learning_rate")."""
    flat: dict[str, Any] = {}
    for section, value in config.items():
        fields = value if isinstance(value, dict) else {}
        flat |= {f"{section}.{field}": leaf for field, leaf in fields.items()} or {section: value}
    return flat


def _read_experiment(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ValueError(
            f"run folder {folder} does not exist: give one that `quarterhour grid` or"
            " `quarterhour run` has written, such as runs/grid"
        )
    experiment = read_experiment(folder)
    if not experiment:
        raise ValueError(
            f"{folder} is not a run folder, for it has no {EXPERIMENT}: give one that"
            " `quarterhour grid` or `quarterhour run` has written, such as runs/grid"
        )
    data = ("data.corpus", "data.tokenizer", "data.train_documents")
    check_names(folder, experiment, "configurations", "seeds", "protocol", *data)
    if experiment.get("search"):
        check_names(folder, experiment, "search.objectives", "resolved", "profile")
    if rule := experiment.get("promotion"):
        stages = len(rule["budgets"])
        if stages < 2 or (len(rule["keep"]), len(rule["seeds"])) != (stages - 1, stages):
            fault = " cannot be read (its promotion has another number of stages in each list)"
            raise DamagedError(folder / EXPERIMENT, fault, MEND)
    return experiment


def _read_trial(
    folder: Path, experiment: dict[str, Any], unended: Status
) -> tuple[dict[str, Any], list[Row]]:
    config = read_config(folder)
    known = dotted(next(iter((experiment.get("resolved") or {}).values()), {}))
    for name, value in dotted(config["config"]).items():
        as_text = isinstance(value, str), isinstance(known.get(name, value), str)
        if isinstance(value, dict | list) or len(set(as_text)) > 1:
            fault = f" holds no configuration ({name} is {str(value)[:40]!r})"
            raise DamagedError(folder / CONFIG, fault, MEND)
    result = read_ending(folder) or {"status": unended}
    waiting = _waiting(config["name"], config["seed"])
    rows = read_rows(folder)
    trial = (
        dotted(config["config"])
        | waiting
        | {field: value for field, value in result.items() if field != "metrics"}
        | {"key": config["key"], "origin": config.get("origin")}
        | {"steps_done": rows[-1]["step"] if rows else 0, "folder": folder}
        | {"provenance": provenance(folder)}
    )
    return trial, rows


def _damaged(folder: Path, experiment: dict[str, Any], reason: str) -> dict[str, Any]:
    """A trial that cannot be read: what its folder and its run say of it."""
    seed = folder.name.removeprefix("seed")
    name, seed = (
        (folder.name, experiment["search"]["seed"])
        if seed == folder.name
        else (folder.parent.name, int(seed))
    )
    config = (experiment.get("resolved") or {}).get(name, {})
    told = {"status": Status.FAILED, "reason": reason, "folder": folder}
    return dotted(config) | _waiting(name, seed) | told


def _rows_frame(rows: list[Row], row_of: list[tuple[str, int]]) -> pd.DataFrame:
    """The rows with their trials' configuration and seed before them."""
    frame = pd.DataFrame(rows)
    if rows:
        for place, name in enumerate(TRIAL):
            frame.insert(place, name, [key[place] for key in row_of])
    return frame


def _waiting(configuration: str, seed: int) -> dict[str, Any]:
    return {
        "configuration": configuration,
        "seed": seed,
        "status": Status.WAITING,
        "reason": None,
        "diverged": False,
        "steps_done": 0,
        "origin": None,
        "key": None,
        "adopted_from": None,
        "provenance": [],
        "folder": None,
    }
