import errno
import json
import math
import random
import resource
import signal
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import EVERYTHING
from tiny import exact_rows, tiny_config, tiny_spec, tiny_tokens, train, write_spec
from torch.utils._python_dispatch import TorchDispatchMode

from quarterhour.data.batches import Batches
from quarterhour.data.tokens import TokenData
from quarterhour.model.sampling import PROMPTS
from quarterhour.tune.run_folder import SPEEDS, Status
from quarterhour.tune.run_reader import read_rows
from quarterhour.tune.training.memory import TOKEN_BYTES
from quarterhour.tune.training.trainer import Trainer
from quarterhour.tune.training.trial import Trial, train_batches

MOE = {"model__feed_forward": "moe", "optim__optimizer": "muon"}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenData:
    return tiny_tokens(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def finished(tokens: TokenData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an undisturbed trial."""
    spec = tiny_spec(tmp_path_factory.mktemp("undisturbed"), tokens)
    train(spec, tokens)
    return spec.folder


@pytest.fixture
def _checkpoint_every_row(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("quarterhour.tune.training.checkpoint.CHECKPOINT_SECONDS", -1.0)


def test_windows_tile_the_run_and_evaluations_are_where_the_reference_has_them(finished: Path):
    rows = read_rows(finished)
    assert [row["step"] for row in rows] == [1, 3, 5, 7, 9, 10, 11, 13, 15, 17, 19, 20]
    assert sum(row["window_steps"] for row in rows) == 20
    evaluated = [row["step"] for row in rows if "eval_loss" in row]
    assert evaluated == [1, 5, 9, 13, 17, 20]
    for row in rows:
        assert ("eval_loss" in row) == (row["step"] in evaluated)
        assert ("heldout_loss" in row) == (row["step"] in {*evaluated, 5, 10, 15, 20})


def test_rows_are_consistent(finished: Path, tokens: TokenData):
    rows = read_rows(finished)
    values = [value for row in rows for name, value in row.items() if name != "eval_calibration"]
    assert all(map(math.isfinite, values))
    last = rows[-1]
    assert last["tokens"] == 20 * 4 * 16
    assert last["flops"] == last["tokens"] * tiny_config().model.flops_per_token(16)
    assert last["epochs"] == pytest.approx(last["tokens"] / len(tokens.train))
    assert last["learning_rate"] == pytest.approx(3e-4)
    seconds = sum(row["step_seconds"] * row["window_steps"] for row in rows)
    assert last["seconds"] == pytest.approx(seconds)
    manifest = tokens.manifest
    bits = last["heldout_loss"] / math.log(2) * (manifest.heldout_tokens - 1)
    assert last["heldout_bits_per_byte"] == pytest.approx(bits / manifest.heldout_bytes)
    for row in rows:
        assert row["train_loss_min"] <= row["train_loss"]
        if row["window_steps"] == 1:
            assert row["train_loss"] == row["train_loss_last"] == row["train_loss_min"]


def test_training_learns(finished: Path):
    rows = read_rows(finished)
    assert rows[-1]["heldout_loss"] < rows[0]["heldout_loss"] - 0.3


def test_train_batch_measures_are_of_the_weights_before_the_update(finished: Path):
    first = read_rows(finished)[0]
    assert first["train_batch_loss"] == pytest.approx(first["train_loss"], rel=1e-6)
    assert first["train_batch_perplexity"] == pytest.approx(math.exp(first["train_loss"]))


def test_a_finished_folder_holds_everything(finished: Path):
    names = {path.name for path in finished.iterdir() if "tfevents" not in path.name}
    assert names == {"config.json", "metrics.jsonl", "result.json", "checkpoint.pt", "samples.json"}
    result = json.loads((finished / "result.json").read_text())
    assert result["status"] == "COMPLETE"
    rows = read_rows(finished)
    speeds = {name: statistics.median(row[name] for row in rows) for name in SPEEDS}
    assert result["metrics"] == rows[-1] | speeds


def test_samples_are_of_every_evaluation_the_last_first(finished: Path):
    samples = json.loads((finished / "samples.json").read_text())
    assert [sample["prompt"] for sample in samples] == list(PROMPTS) * 6
    assert [sample["step"] for sample in samples[::5]] == [20, 17, 13, 9, 5, 1]
    assert all(sample["continuation"] for sample in samples)


def test_calibration_bins_are_of_the_tokens_that_were_evaluated(finished: Path):
    evaluations = [row for row in read_rows(finished) if "eval_loss" in row]
    for row in evaluations:
        counts, confidences, correct = np.array(row["eval_calibration"])
        assert counts.sum() == 2 * 4 * 16
        assert confidences.sum() / counts.sum() == pytest.approx(row["eval_confidence"], rel=1e-5)
        assert correct.sum() / counts.sum() == pytest.approx(row["eval_accuracy"], rel=1e-5)
        assert (correct <= counts).all()


def test_gradients_of_layers_are_measured_at_evaluations_and_are_part_of_the_whole(
    finished: Path,
):
    for row in read_rows(finished):
        layers = [row[name] for name in row if name.startswith("grad_norm_layer")]
        assert len(layers) == (2 if "eval_loss" in row else 0)
        if layers and row["window_steps"] == 1:
            assert 0 < math.hypot(*layers) < row["grad_norm"]


@pytest.mark.usefixtures("_checkpoint_every_row")
@pytest.mark.parametrize("stops", [[1], [5], [11], [2, 3, 4]])
def test_a_resumed_trial_has_the_rows_of_an_undisturbed_one(
    stops: list[int], tokens: TokenData, finished: Path, tmp_path: Path
):
    spec = tiny_spec(tmp_path, tokens)
    for rows in stops:
        train(spec, tokens, rows)
        assert spec.result() is None
    train(spec, tokens)
    assert exact_rows(spec.folder) == exact_rows(finished)


def test_a_trial_that_was_closed_goes_on_from_its_last_row(
    tokens: TokenData, finished: Path, tmp_path: Path
):
    spec = tiny_spec(tmp_path, tokens)
    train(spec, tokens, rows=6)
    state = torch.load(spec.folder / "checkpoint.pt", weights_only=True)
    assert state["trainer"]["step"] == read_rows(spec.folder)[-1]["step"]
    train(spec, tokens)
    assert exact_rows(spec.folder) == exact_rows(finished)


def test_a_trial_without_a_checkpoint_starts_again(
    tokens: TokenData, finished: Path, tmp_path: Path
):
    spec = tiny_spec(tmp_path, tokens)
    train(spec, tokens, rows=6)
    (spec.folder / "checkpoint.pt").unlink()
    train(spec, tokens)
    assert exact_rows(spec.folder) == exact_rows(finished)


@pytest.mark.usefixtures("_checkpoint_every_row")
def test_a_cut_off_last_line_is_written_again(tokens: TokenData, finished: Path, tmp_path: Path):
    spec = tiny_spec(tmp_path, tokens)
    train(spec, tokens, rows=7)
    with (spec.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 15, "tok')
    train(spec, tokens)
    assert exact_rows(spec.folder) == exact_rows(finished)


@pytest.mark.slow
def test_a_trial_killed_at_random_moments_has_the_rows_of_an_undisturbed_one(
    tokens: TokenData, finished: Path, tmp_path: Path
):
    spec = tiny_spec(tmp_path, tokens)
    write_spec(tmp_path / "spec.json", spec, tokens)
    script = Path(__file__).parent / "train_tiny.py"
    command = [sys.executable, str(script), str(tmp_path / "spec.json")]
    rng = random.Random(1)
    kills = 0
    while spec.result() is None:
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout
        process.stdout.readline()  # it is about to train
        time.sleep(rng.uniform(0.0, 0.4))
        if kills < 8:
            process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.stdout.close()
    assert kills >= 5
    assert exact_rows(spec.folder) == exact_rows(finished)


def test_a_loss_that_is_not_finite_ends_the_trial_as_failed(tokens: TokenData, tmp_path: Path):
    spec = tiny_spec(tmp_path, tokens, optim__learning_rate=1e30)
    train(spec, tokens)
    result = spec.result()
    assert result
    assert result.status is Status.FAILED
    assert result.diverged
    assert result.final
    assert "after 3 updates" in (result.reason or "")
    assert len(read_rows(spec.folder)) == 2


def test_max_steps_stops_early_on_the_same_schedule(
    tokens: TokenData, finished: Path, tmp_path: Path
):
    spec = tiny_spec(tmp_path, tokens, budget__max_steps=8)
    train(spec, tokens)
    rows, whole = exact_rows(spec.folder), exact_rows(finished)
    assert [row["step"] for row in rows] == [1, 3, 5, 7, 8]
    assert rows[:4] == whole[:4]
    assert "heldout_loss" in rows[-1]


def test_bf16_trains_to_nearly_the_same_loss(tokens: TokenData, finished: Path, tmp_path: Path):
    spec = tiny_spec(tmp_path, tokens, precision="bf16")
    train(spec, tokens)
    for ours, theirs in zip(read_rows(spec.folder), read_rows(finished), strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=2e-2)


def test_updates_that_the_loss_scaler_skips_do_not_count_in_the_gradients_norm(
    tokens: TokenData, tmp_path: Path
):
    spec = tiny_spec(tmp_path, tokens, precision="fp16")
    trial = Trial(spec, tokens, torch.device("cpu"))
    trial.trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**25)
    norms = [row["grad_norm"] for row in trial.rows()]
    assert math.isnan(norms[0]), "the first update is skipped, and is a window of its own"
    assert not any(math.isinf(norm) for norm in norms)
    assert 0 < norms[-1] < 100


def test_batches_gathered_on_the_device_are_those_of_their_steps(tokens: TokenData):
    batches = Batches(tokens, tiny_config().data, seed=0)
    on_device = torch.from_numpy(tokens.train.astype(np.int32))
    steps = range(3, 9)
    for step, batch in zip(steps, train_batches(batches, on_device, steps), strict=True):
        assert batch.dtype == torch.int64
        assert np.array_equal(batch.numpy(), batches.batch_at(step))


def test_a_trial_on_the_cpu_holds_no_copy_of_the_tokens(tokens: TokenData, tmp_path: Path):
    large = TokenData(tokens.folder)
    large.train = np.resize(tokens.train, 2_000_000)
    trial = Trial(tiny_spec(tmp_path, tokens), large, torch.device("cpu"))
    tracemalloc.start()
    rows = trial.rows()
    next(rows)
    assert tracemalloc.get_traced_memory()[1] < 1.2 * TOKEN_BYTES * 2_000_000
    tracemalloc.stop()
    rows.close()


class ReadsForbidden(TorchDispatchMode):
    """Fails where a value is read from a tensor, which on a GPU would wait for it."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        assert "_local_scalar_dense" not in str(func)
        assert "nonzero" not in str(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_neither_a_step_nor_a_measure_reads_from_the_device(precision: str):
    trainer = Trainer(tiny_config(precision=precision), torch.device("cpu"))
    batch = torch.randint(8_192, (4, 17))
    with ReadsForbidden():
        trainer.train_step(batch)
        trainer.metrics(batch)
        loss = trainer.loss(batch)
    with pytest.raises(AssertionError), ReadsForbidden():
        float(loss)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def overwrite(path: Path) -> None:
    path.write_text("not a checkpoint")


@pytest.mark.usefixtures("_checkpoint_every_row")
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("damage", [truncate, flip_a_bit, overwrite])
def test_a_damaged_checkpoint_is_told_and_an_earlier_state_is_gone_on_from(
    damage: Callable[[Path], None],
    both: bool,
    tokens: TokenData,
    finished: Path,
    tmp_path: Path,
):
    spec = tiny_spec(tmp_path, tokens)
    train(spec, tokens, rows=6)
    damage(spec.folder / "checkpoint.pt")
    if both:
        damage(spec.folder / "checkpoint.previous.pt")
    trial = Trial(spec, tokens, torch.device("cpu"))
    begun = next(iter(rows := trial.rows()))
    assert len(trial.checkpoints.warnings) == 1 + both
    assert all("training goes on from an" in text for text in trial.checkpoints.warnings)
    assert (begun["step"] == 1) == both
    list(rows)
    assert exact_rows(spec.folder) == exact_rows(finished)


@pytest.mark.usefixtures("_checkpoint_every_row")
def test_a_disk_that_is_full_for_a_while_ends_no_trial(
    tokens: TokenData, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    spec = tiny_spec(tmp_path, tokens)
    train(spec, tokens, rows=3)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    trial = Trial(spec, tokens, torch.device("cpu"))
    rows = trial.rows()
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        for _ in range(3):
            next(rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "no checkpoint at step" in trial.checkpoints.warnings[-1]
    rows.close()
    train(spec, tokens)
    assert exact_rows(spec.folder) == exact_rows(finished)


@pytest.mark.parametrize(
    "values",
    [
        {"model__dropout": 0.2},
        *(
            {**parts, "precision": p}
            for p in ("fp32", "bf16", "fp16")
            for parts in (MOE, EVERYTHING)
        ),
    ],
    ids=lambda values: "-".join(map(str, [*values.values()][:1] + [*values.values()][-1:])),
)
def test_a_trial_with_dropout_or_other_parts_resumes_to_the_same_rows(
    values: dict[str, Any], tokens: TokenData, tmp_path: Path
):
    undisturbed = tiny_spec(tmp_path, tokens, "undisturbed", **values)
    train(undisturbed, tokens)
    spec = tiny_spec(tmp_path, tokens, "stopped", **values)
    for rows in (2, 3):
        train(spec, tokens, rows)
    train(spec, tokens)
    assert exact_rows(spec.folder) == exact_rows(undisturbed.folder)
    without = tiny_spec(tmp_path, tokens, "without")
    train(without, tokens)
    assert exact_rows(without.folder) != exact_rows(undisturbed.folder)


def test_averaged_weights_are_evaluated_beside_the_raw_ones_and_change_nothing(
    tokens: TokenData, finished: Path, tmp_path: Path
):
    spec = tiny_spec(tmp_path, tokens, optim__ema_decay=0.9)
    train(spec, tokens)
    rows = exact_rows(spec.folder)
    losses = [row.pop("ema_heldout_loss") for row in rows if "heldout_loss" in row]
    assert rows == exact_rows(finished)
    assert losses[0] == pytest.approx(
        rows[0]["heldout_loss"], rel=1e-6
    )  # after one update there is one to average
    assert losses[-1] > rows[-1]["heldout_loss"]  # it lags, and the loss still falls


def test_the_average_is_that_of_the_weights_after_each_update(tokens: TokenData):
    trainer = Trainer(tiny_config(optim__ema_decay=0.8), torch.device("cpu"))
    seen: list[torch.Tensor] = []
    for batch_BT in train_batches(Batches(tokens, trainer.config.data, 0), None, range(5)):
        trainer.train_step(batch_BT)
        seen.append(trainer.model.head_weight.detach().clone())
    factors = [0.8 ** (4 - n) for n in range(5)]
    expected = sum(f * w for f, w in zip(factors, seen, strict=True)) / sum(factors)
    with trainer.averaged():
        torch.testing.assert_close(trainer.model.head_weight.detach(), expected)
    torch.testing.assert_close(trainer.model.head_weight.detach(), seen[-1], rtol=0, atol=0)


def test_a_key_that_another_run_has_finished_is_adopted(tokens: TokenData, tmp_path: Path):
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "experiment.json").write_text("{}")
    one, two = (tiny_spec(tmp_path / run, tokens) for run in ("one", "two"))
    train(one, tokens)
    train(two, tokens)
    result = two.result()
    assert result
    assert result.adopted_from == str(one.folder)
    assert read_rows(two.folder) == read_rows(one.folder)


@pytest.mark.usefixtures("_checkpoint_every_row")
@pytest.mark.parametrize("lost", [1, 7])
def test_a_checkpoint_whose_rows_are_lost_is_not_gone_on_from(
    lost: int, tokens: TokenData, finished: Path, tmp_path: Path
):
    spec = tiny_spec(tmp_path, tokens)
    train(spec, tokens, rows=7)
    lines = (spec.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (spec.folder / "metrics.jsonl").write_text("".join(lines[:-lost]))
    trial = Trial(spec, tokens, torch.device("cpu"))
    list(trial.rows())
    assert "its rows are missing" in trial.checkpoints.warnings[-1]
    assert exact_rows(spec.folder) == exact_rows(finished)


def test_a_trial_without_room_for_its_last_checkpoint_is_complete(
    tokens: TokenData, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def no_space(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    spec = tiny_spec(tmp_path, tokens)
    monkeypatch.setattr(torch, "save", no_space)
    train(spec, tokens)
    result = spec.result()
    assert result
    assert result.status is Status.COMPLETE
    assert exact_rows(spec.folder) == exact_rows(finished)
    assert not list(spec.folder.glob("*checkpoint*"))


@pytest.mark.usefixtures("_checkpoint_every_row")
def test_a_trial_killed_between_two_renames_goes_on_from_the_checkpoint_before(
    tokens: TokenData, finished: Path, tmp_path: Path
):
    spec = tiny_spec(tmp_path, tokens)
    train(spec, tokens, rows=5)
    (spec.folder / "checkpoint.pt").replace(spec.folder / "checkpoint.previous.pt")
    trial = Trial(spec, tokens, torch.device("cpu"))
    rows = trial.rows()
    assert next(rows)["step"] == 10
    assert not trial.checkpoints.warnings
    list(rows)
    assert exact_rows(spec.folder) == exact_rows(finished)
    assert not (spec.folder / "checkpoint.previous.pt").exists()


def test_without_dropout_nothing_is_drawn_and_with_it_only_training_changes():
    batch = torch.randint(8_192, (4, 17))
    device = torch.device("cpu")
    plain, dropping = (Trainer(tiny_config(model__dropout=share), device) for share in (0.0, 0.5))
    before = torch.get_rng_state()
    loss = plain.train_step(batch)[0]
    assert torch.equal(torch.get_rng_state(), before)
    fresh = Trainer(tiny_config(), device)
    assert dropping.loss(batch) == fresh.loss(batch)
    assert dropping.metrics(batch)[0] == fresh.metrics(batch)[0]
    assert dropping.train_step(batch)[0] != loss
    assert fresh.train_step(batch)[0] == loss
