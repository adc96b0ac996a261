"""A trial of an earlier run as a starting point, wherever the name of a configuration may stand."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_cli import Quarterhour, quarterhour  # noqa: F401
from tiny import write_corpus

from quarterhour.search_spaces.profiles import PAPER, QUICK
from quarterhour.search_spaces.reference import SIX, reference_configurations, rescaled
from quarterhour.tune.experiment import Experiment, ExperimentRequest, build_experiment
from quarterhour.tune.ledger import read_spec
from quarterhour.tune.places import plan_resources
from quarterhour.tune.search.settings import SearchRequest, build_search

TRIAL = "runs/mine/small_model/seed0"
TRAIN = (
    "run small_model --set optim.learning_rate=2e-3 --corpus tiny.jsonl --max-steps 3 --name mine"
    " --protocol as-described --precision fp32 --set data.batch_size=2 --set data.seq_len=16"
    " --cpus-per-trial 1"
)


@pytest.fixture
def trial(quarterhour: Quarterhour, tmp_path: Path) -> Path:  # noqa: F811
    """A trained trial below the working directory."""
    write_corpus(tmp_path / "tiny.jsonl")
    assert quarterhour(*TRAIN.split())[0] == 0
    return Path(TRIAL)


def requested(**asked: Any) -> Experiment:
    """The experiment of a grid."""
    defaults: dict[str, Any] = {
        "kind": "grid", "profile": None, "protocol": None, "corpus": None, "tokenizer": None,
        "values": {}, "seeds": (0,), "resources": plan_resources(None, None), "name": None,
        "runs": Path("runs"),
    }  # fmt: skip
    return build_experiment(ExperimentRequest(**defaults | asked))


@pytest.mark.usefixtures("trial")
def test_a_trial_in_a_names_place_is_that_trial_and_takes_changes(
    quarterhour: Quarterhour,  # noqa: F811
):
    code, output, errors = quarterhour("run", TRIAL, "--cpus-per-trial", "1")
    assert (code, errors) == (0, "")
    assert "1 of them finished before" in " ".join(output.split())
    again = Path("runs/run-small_model/small_model")
    assert read_spec(again / "seed0").key == read_spec(Path(TRIAL)).key
    assert quarterhour("run", TRIAL, "--seed", "5", "--cpus-per-trial", "1")[0] == 0
    assert read_spec(again / "seed5").config == replace(read_spec(Path(TRIAL)).config, seed=5)
    changed = "--set optim.beta1=0.8 --budget tokens:200 --cpus-per-trial 1 --name changed"
    assert quarterhour("run", TRIAL, *changed.split())[0] == 0
    config, before = (
        read_spec(Path("runs/changed/small_model/seed0")).config,
        read_spec(Path(TRIAL)).config,
    )
    assert (config.optim.beta1, config.optim.learning_rate) == (0.8, 2e-3)
    assert config.budget.trained_steps == 200 // (before.data.batch_size * before.data.seq_len)


@pytest.mark.parametrize("name", SIX)
@pytest.mark.parametrize("protocol", ["as-run", "as-described"])
def test_from_profile_to_profile_the_studys_ratios_stay(name: str, protocol: str):
    here, there = (reference_configurations(profile, protocol)[name] for profile in (QUICK, PAPER))
    alike = {"precision": here.precision, "model.vocab_size": here.model.vocab_size}
    assert rescaled(here, QUICK, PAPER) == there.with_values(alike | {"budget.eval_batches": 20})
    assert rescaled(rescaled(here, QUICK, PAPER), PAPER, QUICK) == here
    stopped = here.with_values({"budget.max_steps": 30})
    assert rescaled(stopped, QUICK, PAPER).budget.max_steps == 200


def test_what_is_scaled_and_what_is_carried_over_is_told(trial: Path):
    given = {"profile": "paper", "corpus": "tiny.jsonl", "tokenizer": "builtin"}
    experiment = requested(chosen=(str(trial),), **given)
    scaled, kept = experiment.remarks
    assert scaled.startswith(f"{TRIAL}: from profile quick to paper: model.d_model 64 → 256, ")
    assert "optim.learning_rate 0.002 → 0.0005" in scaled
    assert "model.positions rope, optim.beta2 0.95" in kept
    config = experiment.configurations["small_model"]
    assert (config.model.d_model, config.model.positions) == (256, "rope")


def test_a_grid_of_trials_takes_the_firsts_data_and_tells_of_other_data(
    trial: Path,
    quarterhour: Quarterhour,  # noqa: F811
    tmp_path: Path,
):
    write_corpus(tmp_path / "other.jsonl", documents=120)
    other = (
        TRAIN.replace("tiny", "other").replace("mine", "others").replace("small_model", "high_lr")
    )
    assert quarterhour(*other.split())[0] == 0
    (search, _) = Path("runs/search/0014"), trial.rename("runs/0014")
    experiment = _search(Path("tiny.jsonl"))
    with experiment.opened():
        Path("runs/0014").rename(search)
    content = json.loads((search / "config.json").read_text())
    (search / "config.json").write_text(json.dumps(content | {"name": "0014"}))
    chosen = (str(search), "runs/others/high_lr/seed0", "baseline")
    grid = requested(chosen=chosen)
    assert [*grid.configurations] == ["search-0014", "high_lr", "baseline"]
    assert grid.folder == Path("runs/grid-search-0014-high_lr-baseline")
    assert grid.profile.data.corpus == "tiny.jsonl"
    (told,) = grid.remarks
    assert told.startswith("runs/others/high_lr/seed0: it was trained on other data: fingerprint ")
    with pytest.raises(ValueError, match="two of the configurations are called high_lr"):
        requested(chosen=("runs/others/high_lr/seed0", "high_lr"))


def _search(corpus: Path) -> Experiment:
    asked: Any = {"values": {}, "seeds": (0,), "runs": Path("runs"), "tokenizer": None}
    request = SearchRequest(
        profile="quick", corpus=str(corpus), space="open-ended", budget="steps:8", name="search",
        objective="heldout_loss", scheduler=None, resources=plan_resources(None, None), **asked,
    )  # fmt: skip
    return build_search(request)[0]


def test_a_trial_of_another_version_of_the_numerics_is_told(trial: Path):
    file = Path("runs/mine/experiment.json")
    file.write_text(file.read_text().replace('"numerics_version": 3', '"numerics_version": 1'))
    (told,) = requested(chosen=(str(trial),)).remarks
    assert "trained by version 1 of the numerics, and this is 3" in told


BAD_INPUT = [
    ("run runs/mine", "runs/mine is no trial's folder in its run's"),
    ("run runs/nosuch", "unknown configuration 'runs/nosuch': use one of baseline, high_lr"),
    ("run baseline --budget tokens:8", "it must be at least 4"),
    ("run baseline --budget 8", "--budget is '8'"),
    ("run baseline --seed -1", "Invalid value for '--seed'"),
    ("grid --configurations baseline,,high_lr", ". is no trial's folder in its run's"),
    ("grid --configurations baseline,baseline", "two of the configurations are called baseline"),
    (f"run {TRIAL} --corpus missing.jsonl", "corpus missing.jsonl: no such file"),
]


@pytest.mark.usefixtures("trial")
def test_what_is_no_starting_point_is_told_in_one_line(quarterhour: Quarterhour):  # noqa: F811
    for command, message in BAD_INPUT:
        code, _, errors = quarterhour(*command.split())
        assert code == 2
        assert message in errors
        assert len(errors.splitlines()) == 1
