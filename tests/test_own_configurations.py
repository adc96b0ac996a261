"""Configurations of a user's own, in the place of the six."""

from pathlib import Path
from typing import Any

import pytest
from made_up import write_grid
from test_cli import Quarterhour, quarterhour  # noqa: F401
from test_start import requested
from tiny import write_corpus

from quarterhour.analysis.chapters.paper.comparison import beside_published
from quarterhour.analysis.chapters.run import settings
from quarterhour.analysis.contents import RUN_SECTIONS
from quarterhour.analysis.plots import colours
from quarterhour.analysis.runs import load_run
from quarterhour.search_spaces.own_configurations import own_configurations
from quarterhour.search_spaces.profiles import QUICK
from quarterhour.search_spaces.reference import reference_configurations
from quarterhour.tune.ledger import read_spec

SIX = reference_configurations(QUICK, "as-run")
TINY = {"data.batch_size": 2, "data.seq_len": 16, "budget.max_steps": 3, "precision": "fp32"}
COMMAND = ["--corpus", "tiny.jsonl", "--cpus-per-trial", "1"]


def write_own(variants: Any, imports: str = "") -> str:
    Path("own.py").write_text(f"{imports}\nvariants = {variants!r}\n")
    return "own.py:variants"


def test_they_are_settings_on_the_baseline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    wide = {"model.d_model": 192, "model.d_ff": 768}
    own = own_configurations(write_own({"wide": wide, "baseline": {}}), SIX)
    assert own["wide"] == (SIX["baseline"].with_values(wide), wide)
    assert own["baseline"] == (SIX["baseline"], {})


def test_their_runs_stand_beside_the_six_and_past_trials(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "tiny.jsonl")
    own = write_own({f"v{number}": TINY | {"optim.beta1": number / 100} for number in range(30)})
    grid = requested(chosen=(own, "baseline"), corpus="tiny.jsonl", seeds=(0, 1))
    assert grid.folder == Path("runs/grid-own-variants-baseline")
    assert [*grid.configurations] == [*(f"v{number}" for number in range(30)), "baseline"]
    assert len(grid.trials()) == 62
    config = grid.configurations["v7"]
    assert (config.optim.beta1, config.precision, config.seed) == (0.07, "fp32", 0)
    assert grid.configurations["v7"].model.vocab_size == grid.tokens.manifest.vocab_size


def test_the_same_point_under_another_name_is_not_trained_again(
    quarterhour: Quarterhour,  # noqa: F811
    tmp_path: Path,
):
    write_corpus(tmp_path / "tiny.jsonl")
    own = write_own({"one": TINY, "same": TINY, "other": TINY | {"optim.beta1": 0.8}})
    code, _, errors = quarterhour("run", own, *COMMAND)
    assert (code, errors) == (0, "")
    run = Path("runs/run-own-variants")
    results = {name: read_spec(run / name / "seed0").result() for name in ("one", "same", "other")}
    assert results["one"]
    assert results["same"]
    assert results["other"]
    assert results["one"].key == results["same"].key != results["other"].key
    assert results["same"].adopted_from
    again = write_own({"renamed": TINY})
    code, output, _ = quarterhour("run", again, *COMMAND, "--name", "again")
    assert code == 0
    assert "1 of them finished before" in " ".join(output.split())


BAD = [
    ("{}", "must be a mapping of names to settings"),
    ("[1]", "must be a mapping of names to settings"),
    ("{'a/b': {}}", "a configuration is called 'a/b': use up to 80 letters"),
    ("{'..': {}}", "a configuration is called '..'"),
    ("{'0014': {}}", "a configuration is called '0014'"),
    ("{'.hidden': {}}", "a configuration is called '.hidden'"),
    ("{'a\\nb': {}}", "a configuration is called 'a\\nb'"),
    ("{'a' * 81: {}}", "use up to 80 letters"),
    ("{1: {}}", "a configuration is called 1"),
    ("{'Wide': {}, 'wide': {}}", "Wide and wide differ in case alone"),
    ("{'a': 3}", "a is 3: it must be a mapping of dotted paths to values"),
    ("{'a': {'optim.lr': 1}}", "a: unknown key 'optim.lr'"),
    ("{'a': {3: 1}}", "a: "),
    ("{'a': {'model.n_heads': 5}}", "a: model.n_heads is 5: it must divide"),
    ("{'a': {'seed': 5}}", "a sets seed: use --seeds"),
    ("{'high_lr': {}}", "high_lr is a configuration of the study, with other settings"),
    ("1 / 0", "own.py cannot be run: ZeroDivisionError: division by zero"),
    ("exit(0)", "own.py cannot be run: SystemExit: 0"),
]


@pytest.mark.parametrize(("variants", "message"), BAD)
def test_what_is_none_is_refused_in_one_line(
    variants: str,
    message: str,
    quarterhour: Quarterhour,  # noqa: F811
):
    Path("own.py").write_text(f"variants = {variants}\n")
    code, _, errors = quarterhour("grid", "--configurations", "own.py:variants")
    assert code == 2
    assert errors.startswith("quarterhour: --configurations own.py:variants")
    assert message in errors
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("missing.py:variants", "there is no file missing.py"),
        ("own.py:other", "own.py:other must be a mapping"),
        ("own.py:variants,high_lr,high_lr", "two of the configurations are called high_lr"),
        ("own.py:variants,own.py:variants", "two of the configurations are called wide"),
        ("own.py", "own.py is no trial's folder"),
    ],
)
def test_what_is_not_there_or_there_twice_is_refused(
    asked: str,
    message: str,
    quarterhour: Quarterhour,  # noqa: F811
):
    write_own({"wide": {"model.d_model": 192}})
    code, _, errors = quarterhour("grid", "--configurations", asked)
    assert code == 2
    assert message in errors
    assert len(errors.splitlines()) == 1


def test_a_file_may_grow_but_not_change_what_a_name_means(
    quarterhour: Quarterhour,  # noqa: F811
    tmp_path: Path,
):
    write_corpus(tmp_path / "tiny.jsonl")
    assert quarterhour("run", write_own({"one": TINY}), *COMMAND)[0] == 0
    more = {"one": TINY, "two": TINY | {"optim.beta1": 0.8}}
    assert quarterhour("run", write_own(more), *COMMAND)[0] == 0
    other = write_own({"one": TINY | {"optim.beta1": 0.7}})
    code, _, errors = quarterhour("run", other, *COMMAND)
    assert code == 2
    assert "was made with resolved.one.optim.beta1 0.9, and this is 0.7: pass --name" in errors


def test_the_papers_comparison_falls_away_and_the_report_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    names = {f"variant_{n}": {"optim.learning_rate": n / 1e3} for n in range(1, 15)}
    monkeypatch.setattr("made_up.SIX", names)
    run = load_run(write_grid(tmp_path / "own", seeds=2))
    tables = beside_published(run)
    assert {"performance", "validation"} <= {table.name for table in tables}
    assert not any(column.endswith("_published") for t in tables for column in t.frame())
    assert all(not table.note for table in tables)
    sections = {section.name: section for section in RUN_SECTIONS if section.applies(run)}
    assert "verify" not in sections
    (said,) = sections["paper"].sentences(run)
    assert said.startswith("The study has none of these configurations")
    assert [*settings(run)] == ["optim.learning_rate"]
    assert len({*colours(names).values()}) == 14
