"""`quarterhour tensorboard`, asked as its page asks it, and looked at in a real browser."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from tensorboard.backend.event_processing.data_ingester import _parse_event_files_spec
from tiny import tiny_config, write_corpus

from quarterhour.search_spaces.reference import SIX
from quarterhour.tune.ledger import TrialSpec
from quarterhour.tune.run_folder import Status
from quarterhour.tune.run_reader import read_rows
from quarterhour.tune.tensorboard_server import _logdir, serve
from quarterhour.tune.training.recorder import Recorder

BROWSER = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
# The texts of all elements that match, through shadow roots, which the page is made of.
TEXTS = """
const texts = [];
const read = node => {
  if (node.tagName == "STYLE") return;
  if (node.nodeType == Node.TEXT_NODE && node.data.trim()) texts.push(node.data.trim());
  for (const child of [...(node.shadowRoot?.childNodes ?? []), ...node.childNodes]) read(child);
};
const find = element => {
  if (element.matches(arguments[0])) return read(element);
  for (const child of [...(element.shadowRoot?.children ?? []), ...element.children]) find(child);
};
find(document.body);
return texts;
"""


def quarterhour(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [str(Path(sys.executable).with_name("quarterhour")), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True)


@contextmanager
def served(folder: Path, *arguments: str) -> Iterator[str]:
    """The address of TensorBoard in `folder`, ended by Ctrl-C."""
    process = quarterhour(folder, "tensorboard", "--no-browser", *arguments)
    assert process.stdout
    try:
        address = re.search(r"http://\S+:\d+/", process.stdout.readline())
        assert address, process.communicate()
        assert "tensorboard --logdir" in process.stdout.readline()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        yield address[0]
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "Traceback" not in errors
    until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


def until(condition: Callable[[], Any]) -> Any:
    """Wait until it holds, and what it then is; the test's own time limit ends it."""
    while not (result := condition()):
        time.sleep(0.1)
    return result


def runs_of(address: str) -> list[str]:
    return sorted(json.load(urllib.request.urlopen(f"{address}data/runs")))


def steps_of(address: str, run: str, tag: str) -> list[int]:
    query = urllib.parse.urlencode({"run": run, "tag": tag})
    try:
        points = json.load(urllib.request.urlopen(f"{address}data/plugin/scalars/scalars?{query}"))
    except urllib.error.HTTPError as error:
        error.close()
        return []
    return [step for _, step, _ in points]


def begin(folder: Path, step: int = 0) -> Recorder:
    spec = TrialSpec(name=folder.name, config=tiny_config(), data_fingerprint="", folder=folder)
    spec.write_config()
    return Recorder(spec, step)


def row(step: int) -> dict[str, float]:
    return {"step": step, "tokens": step * 64, "train_loss": 1.0 / step}


@pytest.mark.slow
def test_trials_are_named_from_their_run_folder_and_followed_while_they_train(tmp_path: Path):
    begin(tmp_path / "runs/grid/large_batch/seed0").close()
    with served(tmp_path) as address:
        until(lambda: runs_of(address) == ["grid/large_batch/seed0"])
        trial = begin(tmp_path / "runs/search/0042")
        trial.write(row(1))
        until(lambda: steps_of(address, "search/0042", "loss/train") == [1])
        trial.write(row(2))
        trial.write(row(3))
        until(lambda: steps_of(address, "search/0042", "loss/train") == [1, 2, 3])
        trial.close()
        resumed = begin(tmp_path / "runs/search/0042", step=2)
        for step in (3, 4):
            resumed.write(row(step))
        resumed.write_ending(Status.COMPLETE)
        resumed.close()
        until(lambda: steps_of(address, "search/0042", "status") == [0, 4])
        assert steps_of(address, "search/0042", "loss/train") == [1, 2, 3, 4]
        assert steps_of(address, "search/0042", "loss_by_tokens/train") == [64, 128, 192, 256]
        assert runs_of(address) == ["grid/large_batch/seed0", "search/0042"]


def test_the_printed_command_shows_a_folder_with_a_colon(tmp_path: Path):
    folders = [tmp_path / "search-tokens:8.2M", tmp_path / "grid"]
    for folder in folders:
        folder.mkdir()
    with _logdir(folders, tmp_path) as (_, (option, spec)):
        assert option == "--logdir_spec"
        assert _parse_event_files_spec(spec) == {
            str(tmp_path / "search-tokens:8.2M"): "search-tokens-8.2M",
            str(tmp_path / "grid"): "grid",
        }


@pytest.mark.slow
def test_only_the_runs_given_are_shown_on_the_next_free_port(tmp_path: Path):
    for trial in ("grid/baseline/seed0", "search/0001", "other/baseline/seed0"):
        begin(tmp_path / "runs" / trial).close()
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
        with served(tmp_path, "runs/grid", "runs/search/", "--port", str(port)) as address:
            until(lambda: runs_of(address) == ["grid/baseline/seed0", "search/0001"])
            assert port_of(address) > port


@pytest.mark.slow
@pytest.mark.parametrize("bind_all", [False, True])
def test_other_addresses_than_loopback_are_served_only_if_asked(tmp_path: Path, bind_all: bool):
    (tmp_path / "runs").mkdir()
    with served(tmp_path, *(["--bind-all"] if bind_all else [])) as address:
        other = ("127.0.0.2", port_of(address))
        if bind_all:
            socket.create_connection(other).close()
        else:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(other)


def port_of(address: str) -> int:
    return urllib.parse.urlsplit(address).port or 0


def test_run_folders_of_the_same_name_are_refused(tmp_path: Path):
    folders = [tmp_path / "a/grid", tmp_path / "b/grid"]
    for folder in folders:
        folder.mkdir(parents=True)
    with pytest.raises(ValueError, match="same name"):
        serve(folders, tmp_path, port=None, browser=False, bind_all=False)


@pytest.fixture
def page() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER or ""
    # No sandbox, since in a container root has none; /dev/shm may be small there.
    for switch in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1600,1000"):
        options.add_argument(f"--{switch}")
    with webdriver.Chrome(options, Service(DRIVER)) as driver:
        yield driver


@contextmanager
def six_in_training(folder: Path) -> Iterator[None]:
    """A quick grid whose six trials train at once, each with a few rows, none with a result."""
    write_corpus(folder / "tiny.jsonl")
    grid = quarterhour(folder, "grid", "--corpus", "tiny.jsonl", "--cpus-per-trial", "0.33")
    trials = [folder / "runs/grid" / name / "seed0" for name in SIX]
    try:
        while not all(len(read_rows(trial)) > 2 for trial in trials):
            assert grid.poll() is None, grid.communicate()
            time.sleep(0.1)
        yield
        assert grid.poll() is None
        assert not list(folder.rglob("result.json"))
    finally:
        grid.terminate()
        grid.communicate(timeout=60)


def trials_of_table(page: webdriver.Chrome) -> dict[str, dict[str, str]]:
    """The table of hyperparameters as it stands on the page: by trial, by column."""
    texts = page.execute_script(TEXTS, "vaadin-grid")
    begins = [n for n, text in enumerate(texts) if text.startswith("grid/")]
    columns = [text for text in texts[: min(begins, default=0)] if text != "Show Metrics"]
    rows = [texts[n : n + len(columns)] for n in begins]
    return {row[0]: dict(zip(columns, row, strict=False)) for row in rows}


@pytest.mark.slow
@pytest.mark.skipif(not (BROWSER and DRIVER), reason="chromium and chromedriver are not installed")
def test_a_browser_shows_six_trials_side_by_side_while_they_train(
    tmp_path: Path, page: webdriver.Chrome
):
    names = {f"grid/{name}/seed0" for name in SIX}
    with six_in_training(tmp_path), served(tmp_path) as address:
        until(lambda: set(runs_of(address)) == names)

        page.get(f"{address}?tagFilter=loss#timeseries")
        until(lambda: names <= set(page.execute_script(TEXTS, "runs-data-table")))
        until(lambda: names <= set(page.execute_script(TEXTS, "scalar-card")))
        cards = page.execute_script(TEXTS, "scalar-card")
        assert {"/train", "/heldout", "/eval"} <= set(cards)

        page.get("about:blank")
        page.get(f"{address}#hparams")
        until(lambda: len(trials_of_table(page)) == len(SIX))
        table = trials_of_table(page)
        assert set(table) == names
        for shown in table.values():
            numbers = {column: float(shown[column]) for column in shown if column != "Trial ID"}
            assert 5 < numbers["heldout_loss"] < 10
            assert next(numbers[name] for name in numbers if name.startswith("status")) == 0
        assert float(table["grid/large_batch/seed0"]["data.batch_size"]) == 16

        page.get("about:blank")
        page.get(f"{address}#text")
        until(lambda: "The history of" in page.execute_script(TEXTS, "tf-text-loader"))
