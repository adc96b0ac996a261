from dataclasses import replace
from pathlib import Path

import pytest
from eight_steps import six_of_the_quick_kind
from made_up import write_search
from rich.table import Table
from rich.text import Text
from shown import text_of
from study_run import write_study_run

from quarterhour.analysis.chapters import verify
from quarterhour.analysis.chapters.paper.comparison import beside_published
from quarterhour.analysis.chapters.paper.tables import TABLES
from quarterhour.analysis.chapters.search.results import search_results
from quarterhour.analysis.chapters.verify import verify_cells, verify_orderings
from quarterhour.analysis.runs import load_run
from quarterhour.analysis.terminal import (
    best_table,
    cells_table,
    comparison_table,
    orderings_table,
    seed_table,
    spent_text,
)
from quarterhour.tune.cli import main
from quarterhour.tune.commands.console import PlainConsole


def test_the_papers_tables_show_marks_and_reasons_within_100_columns(tmp_path: Path):
    comparisons = beside_published(load_run(six_of_the_quick_kind(tmp_path / "run")))
    assert [comparison.number for comparison in comparisons] == [1, 2, 3, 4, 5, 6, 7, 8]
    for comparison in comparisons:
        text = text_of(comparison_table(comparison))
        assert max(map(len, text.splitlines())) <= 100
        assert text.startswith(f"Table {comparison.number} · {TABLES[comparison.name][0]}\n")
        settings_only = comparison.name in ("configurations", "data_exposure")
        assert ("* not comparable: other corpus, tokenizer," in text) != settings_only
        assert ("*" in text) != settings_only
    performance = comparisons[1]
    assert "3.000 3.642*" in text_of(comparison_table(performance))
    told = performance.not_comparable["baseline"]
    assert "tokenizer builtin instead of HuggingFaceTB/SmolLM-135M" in told
    assert "96   384" in text_of(comparison_table(comparisons[0]))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_what_verify_finds_is_shown_uncut_in_100_columns(tmp_path: Path, precision: str):
    names = ["baseline", "high_lr", "large_batch", "short_seq"]
    run = load_run(write_study_run(tmp_path / "run", seeds=3, names=names, precision=precision))
    text = text_of(cells_table(verify_cells(run)), orderings_table(verify_orderings(run)))
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    assert ("precision bf16 instead of fp16" in text) == (precision == "bf16")
    assert "not in this run" in text
    seeds = "interval: 95 % prediction interval of 3 seeds. REPRODUCED: the paper's figure lies"
    assert (seeds in text) == (precision == "fp16")


@pytest.mark.parametrize(("width", "parts"), [(60, 3), (80, 2), (140, 1)])
def test_wide_tables_break_into_parts_that_have_the_first_column(
    tmp_path: Path, width: int, parts: int
):
    names = ["baseline", "high_lr", "large_batch", "short_seq"]
    run = load_run(write_study_run(tmp_path / "run", seeds=3, names=names))
    search = search_results(load_run(write_search(tmp_path / "search", 12, fresh=True)))
    tables = [*map(comparison_table, beside_published(run)), cells_table(verify_cells(run))]
    tables += [orderings_table(verify_orderings(run)), best_table(search), seed_table(search)]
    for table in tables:
        text = text_of(table, width=width)
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
    orderings = text_of(orderings_table(verify_orderings(run)), width=width)
    assert orderings.count("ranked by") == orderings.count("2 training loss,") == parts


def test_what_a_search_has_come_to_is_said_first_and_its_settings_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", "80")
    search = write_search(tmp_path / "search", 12, fresh=True)
    monkeypatch.setattr("sys.argv", ["quarterhour", "status", str(search)])
    with pytest.raises(SystemExit):
        main()
    lines = capsys.readouterr().out.splitlines()
    starts = [line.split()[0] for line in lines if line.strip()]
    assert starts.index("trial") < starts.index("setting") < starts.index("state")
    shown = starts[starts.index("setting") + 3 : starts.index("state")]
    assert shown[:5] == [
        "optim.learning_rate", "data.batch_size", "data.seq_len", "model.d_model", "model.n_layers"
    ]  # fmt: skip
    assert shown[-1] == "model.d_ff"
    (spent,) = (line for line in lines if line.startswith("spent "))
    assert spent.endswith(" device-seconds of training, 9 trials with fresh seeds included")
    assert len(spent) > 80
    results = search_results(load_run(search))
    adopted = replace(results, fresh=results.fresh.assign(adopted_from="runs/other"))
    assert spent_text(adopted).endswith(" device-seconds of training")


def test_a_run_against_the_study_begins_with_the_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run = six_of_the_quick_kind(tmp_path / "run")
    monkeypatch.setattr("sys.argv", ["quarterhour", "verify", str(run)])
    with pytest.raises(SystemExit):
        main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].split()[-1] for line in lines[:3]] == ["settings", "cells", "claims"]
    assert lines[3].startswith("nothing measured in this run is comparable with the study: ")
    assert len(lines[3]) > 80
    assert not lines[4]
    assert "cells by reason; one can have several" in map(str.rstrip, lines)
    assert verify.cells_table(load_run(run)).notes[-1] == "A cell can have several reasons."


def test_commands_and_options_are_grouped_and_sentences_flow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def shown(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["quarterhour", *arguments, "--help"])
        with pytest.raises(SystemExit):
            main()
        return capsys.readouterr().out

    monkeypatch.setenv("COLUMNS", "80")
    commands = shown()
    places = [commands.index(f"─ {word} ") for word in ("Train", "Look", "Check")]
    for panel, words in enumerate(("grid run search enqueue", "tensorboard report", "doctor")):
        of_panel = commands[places[panel] :].split("╰")[0]
        assert all(f"│ {word} " in of_panel for word in words.split())
    assert places == sorted(places)
    options = shown("search")
    places = [options.index(word) for word in (
        "--trials", "─ Data ─", "--corpus", "─ Machine ─", "--address", "─ Run folder ─", "--runs"
    )]  # fmt: skip
    assert places == sorted(places)
    assert "--hours extend it. With neither" in options


def test_names_are_shown_as_text(capsys: pytest.CaptureFixture[str]):
    console = PlainConsole(width=60)
    console.print("r [/b] [red]x :cat:", "a\x1b[31mb\u202e\udcff")
    table = Table("[/b]", box=None)
    table.add_row("[i]y")
    console.print(table, Text("c\x9bd"))
    shown = capsys.readouterr().out.split("\n")
    assert shown[0] == r"r [/b] [red]x :cat: a\x1b[31mb\u202e\udcff"
    assert [line.strip() for line in shown[1:4]] == ["[/b]", "[i]y", r"c\x9bd"]


@pytest.mark.parametrize("name", ["r [/b]", "r [b]", "r :cat:", "r \x1b[31m", "r \udce9"])
def test_a_run_may_have_any_name(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    run = write_search(tmp_path / name, 1)
    monkeypatch.setattr("sys.argv", ["quarterhour", "status", str(run)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert name.encode("unicode_escape").decode() in shown.replace("\n", "")
    assert "\x1b" not in shown
