"""Reads a run folder: the experiment, its trials, and the rows they have written so far."""

import json
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A run folder, read; equal only to itself, so that what is computed from it can be cached.

    `trials` has one row for each configuration and seed, in the experiment's order: `status`
    (WAITING: listed in experiment.json but not begun; RUNNING: begun, no result yet; COMPLETE;
    FAILED; in a search also PRUNED and INFEASIBLE), `reason`, `diverged`, `parameters`, `key`,
    `adopted_from`, `steps_done` (optimizer updates in its last row), `origin` (in a search: who
    asked for it), `folder` (None while WAITING) and its configuration under dotted names
    ("optim.learning_rate"). In a search a trial's number stands as `configuration`.
    `rows` has every row of every metrics.jsonl, with its `configuration` and `seed`; it has no
    columns while no trial has written a row.
    """

    folder: Path
    experiment: dict[str, Any]
    trials: pd.DataFrame
    rows: pd.DataFrame


def load_run(folder: Path) -> Run:
    """Reads `folder`, finished or still being written.

    Raises ValueError, one line, where the folder is missing, is no run folder or has no trial, and
    where one of its files cannot be read. A cut-off last line of a metrics.jsonl is left out.
    """
    experiment = _read_experiment(folder)
    trials = {
        (name, seed): _waiting(name, seed)
        for name in experiment["configurations"]
        for seed in experiment["seeds"]
    }
    rows: list[dict[str, Any]] = []
    row_of: list[tuple[str, int]] = []
    for config_file in sorted(folder.glob("**/config.json")):
        if any(part.startswith(".") for part in config_file.relative_to(folder).parts):
            continue  # a folder that is being written
        trial, trial_rows = _read_trial(config_file.parent)
        key = trial["configuration"], trial["seed"]
        if key in trials and trials[key]["folder"]:
            raise ValueError(
                f"{config_file.parent} and {trials[key]['folder']} are the same trial: move one of"
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
    file = folder / "experiment.json"
    if not file.is_file():
        raise ValueError(
            f"{folder} is not a run folder, for it has no experiment.json: give one that"
            " `quarterhour grid` or `quarterhour run` has written, such as runs/grid"
        )
    return _read_json(file)


def _read_trial(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    config = _read_json(folder / "config.json")
    result_file = folder / "result.json"
    result = _read_json(result_file) if result_file.is_file() else {"status": "RUNNING"}
    waiting = _waiting(config["name"], config["seed"])
    rows = _read_rows(folder / "metrics.jsonl")
    trial = (
        dotted(config["config"])
        | waiting
        | {field: value for field, value in result.items() if field != "metrics"}
        | {"key": config["key"], "origin": config.get("origin")}
        | {"steps_done": rows[-1]["step"] if rows else 0, "folder": str(folder)}
    )
    return trial, rows


def _rows_frame(rows: list[dict[str, Any]], row_of: list[tuple[str, int]]) -> pd.DataFrame:
    """The rows with their trials' configuration and seed before them."""
    frame = pd.DataFrame(rows)
    if rows:
        for place, name in enumerate(("configuration", "seed")):
            frame.insert(place, name, [key[place] for key in row_of])
    return frame


def _waiting(configuration: str, seed: int) -> dict[str, Any]:
    return {
        "configuration": configuration,
        "seed": seed,
        "status": "WAITING",
        "reason": None,
        "diverged": False,
        "steps_done": 0,
        "origin": None,
        "folder": None,
    }


def _read_rows(file: Path) -> list[dict[str, Any]]:
    lines = file.read_bytes().splitlines() if file.is_file() else []
    try:
        rows = json.loads(b"[" + b",".join(lines) + b"]")  # one call for all is much faster
        steps = [0, *(row["step"] for row in rows)]
        if len(rows) == len(lines) and all(a < b for a, b in pairwise(steps)):
            return rows
    except (ValueError, TypeError, KeyError):
        pass
    return _read_lines(file, lines)


def _read_lines(file: Path, lines: list[bytes]) -> list[dict[str, Any]]:
    """The rows line by line, to leave out a last one that was cut off and to name a broken one."""
    rows: list[dict[str, Any]] = []
    last = 0
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            step = row["step"]
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                break
            raise ValueError(
                f"{file}, line {number} is no row ({line[:40]!r}): every line but the last must be"
                " a JSON object with a step; repair or delete the line"
            ) from error
        if step <= last:
            raise ValueError(
                f"{file}, line {number} has step {step} after step {last}: steps must rise;"
                " delete the lines that were written twice"
            )
        rows.append(row)
        last = step
    return rows


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{file} cannot be read ({error}): it must hold one JSON object; restore it, or delete"
            " it and start the run again"
        ) from error
