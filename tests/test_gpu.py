"""A trial on a pretended GPU: see `pretended_gpu` for what that can show."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
import torch
from architectures import EVERYTHING
from pretended_gpu import GPU, Gpu, Stream, gpu
from tiny import CPU, exact_rows, tiny_config, tiny_spec, tiny_tokens, train
from torch import Tensor

from quarterhour.data.batches import Batches
from quarterhour.data.tokens import TokenData
from quarterhour.tune.run_folder import Row, Status
from quarterhour.tune.run_reader import read_rows
from quarterhour.tune.training.evaluation import (
    continue_prompts,
    heldout_metrics,
    leaky_metrics,
)
from quarterhour.tune.training.probe import with_measured_steps
from quarterhour.tune.training.trainer import Trainer
from quarterhour.tune.training.trial import Trial

__all__ = ["gpu"]  # a fixture
SMALL = {"precision": "fp16", "model__positions": "rope", "model__dropout": 0.1}
WHOLE = SMALL | {
    "model__n_layers": 1, "data__batch_size": 16, "data__seq_len": 64,
    "budget__steps": 8, "budget__eval_every": 4, "budget__eval_batches": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenData:
    return tiny_tokens(tmp_path_factory.mktemp("corpus"))


def batches(n: int) -> Iterator[Tensor]:
    """The same random batches each time."""
    drawn = torch.randint(8_192, (n, 4, 17), generator=torch.Generator().manual_seed(0))
    return iter(drawn.to(GPU))


def losses(trainer: Trainer, given: Iterator[Tensor]) -> list[float]:
    """Of a run of steps, read after it."""
    return [float(loss) for loss, _ in [trainer.train_step(batch) for batch in given]]


def losses_of(row: Row) -> dict[str, float]:
    return {name: row[name] for name in row if "loss" in name}


def test_a_trial_on_a_gpu_has_the_rows_of_one_on_a_cpu_and_resumes_to_the_same(
    gpu: Gpu, tokens: TokenData, tmp_path: Path
):
    on_cpu, on_gpu, resumed = (tiny_spec(tmp_path / name, tokens, **WHOLE) for name in "abc")
    train(on_cpu, tokens)
    train(on_gpu, tokens, device=GPU)
    for row, expected in zip(exact_rows(on_gpu.folder), exact_rows(on_cpu.folder), strict=True):
        assert row.keys() == expected.keys()
        assert losses_of(row) == pytest.approx(losses_of(expected), rel=1e-5)
        assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)  # fp16's sums
    result = on_gpu.result()
    assert result
    assert result.status is Status.COMPLETE
    assert (on_gpu.folder / "samples.json").exists()
    first, *others = (row["captured"] for row in read_rows(on_gpu.folder))
    assert not first
    assert all(others)
    assert not any(row["captured"] for row in read_rows(on_cpu.folder))
    train(resumed, tokens, rows=2, device=GPU)
    train(resumed, tokens, device=GPU)
    assert exact_rows(resumed.folder) == exact_rows(on_gpu.folder)


def test_a_trial_whose_steps_cannot_be_captured_says_so_and_has_the_same_rows(
    gpu: Gpu, tokens: TokenData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    short = WHOLE | {"budget__steps": 4}
    captured, plain = (tiny_spec(tmp_path / name, tokens, **short) for name in "ab")
    train(captured, tokens, device=GPU)
    layer_norms = Trainer._layer_grad_norms  # pyright: ignore

    def waiting(trainer: Trainer) -> Tensor:
        norms = layer_norms(trainer)
        norms[0].item()  # in the middle of a step, after the gradients were unscaled
        return norms

    monkeypatch.setattr(Trainer, "_layer_grad_norms", waiting)
    trial = Trial(plain, tokens, GPU)
    list(trial.rows())
    (warning,) = trial.warnings
    assert "no CUDA graph (CUDA error: " in warning
    assert not any(row["captured"] for row in read_rows(plain.folder))
    assert exact_rows(plain.folder) == exact_rows(captured.folder)


def test_all_trials_of_a_process_share_their_streams(gpu: Gpu):
    made: list[int] = []
    for _ in range(3):
        losses(Trainer(tiny_config(**SMALL), GPU), batches(2))
        made.append(Stream.made)
    assert made[0] == made[1] == made[2] > 0


def test_each_step_of_a_window_keeps_its_own_loss_and_draws_its_own_dropout(gpu: Gpu):
    trainer = Trainer(tiny_config(**SMALL, optim__learning_rate=1e-9), GPU)
    again = [next(batches(1))] * 5
    assert len(set(losses(trainer, iter(again)))) == 5
    assert trainer.captured


def test_a_state_taken_up_before_or_after_the_capture_goes_on_alike(gpu: Gpu):
    trainer, fresh = (Trainer(tiny_config(**SMALL), GPU) for _ in range(2))
    given = list(batches(6))
    losses(trainer, iter(given[:3]))
    state = torch.utils._pytree.tree_map_only(Tensor, torch.clone, trainer.state_dict())  # pyright: ignore
    expected = losses(trainer, iter(given[3:]))
    fresh.load_state_dict(state)
    assert losses(fresh, iter(given[3:])) == expected
    trainer.load_state_dict(state)
    assert losses(trainer, iter(given[3:])) == expected


def test_a_replay_measures_its_own_step(gpu: Gpu):
    on_gpu, on_cpu = (
        Trainer(tiny_config(**SMALL | {"precision": "fp32"}), device) for device in (GPU, CPU)
    )
    for batch in batches(4):
        expected = on_cpu.train_step(batch.to(CPU), measure_layers=True)
        assert [*map(float, on_gpu.train_step(batch))] == pytest.approx([*map(float, expected)])
        layers = on_gpu.layer_grad_norms.tolist()
        assert layers == pytest.approx(on_cpu.layer_grad_norms.tolist(), rel=1e-5)


def test_measures_between_replays_change_nothing(gpu: Gpu):
    undisturbed, measured = (Trainer(tiny_config(**SMALL), GPU) for _ in range(2))
    expected = losses(undisturbed, batches(4))
    for batch, loss in zip(batches(4), expected, strict=True):
        measured.metrics(batch)
        measured.loss(batch)
        assert float(measured.train_step(batch)[0]) == loss


def test_the_learning_rate_of_a_replay_is_that_of_its_step(gpu: Gpu):
    trainer = Trainer(tiny_config(precision="fp32", optim__final_lr_fraction=0.0), GPU)
    trainer.step = 18  # of 20: the next step but one has no rate left
    losses(trainer, batches(2))
    before = [weight.detach().clone() for weight in trainer.model.parameters()]
    losses(trainer, batches(1))
    assert all(map(torch.equal, trainer.model.parameters(), before))


def test_an_overflow_leaves_weights_and_moments_alone_and_halves_the_scale(gpu: Gpu):
    trainer = Trainer(tiny_config(**SMALL), GPU)
    trainer.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**30)
    weights = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    for step, batch in enumerate(batches(3), start=1):
        assert not trainer.train_step(batch)[1].isfinite()
        assert trainer.captured
        assert trainer.scaler.get_scale() == 2.0 ** (30 - step)
        assert all(torch.equal(weights[k], w) for k, w in trainer.model.state_dict().items())
        state = trainer.optimizer.state_dict()["state"]
        assert not any(value.any() for values in state.values() for value in values.values())


def test_tensors_of_two_devices_do_not_meet(gpu: Gpu):
    with pytest.raises(RuntimeError, match="tensors of the CPU and of the GPU meet"):
        torch.ones(2, device=GPU) + torch.ones(2, device=CPU)


@pytest.mark.parametrize(
    ("precision", "positions", "dropout"),
    [*product(("fp32", "bf16", "fp16"), ("none", "rope"), (0.0, 0.1))],
)
def test_the_host_waits_in_no_step(gpu: Gpu, precision: str, positions: str, dropout: float):
    settings = {"precision": precision, "model__positions": positions, "model__dropout": dropout}
    trainer, given = Trainer(tiny_config(**settings), GPU), list(batches(3))
    gpu.waits.clear()
    for batch in given:
        trainer.train_step(batch)
    assert not gpu.waits
    assert trainer.captured


@pytest.mark.parametrize("feed_forward", ["swiglu", "moe"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_other_architectures_are_replayed_without_a_wait_and_as_on_a_cpu(
    gpu: Gpu, precision: str, feed_forward: str
):
    of_model = {"model__positions": "rope", "model__feed_forward": feed_forward}
    config = tiny_config(**EVERYTHING | of_model, precision=precision)
    on_gpu, on_cpu, given = Trainer(config, GPU), Trainer(config, CPU), list(batches(4))
    gpu.waits.clear()
    losses_on_gpu = [on_gpu.train_step(batch)[0] for batch in given]
    assert not gpu.waits
    assert on_gpu.captured
    expected = [float(on_cpu.train_step(batch.to(CPU))[0]) for batch in given]
    assert [*map(float, losses_on_gpu)] == pytest.approx(expected, rel=1e-4)


def test_a_window_and_both_validation_sets_wait_as_often_as_they_must(
    gpu: Gpu, tokens: TokenData, tmp_path: Path
):
    trial = Trial(tiny_spec(tmp_path, tokens, **SMALL), tokens, GPU)
    rows = trial.rows()
    next(rows)
    gpu.waits.clear()
    assert next(rows)["window_steps"] == 2
    # Places of the windows; the clock; mean, last and smallest loss, norm of the finite norms.
    assert gpu.waits == {"to the device": 1, "synchronize": 1, "to the host": 5}
    gpu.waits.clear()
    leaky_metrics(trial.trainer, trial.batches)
    assert gpu.waits == {"to the device": 2, "to the host": 2}
    gpu.waits.clear()
    heldout_metrics(trial.trainer, trial.batches)
    n_batches = len([*trial.batches.heldout()])
    assert gpu.waits == {"to the device": n_batches, "to the host": 1}
    gpu.waits.clear()
    continue_prompts(trial.trainer, tokens)
    assert gpu.waits == {"to the device": 2, "to the host": 1}


def test_a_trial_whose_heads_have_no_kernel_says_so(gpu: Gpu, tokens: TokenData, tmp_path: Path):
    for heads, said in ((4, True), (2, False)):  # of 4 and of 8 numbers, on a T4
        settings = {"precision": "fp16", "model__n_heads": heads}
        warnings = Trial(tiny_spec(tmp_path, tokens, **settings), tokens, GPU).warnings
        assert any("no attention kernel for heads of 4 numbers" in w for w in warnings) is said


def test_the_steps_of_a_budget_in_seconds_are_measured_without_a_wait_in_between(
    gpu: Gpu, tokens: TokenData, tmp_path: Path
):
    spec = tiny_spec(tmp_path, tokens, budget__steps=0, budget__seconds=0.5)
    measured = with_measured_steps(spec, Batches(tokens, spec.config.data, seed=0), GPU)
    assert measured.config.budget.steps == 500  # of a millisecond each, by the pretended clock
    assert gpu.waits["synchronize"] == 2
    assert "to the host" not in gpu.waits
