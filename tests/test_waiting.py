"""`enqueue --wait` as an agent uses it, beside a search that runs in another process."""

import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from made_up import write_search
from searches import Driver, diverge
from test_search_cli import folder, template  # noqa: F401
from test_verify import quarterhour  # noqa: F401

from quarterhour.analysis.chapters.search.results import against_best, search_results
from quarterhour.analysis.runs import load_run
from quarterhour.analysis.statistics import pooled_difference
from quarterhour.tune.search.queue import refuse, waiting_points
from quarterhour.tune.search.settings import read_search

Quarterhour = Callable[..., tuple[int, str, str]]
POINT = ("enqueue", "runs/search", "optim.learning_rate=2e-3", "--wait", "--json")


@contextmanager
def searching(folder: Path, act: Callable[[], object]) -> Iterator[None]:  # noqa: F811
    """A search that runs: once a point waits it acts, and then ends."""
    lock = FileLock(folder / ".lock", thread_local=False)

    def run() -> None:
        while not waiting_points(folder):
            time.sleep(0.01)
        act()
        lock.release()

    lock.acquire()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield
    thread.join()


@pytest.fixture
def search(
    folder: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    monkeypatch.setattr("quarterhour.tune.search.waiting.SECONDS", 0.02)
    return folder / "runs/search"


def test_it_returns_with_the_result_and_what_one_seed_can_tell(
    search: Path,
    quarterhour: Quarterhour,  # noqa: F811
):
    def train() -> None:
        Driver(read_search(search), trials=7, first_points=[]).run()

    with searching(search, train):
        code, output, errors = quarterhour(*POINT)
    told = json.loads(output)
    assert (code, told["exit_code"], told["error"]) == (0, 0, None)
    assert told["trial"]["folder"].endswith("runs/search/0006")
    assert told["trial"]["status"] == "COMPLETE"
    assert told["trial"]["config"]["optim"]["learning_rate"] == 2e-3
    compared = told["against_best"]
    assert compared["verdict"].startswith("cannot be told: one seed each")
    assert (compared["low"], compared["high"]) == ("NaN", "NaN")
    assert "better than the best of the others? cannot be told" in errors
    again = quarterhour(*POINT)  # no search runs now, and none is needed
    assert again[0] == 0
    assert json.loads(again[1]) == told


def test_without_a_search_nothing_is_added_and_nobody_waits(
    search: Path,
    quarterhour: Quarterhour,  # noqa: F811
):
    code, output, errors = quarterhour(*POINT)
    assert code == 2
    assert json.loads(output)["error"] == errors.removeprefix("quarterhour: ").strip()
    assert "no search runs in runs/search, so the point is not added" in errors
    assert not waiting_points(search)


def no_act() -> None:
    """A search that ends before the point's turn."""


def test_a_search_that_ends_or_refuses_ends_the_waiting(
    search: Path,
    quarterhour: Quarterhour,  # noqa: F811
):
    with searching(search, no_act):
        code, _, errors = quarterhour(*POINT)
    assert code == 1
    assert "and the point waits until it is started again" in errors
    ((file, _),) = waiting_points(search)
    file.unlink()
    with searching(search, lambda: refuse(waiting_points(search)[0][0], "it is no point")):
        code, output, errors = quarterhour(*POINT)
    assert code == 1
    assert "a point was refused; its search says why" in json.loads(output)["error"]


def test_a_point_that_diverges_is_an_answer_with_exit_code_1(
    search: Path,
    quarterhour: Quarterhour,  # noqa: F811
):
    def train() -> None:
        Driver(read_search(search), trials=7, first_points=[]).run(ending=diverge)

    with searching(search, train):
        code, output, _ = quarterhour(*POINT)
    told = json.loads(output)
    assert (code, told["exit_code"], told["trial"]["status"]) == (1, 1, "FAILED")
    assert told["trial"]["reason"] == "train_loss is nan"
    assert told["against_best"]["verdict"] == "no: it is not complete"


def test_ctrl_c_leaves_the_point_in_the_search(
    search: Path,
    quarterhour: Quarterhour,  # noqa: F811
):
    with searching(search, lambda: (signal.raise_signal(signal.SIGINT), time.sleep(0.2))):
        code, output, _ = quarterhour(*POINT)
    assert (code, json.loads(output)["exit_code"]) == (130, 130)
    assert "the point stays in the search" in json.loads(output)["error"]
    assert len(waiting_points(search)) == 1


GROUPS = [[3.0, 3.1, 3.2], [2.0, 2.1, 2.2], [5.0]]


def test_single_values_differ_by_the_spread_within_groups():
    told = pooled_difference(2.0, 3.0, GROUPS)
    half = 2.7764451 * 0.1 * 2**0.5  # t of 4 degrees of freedom, s = 0.1
    assert told == pytest.approx({"difference": -1.0, "low": -1 - half, "high": -1 + half})
    unknown = pooled_difference(2.0, 3.0, [[1.0], [2.0]])
    assert unknown["difference"] == -1
    assert unknown["low"] != unknown["low"]


@pytest.mark.parametrize(
    ("shift", "verdict"), [(-1.0, "better"), (0.0, "within seed noise"), (1.0, "worse")]
)
def test_a_verdict_goes_by_the_spread_of_fresh_seeds(shift: float, verdict: str, tmp_path: Path):
    run = write_search(tmp_path / "search", 8, fresh=True)
    best = search_results(load_run(run)).ranked().iloc[0]
    shutil.copytree(run / best["configuration"], run / "0099")
    edit(run / "0099/config.json", lambda told: told | {"name": "0099", "key": "0099"})
    metrics = run / "0099/metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    shifted = [r | {"heldout_loss": r["heldout_loss"] + shift} for r in rows if "heldout_loss" in r]
    metrics.write_text("".join(json.dumps(row) + "\n" for row in shifted))
    told = against_best(search_results(load_run(run)), "0099")
    assert (told["best"], told["verdict"]) == (best["configuration"], verdict)
    assert told["difference"] == pytest.approx(shift)


def edit(file: Path, change: Callable[[Any], Any]) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
