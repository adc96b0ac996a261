"""A trial made longer is the trial that was asked for that length from the start."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_cli import Quarterhour, quarterhour  # noqa: F401
from tiny import exact_rows, tiny_config, tiny_spec, tiny_tokens, train, write_corpus

from quarterhour.data.tokens import TokenData
from quarterhour.search_spaces.point import NUMERICS_VERSION
from quarterhour.tune.extension import Extension, longer, plan_extension, shared_steps
from quarterhour.tune.ledger import TrialSpec, prepare_trials, read_spec
from quarterhour.tune.run_reader import provenance, read_rows
from quarterhour.tune.start import PastTrial

DECAYS: dict[str, Any] = {
    "optim__schedule": "warmup-stable-decay",
    "optim__warmup_fraction": 0.15,
    "optim__decay_fraction": 0.4,
    "model__dropout": 0.1,
}
STAYS: dict[str, Any] = {"optim__schedule": "constant", "optim__warmup_fraction": 0.15}
CASES = [DECAYS, STAYS, DECAYS | {"optim__optimizer": "muon"}]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenData:
    return tiny_tokens(tmp_path_factory.mktemp("corpus"))


def extension_of(short: TrialSpec, folder: Path, **told: Any) -> Extension:
    """How `short` goes on, in another folder."""
    experiment = {"numerics_version": NUMERICS_VERSION, "resources": {"device": "cpu"}} | told
    spec = replace(short, config=longer(short.config, "steps:50"), folder=folder)
    past = PastTrial(spec=short, run=folder.parent, experiment=experiment)
    return plan_extension(past, spec, "cpu")


def state(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["trainer"]


def assert_equal_states(one: Path, other: Path) -> None:
    torch.testing.assert_close(state(one), state(other), rtol=0, atol=0)


@pytest.mark.parametrize("values", CASES)
@pytest.mark.parametrize("interrupted", [False, True])
def test_an_extended_trial_is_bit_for_bit_the_one_of_that_length(
    values: dict[str, Any], interrupted: bool, tokens: TokenData, tmp_path: Path
):
    short = tiny_spec(tmp_path / "short", tokens, **values)
    if interrupted:
        train(short, tokens, rows=8)
    train(short, tokens)
    extension = extension_of(short, tmp_path / "long/tiny/seed0")
    extension.begin()
    if interrupted:
        train(extension.spec, tokens, rows=2)
        assert not extension.spec.result()
    train(extension.spec, tokens)
    whole = replace(extension.spec, folder=tmp_path / "whole/tiny/seed0")
    train(whole, tokens)
    assert extension.step == (20 if short.config.optim.schedule == "constant" else 13)
    assert_equal_states(extension.spec.folder, whole.folder)
    ours, theirs = exact_rows(extension.spec.folder), exact_rows(whole.folder)
    assert [row for row in ours if row["step"] <= extension.step] == [
        row for row in exact_rows(short.folder) if row["step"] <= extension.step
    ]
    first = next(row["step"] for row in theirs if row["step"] > extension.step)
    assert [r for r in ours if r["step"] > first] == [r for r in theirs if r["step"] > first]
    assert provenance(extension.spec.folder)[0]["extended_from"] == {
        "folder": str(short.folder), "step": extension.step,
    }  # fmt: skip


def test_each_stands_for_the_other_and_is_trained_once(tokens: TokenData, tmp_path: Path):
    short = tiny_spec(tmp_path / "short", tokens, **DECAYS)
    train(short, tokens)
    extension = extension_of(short, tmp_path / "long/tiny/seed0")
    extension.begin()
    train(extension.spec, tokens)
    asked = replace(extension.spec, folder=tmp_path / "other/tiny/seed0")
    assert not prepare_trials([asked], tmp_path)
    assert asked.result()
    shutil.rmtree(extension.spec.folder)
    assert not prepare_trials([extension.spec], tmp_path)
    assert (asked.folder / "checkpoint.before_decay.pt").exists()  # to be extended once more


def test_a_decaying_trial_alone_keeps_a_second_checkpoint(tokens: TokenData, tmp_path: Path):
    for number, (values, kept) in enumerate(
        [(DECAYS, True), (STAYS, False), ({}, False), (DECAYS | {"budget__max_steps": 8}, False)]
    ):
        spec = tiny_spec(tmp_path / str(number), tokens, **values)
        train(spec, tokens)
        assert (spec.folder / "checkpoint.before_decay.pt").exists() == kept


@given(
    st.sampled_from(["constant", "warmup-stable-decay"]),
    st.floats(0, 0.9),
    st.floats(0.01, 1),
    st.integers(8, 500),
    st.integers(1, 3000),
)
def test_both_have_the_same_rates_up_to_the_decay(
    schedule: str, warmup: float, decay: float, steps: int, more: int
):
    short = tiny_config(
        optim__schedule=schedule, optim__warmup_fraction=warmup, optim__decay_fraction=decay,
        budget__steps=steps,
    )  # fmt: skip
    long = longer(short, f"steps:{steps + more}")
    until = short.optim.full_rate_steps(steps)
    assert until <= shared_steps(short, long) <= steps
    assert long.optim.full_rate_steps(steps + more) >= until


@pytest.mark.parametrize("schedule", ["cosine", "linear", "cyclical"])
def test_other_schedules_cannot_be_extended(schedule: str):
    with pytest.raises(ValueError, match=f"optim.schedule is {schedule}, in which every step"):
        longer(tiny_config(optim__schedule=schedule), "steps:40")


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("steps:20", "20 steps: it is the whole length, and must be more than the trial's 20"),
        ("steps:2", "it must be at least 4"),
        ("seconds:20", "--extend is seconds:20: give steps, tokens or flops"),
        ("much", "--extend is 'much'"),
    ],
)
def test_a_length_that_is_none_is_refused(budget: str, message: str):
    with pytest.raises(ValueError, match=message):
        longer(tiny_config(**STAYS), budget)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"numerics_version": 1}, "numerics version 1, and this is"),
        ({"resources": {"device": "cuda"}}, "device cuda, and this is cpu"),
        ({"resources": None}, "device None, and this is cpu"),
    ],
)
def test_what_was_trained_otherwise_is_refused(
    told: dict[str, Any], message: str, tokens: TokenData, tmp_path: Path
):
    with pytest.raises(ValueError, match=message):
        extension_of(tiny_spec(tmp_path, tokens, **STAYS), tmp_path / "long", **told)


def test_without_a_usable_checkpoint_from_before_the_decay_it_is_refused(
    tokens: TokenData, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    spec = tiny_spec(tmp_path, tokens, **DECAYS)
    train(spec, tokens)
    kept = spec.folder / "checkpoint.before_decay.pt"
    content = kept.read_bytes()
    kept.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="has no usable checkpoint of at most 14 steps"):
        extension_of(spec, tmp_path / "long")
    assert "checkpoint.before_decay.pt cannot be used" in capfd.readouterr().err
    kept.rename(tmp_path / "aside.pt")
    (tmp_path / "aside.pt").write_bytes(content)
    kept.symlink_to(tmp_path / "aside.pt")
    with pytest.raises(ValueError, match="has no usable checkpoint"):
        extension_of(spec, tmp_path / "long")
    kept.unlink()  # as in a folder of a version before
    with pytest.raises(ValueError, match="--runs again"):
        extension_of(spec, tmp_path / "long")
    assert not (tmp_path / "long").exists()


LONGER = "run runs/mine/baseline/seed0 --extend steps:12 --cpus-per-trial 1"
SHORT = (
    "run baseline --set optim.schedule=constant --corpus tiny.jsonl --budget steps:6 --name mine"
    " --precision fp32 --set data.batch_size=2 --set data.seq_len=16 --cpus-per-trial 1"
)


def test_a_user_extends_a_trial_once_and_reads_what_carries_over(
    quarterhour: Quarterhour,  # noqa: F811
    tmp_path: Path,
):
    write_corpus(tmp_path / "tiny.jsonl")
    assert quarterhour(*SHORT.split())[0] == 0
    for changed in ("--seed 3", "--set optim.beta1=0.8", "--budget steps:9", "--max-steps 4"):
        code, _, errors = quarterhour(*LONGER.split(), *changed.split())
        assert code == 2
        assert "--extend goes on with a trial as it is" in errors
    assert quarterhour("run", "baseline", "--extend", "steps:12")[0] == 2
    code, output, errors = quarterhour(*LONGER.split())
    assert (code, errors) == (0, "")
    assert "runs/mine/baseline/seed0: goes on after step 6 of 6, to 12" in output
    folder = Path("runs/run-baseline-extend-steps:12".replace(":", "-")) / "baseline/seed0"
    assert [row["step"] for row in read_rows(folder)][-1] == 12
    assert read_spec(folder).config.budget.steps == 12
    before = (folder / "result.json").read_bytes()
    shutil.rmtree("runs/mine")  # what it went on from is needed no more
    Path("runs/run-baseline-extend-steps-12").rename("runs/mine")
    assert json.loads(before)["status"] == "COMPLETE"
    code, output, errors = quarterhour("run", "runs/mine/baseline/seed0", "--cpus-per-trial", "1")
    assert code == 0
    assert "1 of them finished before" in " ".join(output.split())
