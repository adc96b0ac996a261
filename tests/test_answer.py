"""--json: one strict object on stdout, everything else on stderr, whatever happens."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import write_grid, write_search
from test_cli import Quarterhour, quarterhour  # noqa: F401
from tiny import write_corpus

from quarterhour.tune.commands.answer import SCHEMA, _strict
from quarterhour.tune.self_test import Check

OLD = Path(__file__).parent / "data/run_of_version_0.1/runs"
HEAD = {"schema", "command", "exit_code", "error"}
SEARCH = {"run", "objectives", "best", "seed_comparison", "spent", "trials"}
TRIAL = {
    *("folder", "key", "name", "seed", "data_fingerprint", "origin", "config", "status"),
    *("parameters", "metrics", "reason", "diverged", "adopted_from"),
}
TINY = (
    "run baseline --corpus tiny.jsonl --budget steps:4 --name mine --precision fp32"
    " --set data.batch_size=2 --set data.seq_len=16 --cpus-per-trial 1 --json"
)


def refuse_constant(text: str) -> None:
    raise AssertionError(f"{text} is not JSON")


def told(output: str) -> dict[str, Any]:
    """The one object, as a strict reader has it."""
    value = json.loads(output, parse_constant=refuse_constant)
    assert value["schema"] == SCHEMA == 1
    return value


def test_every_command_has_its_form(
    quarterhour: Quarterhour,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    write_corpus(tmp_path / "tiny.jsonl")
    write_search(tmp_path / "search", 8, fresh=True)
    write_grid(tmp_path / "grid", seeds=2)
    checks = [Check(name="python", found="3.11"), Check(name="golden", found="1", passed=False)]
    monkeypatch.setattr("quarterhour.tune.self_test.run_checks", lambda _: checks)
    monkeypatch.setattr("quarterhour.tune.trained.write_for_transformers", lambda *_: None)
    trial = "runs/mine/baseline/seed0"
    grid = f"grid --configurations {trial} --name all --precision fp32 --cpus-per-trial 1 --json"
    forms = {
        TINY: {"run", "trials"},
        grid: {"run", "trials", "tables"},
        f"export {trial} model --json": {"trial", "folder"},
        "status search --json": SEARCH | {"process", "elapsed_seconds"},
        "report grid --output page --json": {"runs", "page"},
        "verify grid --json": {"run", "counts", "settings", "cells", "claims"},
        "doctor --json": {"checks"},
    }
    for command, names in forms.items():
        code, output, _ = quarterhour(*command.split())
        value = told(output)
        assert value.keys() == HEAD | names, command
        assert (value["command"], value["exit_code"]) == (command.split()[0], code)
        assert value["error"] is None
        for one in value.get("trials", []):
            assert one.keys() == TRIAL
    assert value["checks"][1] == {"name": "golden", "found": "1", "limit": "", "passed": False}
    assert code == 1


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("run nosuch --json", 2),
        ("run --json", 2),
        ("grid --no-such-option --json", 2),
        ("verify nowhere --json", 2),
        ("status nowhere --json", 2),
        ("dashboard runs --json", 2),  # it has no such option
        ("export nowhere model --json", 2),
        ("--json", 2),
        ("report nowhere --output= --json", 2),
        ("enqueue nowhere optim.beta1=0.9 --json", 2),
    ],
)
def test_an_error_is_an_object_too(
    command: str,
    code: int,
    quarterhour: Quarterhour,  # noqa: F811
):
    ended, output, errors = quarterhour(*command.split())
    value = told(output)
    assert (ended, value["exit_code"]) == (code, code)
    assert value.keys() == HEAD
    assert errors == f"quarterhour: {value['error']}\n"


@given(st.recursive(st.floats() | st.text() | st.none(), st.lists))
def test_no_number_breaks_strict_json(value: Any):
    strict = _strict(value)
    text = json.dumps(strict, allow_nan=False)
    assert json.loads(text) == strict


def test_a_number_that_is_not_finite_is_a_text():
    assert _strict({"a": (math.nan, math.inf), "b": [-math.inf, 1.5, True]}) == {
        "a": ["NaN", "Infinity"],
        "b": ["-Infinity", 1.5, True],
    }


def test_a_diverged_trial_is_told_with_its_reason(
    quarterhour: Quarterhour,  # noqa: F811
    tmp_path: Path,
):
    write_corpus(tmp_path / "tiny.jsonl")
    code, output, _ = quarterhour(*TINY.split(), "--set", "optim.learning_rate=1e30")
    (trial,) = told(output)["trials"]
    assert (code, trial["status"], trial["diverged"]) == (1, "FAILED", True)
    assert "NaN" in trial["metrics"].values()


def test_runs_of_an_older_version_and_damaged_trials_have_the_same_form(
    quarterhour: Quarterhour,  # noqa: F811
    tmp_path: Path,
):
    shutil.copytree(OLD, tmp_path / "runs")
    (tmp_path / "runs/search/0001/result.json").write_text("{")
    code, output, errors = quarterhour("status", "runs/search", "--json")
    value = told(output)
    assert code == 0
    assert "0001/result.json cannot be read" in errors
    assert all(one.keys() == TRIAL for one in value["trials"])
    damaged = value["trials"][1]
    assert (damaged["status"], damaged["metrics"]) == ("FAILED", None)
    assert damaged["reason"].startswith("result.json cannot be read")
    for command in ("verify runs/grid", "report runs/grid --output page"):
        assert told(quarterhour(*command.split(), "--json")[1])["error"] is None


def test_a_reader_that_goes_away_ends_it_without_a_traceback(tmp_path: Path):
    write_grid(tmp_path / "grid")
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "quarterhour", "verify", "grid", "--json"]
    done = subprocess.run(command, cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == 1
    assert done.stderr.endswith("quarterhour: [Errno 32] Broken pipe\n")
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_the_page_for_agents_is_short_and_names_every_field():
    page = (Path(__file__).parents[1] / "tune/AGENTS.md").read_text()
    assert len(page.splitlines()) <= 60
    names = {*HEAD, *SEARCH, "process", "elapsed_seconds", "stopped_because", "tables", "checks"}
    names |= {"runs", "page", "counts", "settings", "cells", "claims", "trial", "against_best"}
    assert not [name for name in names if f"`{name}`" not in page]
