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
from quarterhour.tune.ledger import TrialSpec, adopt, read_spec
from quarterhour.tune.run_folder import CONFIG, EXPERIMENT, Status
from quarterhour.tune.run_reader import read_rows
from quarterhour.tune.tensorboard_server import FIRST_VIEW, TrialLinks, _logdir, serve
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
        address = re.search(r"http://[^/]+/", process.stdout.readline())
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


def begin(run: Path, trial: str, step: int = 0, origin: str | None = None) -> Recorder:
    run.mkdir(parents=True, exist_ok=True)
    (run / EXPERIMENT).write_text("{}")
    folder = run / trial
    name = folder.parent.name if folder.name.startswith("seed") else folder.name
    spec = TrialSpec(
        name=name, config=tiny_config(), data_fingerprint="", folder=folder, origin=origin
    )
    spec.write_config()
    return Recorder(spec, step)


def row(step: int) -> dict[str, float]:
    return {"step": step, "tokens": step * 64, "train_loss": 1.0 / step}


@pytest.mark.slow
def test_trials_are_named_from_their_run_folder_and_followed_while_they_train(tmp_path: Path):
    begin(tmp_path / "runs/grid", "large_batch/seed0").close()
    with served(tmp_path) as address:
        until(lambda: runs_of(address) == ["grid/large_batch seed 0"])
        trial = begin(tmp_path / "runs/search", "0042")
        trial.write(row(1))
        until(lambda: steps_of(address, "search/0042", "loss/train") == [1])
        trial.write(row(2))
        trial.write(row(3))
        until(lambda: steps_of(address, "search/0042", "loss/train") == [1, 2, 3])
        trial.close()
        resumed = begin(tmp_path / "runs/search", "0042", step=2)
        for step in (3, 4):
            resumed.write(row(step))
        resumed.write_ending(Status.COMPLETE)
        resumed.close()
        until(lambda: steps_of(address, "search/0042", "status") == [0, 4])
        assert steps_of(address, "search/0042", "loss/train") == [1, 2, 3, 4]
        assert steps_of(address, "search/0042", "loss_by_tokens/train") == [64, 128, 192, 256]
        assert runs_of(address) == ["grid/large_batch seed 0", "search/0042"]


def test_the_printed_command_shows_a_folder_with_a_colon(tmp_path: Path):
    folders = [tmp_path / "search-tokens:8.2M", tmp_path / "grid"]
    for folder in folders:
        folder.mkdir()
    _, (option, spec) = _logdir(folders, tmp_path)
    assert option == "--logdir_spec"
    assert _parse_event_files_spec(spec) == {
        str(tmp_path / "search-tokens:8.2M"): "search-tokens-8.2M",
        str(tmp_path / "grid"): "grid",
    }


@pytest.mark.parametrize("shown", ["runs", "runs/search", "runs/search/0001"])
def test_trials_are_called_what_they_are(tmp_path: Path, shown: str):
    search = tmp_path / "runs/search"
    begin(tmp_path / "runs/grid", "high_lr/seed0").close()
    begin(search, "0001", origin="high_lr").close()
    begin(search, "0006", origin="enqueued").close()
    begin(search, "fresh_seeds/0014/seed2", origin="sampler").close()
    named = {"": tmp_path / "runs"} if shown == "runs" else {"x": tmp_path / shown}
    links = TrialLinks(tmp_path / "links", named)
    links.follow()
    names = linked(tmp_path / "links")
    if shown == "runs/search/0001":
        assert names == ["x/0001 high_lr"]
        return
    run = "search" if shown == "runs" else "x"
    of_search = [f"{run}/0001 high_lr", f"{run}/0006 enqueued", f"{run}/0014 seed 2"]
    assert names == ["grid/high_lr seed 0"] * (shown == "runs") + of_search
    adopted_later = TrialSpec(
        name="0015", config=tiny_config(), data_fingerprint="", folder=search / "0015",
        origin="baseline",
    )  # fmt: skip
    original = begin(tmp_path / "elsewhere", "baseline/seed0")
    original.write(row(1))
    original.close()
    source = tmp_path / "elsewhere/baseline/seed0"
    read_spec(source).write_result(Status.COMPLETE, row(1))
    adopt(adopted_later, source)
    (search / "0016").mkdir()
    (search / "0016" / CONFIG).write_text("damaged")
    links.follow()
    assert linked(tmp_path / "links") == sorted([*names, f"{run}/0015 baseline (adopted)"])


def linked(links: Path) -> list[str]:
    """The names of all links, each of which leads to a trial."""
    paths = [path for path in links.rglob("*") if (path / CONFIG).exists()]
    return sorted(str(path.relative_to(links)) for path in paths)


def test_the_address_carries_what_is_seen_first():
    parts = urllib.parse.urlsplit(FIRST_VIEW)
    view = dict(urllib.parse.parse_qsl(parts.query))
    pinned = [card["tag"] for card in json.loads(view["pinnedCards"])]
    assert pinned == ["loss_by_tokens/heldout", "loss/heldout"]
    assert view["smoothing"] == "0"
    assert "tagFilter" not in view, "it would hide the pinned cards"
    assert parts.fragment == "timeseries&_smoothingWeight=0"
    of_configuration = re.compile(view["runColorGroup"].removeprefix("regex:"))

    def colour(run: str) -> tuple[str | None, ...]:
        found = of_configuration.search(run)
        assert found
        return found.groups()

    assert colour("grid/high_lr seed 0") == colour("grid/high_lr seed 1")
    assert colour("grid/high_lr seed 0") == colour("search/0001 high_lr seed 2")
    assert colour("search/0001 high_lr (adopted)") == ("high_lr", None)
    assert colour("search/0014") == colour("search/0014 seed 2") == (None, "0014")
    assert colour("search/0006 enqueued") != colour("search/0007 enqueued")


@pytest.mark.slow
def test_only_the_runs_given_are_shown_on_the_next_free_port(tmp_path: Path):
    for run in ("grid", "other"):
        begin(tmp_path / "runs" / run, "baseline/seed0").close()
    begin(tmp_path / "runs/search", "0001").close()
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
        with served(tmp_path, "runs/grid", "runs/search/", "--port", str(port)) as address:
            until(lambda: runs_of(address) == ["grid/baseline seed 0", "search/0001"])
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
    names = {f"grid/{name} seed 0" for name in SIX}
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
        assert float(table["grid/large_batch seed 0"]["data.batch_size"]) == 16

        page.get("about:blank")
        page.get(f"{address}#text")
        until(lambda: "The history of" in page.execute_script(TEXTS, "tf-text-loader"))
