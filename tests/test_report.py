"""The report: its files, its page, the command, and what a browser makes of it."""

import base64
import csv
import errno
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from made_up import training_rows, write_grid, write_samples, write_search
from matplotlib import image
from matplotlib.figure import Figure
from screenshots import BROWSER, DRIVER, PICTURES, browsing, opened, take
from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait
from test_runs import COMPLETE, write_experiment, write_trial

import quarterhour.analysis.report
from quarterhour.analysis import formats
from quarterhour.analysis.chapters.run import headline, provenance, remarks, trials
from quarterhour.analysis.contents import COMMON_SECTIONS, RUN_SECTIONS
from quarterhour.analysis.report import write_report
from quarterhour.analysis.runs import Run, load_run
from quarterhour.analysis.sections import Section, Table
from quarterhour.tune.cli import main

LATEX = shutil.which("pdflatex") or shutil.which("tectonic")


def unfinished(folder: Path) -> Path:
    """Of two configurations one has begun, and has not got to an evaluation at its end."""
    run = write_experiment(folder, ["baseline", "high_lr"])
    write_trial(run, "baseline", training_rows(3, {}, 30))
    return run


def one_trial(folder: Path) -> Path:
    """A single configuration, of which no row is written yet."""
    run = write_experiment(folder, ["baseline"])
    write_trial(run, "baseline", [])
    return run


RUNS = {
    "finished": lambda folder: write_grid(folder, seeds=2),
    "unfinished": unfinished,
    "one_trial": one_trial,
    "waiting": lambda folder: write_experiment(folder, ["baseline", "mine"], seeds=2),
    "unknown": lambda folder: write_trial(
        write_experiment(folder, ["mine"]), "mine", training_rows(3, {})
    ).parents[1],
    "search": lambda folder: write_search(folder, 12, fresh=True),
    "search_of_one": lambda folder: write_search(folder, 1),
    "search_begun": lambda folder: write_search(folder, 2, n_rows=20),
    "front": lambda folder: write_search(folder, 9, objectives=("heldout_loss", "tokens")),
}


@pytest.fixture(scope="module", params=RUNS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return load_run(RUNS[request.param](tmp_path_factory.mktemp("runs") / request.param))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on a grid and a search."""
    folder = tmp_path_factory.mktemp("report")
    runs = [write_grid(folder / "six", seeds=2), write_search(folder / "wide", 12, fresh=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quarterhour.analysis.report.PNG_DPI", 30)
        write_report([load_run(run) for run in runs], folder / "report")
    return folder / "report"


def applying(run: Run) -> Iterator[tuple[Section[Any], Any]]:
    for sections, subject in ((RUN_SECTIONS, run), (COMMON_SECTIONS, [run])):
        for section in sections:
            if section.applies(subject):
                yield section, subject


def test_every_table_and_figure_is_made_of_any_run(run: Run):
    for section, subject in applying(run):
        for name, (title, make) in section.tables.items():
            made = make(subject)
            assert isinstance(made, pd.DataFrame | Table), name
            assert make.__doc__, f"{name} has no caption"
            assert not re.search(r"[&%$#_{}~^\\]", title), "the title stands in LaTeX as it is"
            cells = formats.texts(made) if isinstance(made, pd.DataFrame) else made.cells
            assert cells.columns.is_unique
        for name, (_, make) in section.figures.items():
            assert isinstance(make(subject), Figure | None), name
            assert make.__doc__, f"{name} has no caption"


def test_another_table_is_a_function_and_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def widths(run: Run) -> pd.DataFrame:
        """How wide each is."""
        return run.trials[["configuration", "model.d_model"]]

    section = Section(name="mine", title="Mine", tables={"widths": ("Widths", widths)})
    monkeypatch.setattr("quarterhour.analysis.report.RUN_SECTIONS", [section])
    monkeypatch.setattr("quarterhour.analysis.report.COMMON_SECTIONS", [])
    write_report([load_run(one_trial(tmp_path / "run"))], made := tmp_path / "report")
    assert (made / "tables/widths.csv").read_text() == "configuration,model.d_model\nbaseline,384\n"
    page = Page((made / "report.html").read_text(encoding="utf-8"))
    assert "Widths How wide each is." in " ".join(page.text.split())


def test_names_of_files_are_given_once():
    sections = [*RUN_SECTIONS, *COMMON_SECTIONS]
    for kind in ("tables", "figures"):
        names = Counter(name for section in sections for name in getattr(section, kind))
        assert max(names.values()) == 1
    assert len({section.name for section in sections}) == len(sections)


def test_every_table_has_three_files_and_every_figure_two(report: Path):
    tables = {path.stem for path in (report / "tables/six").glob("*.csv")}
    assert {"table1_configurations", "table8_validation", "provenance", "pairwise"} <= tables
    for suffix in ("md", "tex"):
        assert {path.stem for path in (report / "tables/six").glob(f"*.{suffix}")} == tables
    figures = {path.stem for path in (report / "figures/wide").glob("*.svg")}
    assert {"outcome", "history", "slices", "parallel", "learning_curves"} <= figures
    assert {path.stem for path in (report / "figures/wide").glob("*.png")} == figures
    assert {path.name for path in report.iterdir()} == quarterhour.analysis.report.CONTENTS


def test_csv_holds_the_figures_unrounded(report: Path):
    run = load_run(report.parent / "six")
    read = pd.read_csv(report / "tables/six/trials.csv", index_col=["configuration", "seed"])
    last = run.rows.groupby(["configuration", "seed"])["heldout_loss"].last()
    assert read["heldout_loss"].to_dict() == pytest.approx(last.to_dict(), rel=1e-9)


def test_markdown_tables_have_the_same_cells_in_every_row(report: Path):
    for path in report.glob("tables/**/*.md"):
        table = path.read_text().split("\n\n")[0]
        rows = [re.split(r"(?<!\\)\|", line) for line in table.splitlines()]
        assert len({len(row) for row in rows}) <= 1, path


def test_latex_tables_are_whole(report: Path):
    for path in [*report.glob("tables/*/*.tex"), report / "tables/contradictions.tex"]:
        text = path.read_text(encoding="utf-8")
        text.encode("latin-1")
        bare = re.sub(r"\\[\\{}&%$#_]", "", text)
        assert bare.count("{") == bare.count("}"), path
        assert "$" not in bare
        assert "#" not in bare
        assert Counter(re.findall(r"\\begin\{(\w+)", text)) == Counter(
            re.findall(r"\\end\{(\w+)", text)
        )
        columns = re.search(r"\\begin\{tabular\}\{([lr]*)\}", text)
        assert columns
        rows = [line for line in bare.splitlines() if line.endswith(" ") and "&" in line]
        assert {row.count("&") + 1 for row in rows} <= {len(columns[1])}, path
        for rule in ("toprule", "midrule", "bottomrule"):
            assert text.count(f"\\{rule}") == 1
    document = (report / "tables/tables.tex").read_text()
    inputs = re.findall(r"\\input\{(.*)\}", document)
    tables = {path.relative_to(report / "tables").as_posix() for path in report.rglob("*.tex")}
    assert set(inputs) == tables - {"tables.tex"}


@pytest.mark.slow
@pytest.mark.skipif(not LATEX, reason="neither pdflatex nor tectonic is installed")
def test_latex_tables_compile_as_they_are(report: Path):
    quiet = ["-interaction=nonstopmode", "-halt-on-error"] if "pdflatex" in str(LATEX) else []
    command = [str(LATEX), *quiet, "tables.tex"]
    subprocess.run(command, cwd=report / "tables", check=True, capture_output=True)


class Page(HTMLParser):
    """Tags of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, attribute: str) -> list[str]:
        return [value for _, own in self.tags if (value := own.get(attribute))]


def test_the_page_needs_nothing_but_itself(report: Path):
    page = Page((report / "report.html").read_text(encoding="utf-8"))
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.values("src"))
    links = page.values("href")
    ids = page.values("id")
    assert len(set(ids)) == len(ids)
    assert {link.removeprefix("#") for link in links if link != "data:,"} <= set(ids)
    assert {"six-paper", "six-verify", "wide-search", "contradictions"} <= set(ids)
    assert "wide-paper" not in ids
    assert "url(" not in (report / "report.html").read_text(encoding="utf-8")


def test_the_page_opens_with_results_and_ends_with_folded_provenance(report: Path):
    text = (report / "report.html").read_text(encoding="utf-8")
    sections = re.findall(r'<section id="(six-[^"]*)">(.*?)</section>', text, re.DOTALL)
    (first, opening), (last, ending) = sections[0], sections[-1]
    assert (first, last) == ("six-results", "six-run")
    assert opening.count("<figure") == 1
    assert opening.index('class="sentence">At 2000 steps each, ') < opening.index("<figure")
    assert "<details><summary>Show settings, trials, provenance</summary>" in ending
    assert "Provenance" not in "".join(body for _, body in sections[:-1])


def test_a_label_stands_for_one_number_in_all_tables(tmp_path: Path):
    """A trial's loss differs by its window's mean, its last step and the study's evaluation."""
    run = write_experiment(tmp_path / "run", ["baseline"])
    rows = training_rows(3, {})
    for row in rows:
        row |= {"train_loss_last": row["train_loss"] + 0.25}
        if "eval_loss" in row and row["step"] > 1601:
            row["eval_loss"] -= 0.5
    write_trial(run, "baseline", rows, result=COMPLETE)
    write_report([load_run(run)], tmp_path / "report")
    values: dict[str, set[str]] = {}
    for path in (tmp_path / "report/tables").glob("*.md"):
        head, _, *rows = [
            line.split("|")[1:-1] for line in path.read_text().split("\n\n")[0].splitlines()
        ]
        for row in rows:
            for name, value in zip(head, row, strict=True):
                if "loss" in name and "paper" not in name and row[0].strip() == "baseline":
                    label = name.strip().removesuffix(" (nats)")
                    values.setdefault(label, set()).add(value.strip()[:4])
    assert {label: found for label, found in values.items() if len(found) > 1} == {}
    labels = ["training loss, window mean", "training loss, last step", "loss, leaky validation"]
    assert {*labels, "loss, leaky validation, study's last"} <= {*values}


def test_several_seeds_have_labels_and_known_correlations_alone(report: Path):
    text = (report / "tables/six/seed_intervals.md").read_text()
    assert "training loss, last step" in text
    assert "train_loss_last" not in text
    assert "nan" not in (report / "tables/six/verify_orderings.md").read_text()


def test_one_seed_has_one_sentence_in_place_of_intervals(tmp_path: Path):
    write_report([load_run(write_grid(tmp_path / "six"))], tmp_path / "report")
    page = Page((tmp_path / "report/report.html").read_text(encoding="utf-8"))
    assert page.text.count("One seed each: whether a difference is more than seed noise") == 2
    assert "cannot be judged" not in page.text
    assert not (tmp_path / "report/tables/pairwise.csv").exists()


def test_the_page_shows_what_a_run_wrote_as_text(report: Path):
    page = Page((report / "report.html").read_text(encoding="utf-8"))
    assert "baseline <b>at</b> 2000 | & \\ {}" in page.text
    assert not [tag for tag, _ in page.tags if tag == "b"]


def test_a_headline_says_what_was_run_on_what(tmp_path: Path):
    run = load_run(write_grid(tmp_path / "grid", created="2026-11-27T08:00:00+00:00"))
    assert headline(run) == (
        "grid, profile paper · data HuggingFaceTB/smollm-corpus:cosmopedia-v2, tokenizer"
        " HuggingFaceTB/SmolLM-135M · fp16 on missing · begun 2026-11-27 · study: “15-minute"
        " pretraining ablations”, vukrosic/do-small-llm-research, one Tesla T4"
    )
    assert "study" not in headline(load_run(write_search(tmp_path / "search", 7)))


def test_what_a_reader_has_to_know_first(tmp_path: Path):
    assert remarks(load_run(unfinished(tmp_path / "run"))) == [
        "The run is not finished: 1 STOPPED, 1 WAITING. The command that began it goes on, and"
        " fills what is missing.",
        "baseline: seed 0 STOPPED at step 561 of 2,000.",
        "high_lr: seed 0 WAITING.",
    ]
    assert remarks(load_run(write_grid(tmp_path / "six", seeds=2))) == []
    search = load_run(write_search(tmp_path / "search", 12, fresh=True))
    assert remarks(search) == ["Trials: 11 COMPLETE, 1 PRUNED; with fresh seeds 9 COMPLETE."]


def test_cells_are_written_to_be_read():
    frame = pd.DataFrame(
        {
            "loss_now": [5.68412, 261.2461, float("nan")],
            "tokens": [1_000, 2_000_000, 3],
            "p": [0.5, 1.5e-6, 0.25],
            "flops": [6.144e13, 1.0, 2.0],
            "ties": [True, False, True],
            "reason": ["a|b", None, "two\nlines"],
        }
    )
    cells = formats.texts(frame)
    assert cells["loss now"].to_list() == ["5.7", "261.2", "–"]
    assert cells["tokens"].to_list() == ["1,000", "2,000,000", "3"]
    assert cells["p"].to_list() == ["0.5", "1.5e-06", "0.25"]
    assert cells["training FLOPs"].to_list() == ["6.144e+13", "1", "2"]
    assert cells["ties"].to_list() == ["yes", "no", "yes"]
    numeric = formats.numeric_headers(cells)
    assert numeric == ["loss now", "tokens", "p", "training FLOPs"]
    assert r"a\|b" in formats.markdown(cells, numeric, [])
    assert "two lines" in formats.latex(cells, numeric, "Title", [])


def test_a_reason_that_several_rows_share_is_told_once():
    told = ["corpus x; one", "corpus x; often", "corpus x; often", "corpus x; often"]
    cells = pd.DataFrame({"a": list("0123"), "none": ["–"] * 4, "reason": told})
    shown, notes = formats.with_notes(cells)
    assert shown["reason"].to_list() == ["one", "[1]", "[1]", "[1]"]
    assert notes == ["All rows: corpus x.", "[1] often"]
    assert "none" not in shown
    alike = formats.with_notes(cells.assign(reason="corpus x"))
    assert list(alike[0]) == ["a"]
    assert alike[1] == ["All rows: corpus x."]
    assert all(note in formats.latex(cells, ["a"], "Title", notes) for note in notes)
    assert formats.markdown(shown, ["a"], notes).endswith("|\n\nAll rows: corpus x.\n\n[1] often\n")


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["quarterhour", "report", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(str(ended.value.code or 0))


def test_the_command_replaces_an_earlier_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run = one_trial(tmp_path / "run")
    (run / "report/tables").mkdir(parents=True)
    (run / "report/tables/old.csv").touch()
    assert command(monkeypatch, str(run)) == 0
    assert capsys.readouterr().out == f"report in {run / 'report/report.html'}\n"
    assert {
        path.name for path in (run / "report").iterdir()
    } == quarterhour.analysis.report.CONTENTS
    assert not (run / "report/tables/old.csv").exists()
    assert not [path.name for path in run.iterdir() if path.name.startswith(".report")]
    assert load_run(run).trials["status"].to_list() == ["STOPPED"]
    page = Page((run / "report/report.html").read_text(encoding="utf-8"))
    assert "The run is not finished: 1 STOPPED." in page.text
    assert "Nothing to show yet: Training loss, Final loss and accuracy" in page.text
    assert page.text.count("–") < 20


def test_a_report_that_cannot_be_written_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = one_trial(tmp_path / "run")
    (run / "report").mkdir()
    (run / "report/report.html").write_text("earlier")
    broken = Section(name="mine", title="Mine", tables={"none": ("None", lambda _: 1 / 0)})
    monkeypatch.setattr("quarterhour.analysis.report.COMMON_SECTIONS", [broken])
    monkeypatch.setattr("sys.argv", ["quarterhour", "report", str(run)])
    with pytest.raises(ZeroDivisionError):
        main()
    assert (run / "report/report.html").read_text() == "earlier"
    assert [path.name for path in run.glob("*report*")] == ["report"]


def test_a_link_gives_a_run_another_name(tmp_path: Path):
    one_trial(tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "mine").symlink_to(one_trial(tmp_path / "other/run"))
    runs = [load_run(tmp_path / name) for name in ("run", "mine")]
    write_report(runs, tmp_path / "report")
    assert {path.name for path in (tmp_path / "report/tables").iterdir()} >= {"run", "mine"}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["nowhere"], r"run folder nowhere does not exist: .*runs/grid"),
        (["run", "--output", "full"], r"full holds more than a report, such as thesis.txt"),
        (["run", "--output", "full/thesis.txt"], r"thesis.txt is a file: give a folder"),
        (["run", "other/run"], r"two run folders have the same name"),
        ([], r"Missing argument"),
    ],
)
def test_bad_input_ends_in_one_line(
    arguments: list[str],
    error: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    one_trial(tmp_path / "run")
    (tmp_path / "other").mkdir()
    one_trial(tmp_path / "other/run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("mine")
    assert command(monkeypatch, *arguments) == 2
    said = capsys.readouterr().err
    assert re.search(error, said)
    assert len(said.splitlines()) == 1
    assert (tmp_path / "full/thesis.txt").read_text() == "mine"


# What is cut off: outside the window, and in no box that scrolls sideways.
CUT_OFF = """
const inScroller = element => {
  for (let box = element.parentElement; box; box = box.parentElement)
    if (getComputedStyle(box).overflowX === "auto") return true;
};
return [...document.body.querySelectorAll("*")].filter(element => {
  const box = element.getBoundingClientRect();
  return box.width && (box.right > innerWidth + 1 || box.left < -1) && !inScroller(element);
}).map(element => element.outerHTML.slice(0, 80));
"""
BROKEN = "return [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)"
# Ratios of text to background by WCAG's formula, of every element with text of its own.
CONTRAST = """
const known = {};
const painted = colour => {
  const context = new OffscreenCanvas(1, 1).getContext("2d");
  context.fillStyle = colour;
  context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data];
};
const channels = colour => known[colour] ??= painted(colour);
const luminance = colour => {
  const [r, g, b] = channels(colour).map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const backOf = element => {
  for (let box = element; box; box = box.parentElement) {
    const colour = getComputedStyle(box).backgroundColor;
    if (channels(colour)[3]) return colour;
  }
};
const ratios = {};
for (const element of document.body.querySelectorAll("*")) {
  if (![...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())) continue;
  if (["SCRIPT", "STYLE"].includes(element.tagName)) continue;
  const pair = [getComputedStyle(element).color, backOf(element)];
  const [dark, light] = pair.map(luminance).sort((a, b) => a - b);
  ratios[pair.join(" on ")] = (light + 0.05) / (dark + 0.05);
}
return ratios;
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    with browsing() as driver:
        yield driver


needs_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="chromium and chromedriver are not installed"
)


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_a_browser_shows_all_of_the_page(
    width: int, scheme: str, report: Path, browser: webdriver.Chrome
):
    opened(browser, report, width, scheme)
    assert browser.get_log("browser") == []
    assert browser.execute_script(BROKEN) == []
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    assert browser.execute_script(CUT_OFF) == []
    ratios: dict[str, float] = browser.execute_script(CONTRAST)
    assert len(ratios) > 3
    assert min(ratios.values()) >= 4.5, ratios


# What has more to the right than it shows, and whether it is marked so.
UNSHOWN = """
return [...document.querySelectorAll(".scroll, figure")].filter(
  box => box.checkVisibility()
    && (box.scrollWidth - box.clientWidth > 1) !== box.classList.contains("more-right")
).map(box => box.outerHTML.slice(0, 80));
"""
SINGLE_PANELS = """
return [...document.querySelectorAll(".figures > div:not(.wide) figure")]
  .map(box => box.scrollWidth - box.clientWidth);
"""


@pytest.mark.slow
@needs_browser
def test_what_scrolls_says_so_and_single_panels_fit_a_phone(
    report: Path, browser: webdriver.Chrome
):
    opened(browser, report, 400, "light")
    WebDriverWait(browser, 20).until(lambda driver: driver.execute_script(UNSHOWN) == [])
    assert browser.execute_script("return document.querySelectorAll('.more-right').length") > 5
    browser.execute_script(
        "for (const each of document.querySelectorAll('details')) each.open = true"
    )
    WebDriverWait(browser, 20).until(lambda driver: driver.execute_script(UNSHOWN) == [])
    single = browser.execute_script(SINGLE_PANELS)
    assert len(single) > 5
    assert max(single) <= 0
    opened(browser, report, 1400, "light")
    WebDriverWait(browser, 20).until(lambda driver: driver.execute_script(UNSHOWN) == [])


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize(("scheme", "is_dark"), [("light", False), ("dark", True)])
def test_figures_are_as_dark_as_the_page(
    scheme: str, is_dark: bool, report: Path, browser: webdriver.Chrome
):
    opened(browser, report, 1400, scheme)
    picture = browser.find_element("css selector", "figure img").screenshot_as_png
    pixels = image.imread(io.BytesIO(picture))[..., :3]
    assert (float(np.median(pixels)) < 0.2) == is_dark


@pytest.mark.slow
@needs_browser
def test_a_click_on_a_heading_sorts_the_table(report: Path, browser: webdriver.Chrome):
    opened(browser, report, 1400, "light")
    table = browser.find_element("xpath", "//h3[.='Trials']/following::table[1]")
    headers = [cell.text for cell in table.find_elements("css selector", "th")]
    browser.execute_script("arguments[0].closest('details').open = true", table)
    headers = [cell.text for cell in table.find_elements("css selector", "th")]
    place = headers.index("held-out loss (nats)")

    def column() -> list[float]:
        rows = table.find_elements("css selector", "tbody tr")
        return [float(row.find_elements("css selector", "td")[place].text) for row in rows]

    button = table.find_elements("css selector", "th button")[place]
    before = column()
    button.click()
    assert column() == sorted(before)
    button.click()
    assert column() == sorted(before, reverse=True) != before
    head = table.find_elements("css selector", "th")[place]
    assert head.get_attribute("aria-sort") == "descending"


@pytest.mark.slow
@needs_browser
def test_the_pictures_for_the_readme(report: Path, browser: webdriver.Chrome, tmp_path: Path):
    take(browser, report, tmp_path)
    for name, picture in PICTURES.items():
        pixels = image.imread(tmp_path / f"{name}.png")
        assert pixels.shape[:2] == (picture.height, picture.width)
        assert pixels.std() > 0.05, "the picture is not of one colour"


def test_files_are_read_by_other_programs(report: Path):
    for path in report.glob("tables/*/*.csv"):
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
        assert len({len(row) for row in rows}) == 1, path


def test_each_trial_tells_where_it_was_trained(tmp_path: Path):
    run = write_experiment(tmp_path / "run", ["a", "b", "c"], versions={"torch": "0"})
    for name, torch in {"a": "1", "b": "2", "c": "2"}.items():
        config = write_trial(run, name, [{"step": 1}], result=COMPLETE) / "config.json"
        told = {"versions": {"torch": torch}, "git_commit": "abc", "hardware": {"cores": 2}}
        config.write_text(json.dumps(json.loads(config.read_text()) | {"provenance": [told]}))
    facts = provenance(load_run(run))["value"]
    assert facts["versions"] == "torch 1 (a seed 0); torch 2 (b seed 0, c seed 0)"
    assert (facts["git commit"], facts["hardware"]) == ("abc", "cores 2")


def test_trials_that_do_not_tell_were_trained_as_their_run_was(tmp_path: Path):
    run = write_experiment(tmp_path / "run", ["a"], versions={"torch": "1"})
    write_trial(run, "a", [{"step": 1}], result=COMPLETE)
    assert provenance(load_run(run))["value"]["versions"] == "torch 1"
    experiment = json.loads((run / "experiment.json").read_text())
    gone_on = experiment | {"before": {"versions": {"torch": "1"}}, "versions": {"torch": "2"}}
    (run / "experiment.json").write_text(json.dumps(gone_on))
    assert provenance(load_run(run))["value"]["versions"] == "torch 1"


def test_the_trials_table_says_what_was_adopted_from_where(tmp_path: Path):
    run = write_experiment(tmp_path / "run", ["a", "b"])
    write_trial(run, "a", [{"step": 1}], result=COMPLETE)
    assert "adopted_from" not in trials(load_run(run))
    write_trial(run, "b", [{"step": 1}], result=COMPLETE | {"adopted_from": "runs/other/b/seed0"})
    assert trials(load_run(run)).loc[("b", 0), "adopted_from"] == "runs/other/b/seed0"


def test_a_full_disk_or_a_read_only_run_is_told_with_what_moves_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run = one_trial(tmp_path / "run")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("quarterhour.analysis.report.write_report", full)
    assert command(monkeypatch, str(run)) == 2
    assert capsys.readouterr().err == (
        f"quarterhour: {run}/report: No space left on device; choose a folder that can be written"
        " and has room, with --output\n"
    )


HOSTILE = ["=cmd|' /C calc'!A0", r"$\foo$", "[/b] [red]", "a\x1b[31mb", "_hidden %#&~^{}", "+1-@"]
HOSTILE += ["caf\udce9"]  # of a path whose bytes are no UTF-8


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of somebody else, with names and texts that mean something to other programs."""
    runs = tmp_path_factory.mktemp("home") / "alice/runs"
    runs.mkdir(parents=True)
    told = {
        "data": {"corpus": "/home/alice/my data/corpus.txt", "tokenizer": "/data/of/alice"},
        "resources": {"cpus": 2, "cluster": {"address": "h:1", "machines": ["host-7", "host-8"]}},
    }
    for name in ("r [b] %#", "r [b] %%", "..one\udce9"):
        run = write_experiment(runs / name, HOSTILE, **told)
        for n, configuration in enumerate(HOSTILE):
            failed = COMPLETE | {"status": "FAILED", "reason": "not in /home/alice/x, $\\bar$\x07"}
            result = failed if n == 1 else COMPLETE
            trial = write_trial(run, configuration, training_rows(3 + n, {}), result=result)
            write_samples(trial, configuration)
    loaded = [load_run(run) for run in sorted(runs.iterdir())]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quarterhour.analysis.report.PNG_DPI", 20)
        write_report(loaded, runs.parent / "report")
    return runs.parent / "report"


def test_names_mean_nothing_to_other_programs(hostile: Path):
    for path in hostile.rglob("*.svg"):
        ElementTree.parse(path)
    for path in hostile.rglob("*.csv"):
        for row in csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline="")):
            texts = [cell for cell in row if not re.fullmatch(r"[-+]?[\d.]+(e[-+]\d+)?", cell)]
            assert not [cell for cell in texts if cell.startswith(("=", "+", "-", "@"))], path
    texts = [p for p in hostile.rglob("*") if p.suffix in (".html", ".md", ".tex", ".csv", ".svg")]
    for path in texts:
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", path.read_text(encoding="utf-8")), path
    page = Page((hostile / "report.html").read_text(encoding="utf-8"))
    assert r"a\x1b[31mb" in page.text
    assert r"$\foo$" in page.text
    assert "r [b] %#" in page.text


def test_latex_and_links_take_the_folders_of_any_name(hostile: Path):
    inputs = re.findall(r"\\input\{(.*)\}", (hostile / "tables/tables.tex").read_text())
    assert inputs
    assert all(re.fullmatch(r"[A-Za-z0-9._/-]+", file) for file in inputs)
    assert {path.name for path in (hostile / "figures").iterdir()} == {
        "-one-udce9",
        "r-b-",
        "r-b--2",
    }
    page = Page((hostile / "report.html").read_text(encoding="utf-8"))
    links = {link.removeprefix("#") for link in page.values("href") if link != "data:,"}
    assert links <= set(page.values("id"))
    assert all(re.fullmatch(r"[\w.-]+", link) for link in links)


def test_a_report_tells_neither_users_nor_machines(hostile: Path):
    for path in [*hostile.rglob("*.csv"), *hostile.rglob("*.html"), *hostile.rglob("*.tex")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"alice/|/home|host-7", text), path
    facts = pd.read_csv(hostile / "tables/r-b-/provenance.csv", index_col="fact")["value"]
    assert facts["run folder"] == "r [b] %#"
    assert facts["data: corpus"] == "corpus.txt"
    assert facts["resources"] == "cpus 2, machines 2"
    reasons = pd.read_csv(hostile / "tables/r-b-/trials.csv")["reason"]
    assert "not in x, $\\bar$\\x07" in set(reasons)


def test_numbers_stay_numbers_in_csv(tmp_path: Path):
    frame = pd.DataFrame({"=x": [-1.5, 2.0], "text": ["-1", "@b"], "both": ["+a", -3]})
    formats.write_csv(frame, tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text() == "'=x,text,both\n-1.5,'-1,'+a\n2,'@b,-3\n"


def test_the_page_allows_nothing_but_its_own_style_and_script(report: Path):
    text = (report / "report.html").read_text(encoding="utf-8")
    (policy,) = Page(text).values("content")[:1]
    assert policy.startswith("default-src 'none'; img-src data:;")
    for tag, source in (("style", "style-src"), ("script", "script-src")):
        (inline,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"{source} 'sha256-{digest}'" in policy
    attributes = {name for _, own in Page(text).tags for name in own}
    assert not [name for name in attributes if name == "style" or name.startswith("on")]
    inches = {own["data-inches"] for tag, own in Page(text).tags if tag == "img"}
    assert all(f'img[data-inches="{own}"] {{ min-width: ' in text for own in inches)


@pytest.mark.parametrize("file", ["config.json", "result.json"])
@pytest.mark.parametrize("write", [write_grid, lambda folder: write_search(folder, 7)])
def test_a_report_on_damaged_trials_tells_that_they_are(file: str, write: Any, tmp_path: Path):
    folder = write(tmp_path / "run")
    for path in folder.rglob(file):
        path.write_text("{")
    run = load_run(folder)
    assert set(run.trials["status"]) == {"FAILED"}
    for section, subject in applying(run):
        for _, make in [*section.tables.values(), *section.figures.values()]:
            make(subject)
    told = " ".join(remarks(run))
    assert run.is_search or f"baseline: seed 0 FAILED: {file} cannot be read" in told
