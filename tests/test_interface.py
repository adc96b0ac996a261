"""The interface for Python, and the notebook that shows it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import write_corpus

import quarterhour

ROOT = Path(__file__).parents[1]
NOTEBOOK, README = ROOT / "analysis/walkthrough.ipynb", ROOT / "README.md"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_corpus(tmp_path / "tiny.jsonl")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_names_are_there_and_no_other():
    assert all(callable(getattr(quarterhour, name)) for name in quarterhour.__all__)
    assert len(quarterhour.__all__) <= 12
    with pytest.raises(AttributeError, match="has no attribute 'nosuch'"):
        _ = quarterhour.nosuch  # pyright: ignore[reportAttributeAccessIssue]


def test_a_configuration_is_resolved_with_other_values():
    config = quarterhour.resolve("high_lr", {"model.n_layers": 2})
    assert (config.model.n_layers, config.optim.learning_rate) == (2, 4e-3)
    assert quarterhour.resolve(profile="paper").model.d_model > config.model.d_model
    with pytest.raises(ValueError, match=r"unknown key 'model\.n_layer'"):
        quarterhour.resolve("high_lr", {"model.n_layer": 2})


def test_a_trial_is_trained_resolved_again_sampled_exported_and_reported(folder: Path):
    values = {"budget.max_steps": 4, "data.seq_len": 16, "optim.schedule": "constant"}
    run = quarterhour.run("baseline", values, seed=3, corpus="tiny.jsonl", cpus_per_trial=1)
    best = quarterhour.best_trials(run)
    assert list(best["seed"]) == [3]
    assert best["optim.schedule"].item() == "constant"
    assert best["heldout_loss"].item() == run.rows["heldout_loss"].iloc[-1]
    trial = best["folder"].item()
    assert quarterhour.resolve(trial).optim.schedule == "constant"
    assert quarterhour.sample(trial, "The history of", tokens=5)
    quarterhour.export(trial, folder / "model")
    assert (folder / "model/model.safetensors").exists()
    assert quarterhour.report(run).read_text().startswith("<!doctype html>")
    again = quarterhour.load_run(run.folder)
    assert again.trials["key"].to_list() == run.trials["key"].to_list()


def test_bad_input_is_a_value_error_in_one_line(folder: Path):
    with pytest.raises(ValueError, match="unknown configuration 'nosuch'"):
        quarterhour.run("nosuch")
    with pytest.raises(ValueError, match="--seeds is 0: it must be at least 1"):
        quarterhour.grid(seeds=0)
    with pytest.raises(ValueError, match="has the level 2 twice"):
        quarterhour.ablate("baseline", {"model.n_layers": [2, 2]})
    with pytest.raises(ValueError, match="--keep has 2 numbers"):
        quarterhour.promote(["baseline"], budgets=["steps:4", "steps:8"], keep=[2, 1])
    with pytest.raises(ValueError, match="unknown space 'nosuch'"):
        quarterhour.search(trials=1, space="nosuch")
    assert [*folder.iterdir()] == [folder / "tiny.jsonl"]


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path: Path):
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 5
    readme = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert all(line in "\n".join(code) for text in readme for line in text.splitlines()[:-1])
    small = 'budget="steps:8", corpus="tiny.jsonl"'
    program = "\n\n".join(code).replace('budget="tokens:50k"', small)
    program = program.replace("tokens:100k", "steps:16")
    write_corpus(tmp_path / "tiny.jsonl")
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path, env={"MPLBACKEND": "agg", "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ForCausalLM" in done.stdout
    assert (tmp_path / "my-model/README.md").exists()
