"""Errors of a trial under Ray Tune, without Ray: which end it, and which let it be tried again."""

from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from tiny import tiny_spec, tiny_tokens

import quarterhour.tune.cluster.trainable
from quarterhour.tune.cluster.trainable import TrialTrainable, to_param_space
from quarterhour.tune.ledger import TrialSpec
from quarterhour.tune.places import Resources
from quarterhour.tune.run_folder import ERROR, Row, Status

ONE_CORE = Resources(device="cpu", cpus=1, gpus=0, cpus_per_trial=1, gpus_per_trial=0)
H200_BYTES = 150_109_880_320
# As torch 2.11.0 said them on an H200: above a cap of 2,502 MB, and beside a process that had taken
# all but 601 MB of the card.
BEYOND_ITS_CAP = (
    "CUDA out of memory. Tried to allocate 96.00 MiB. GPU 0 has a total capacity of 139.80 GiB of"
    " which 136.80 GiB is free. Including non-PyTorch memory, this process has 2.99 GiB memory in"
    " use. 2.33 GiB allowed; Of the allocated memory 2.22 GiB is allocated by PyTorch."
)
BESIDE_ANOTHER = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 139.80 GiB of"
    " which 5.56 MiB is free. Including non-PyTorch memory, this process has 1.31 GiB memory in"
    " use. Process 1008 has 138.47 GiB memory in use. 34.48 GiB allowed; Of the allocated memory"
    " 551.40 MiB is allocated by PyTorch."
)
AT_A_CONTEXT = "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'"


@pytest.fixture
def spec(tmp_path: Path) -> TrialSpec:
    return tiny_spec(tmp_path, tiny_tokens(tmp_path))


def step_that_raises(
    error: Exception, spec: TrialSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, object]:
    """The first step of a trial whose training ends with `error`."""

    class Failing(quarterhour.tune.cluster.trainable.Trial):
        def rows(self) -> Generator[Row]:
            self.spec.write_config()
            raise error
            yield {}

    monkeypatch.setattr("quarterhour.tune.cluster.trainable.Trial", Failing)
    trainable = object.__new__(TrialTrainable)
    tokens = tiny_tokens(tmp_path)
    trainable.setup({"trial": to_param_space(spec)}, str(tokens.folder), ONE_CORE)
    return trainable.step()


def pretend_gpu(cap: float, reserved: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quarterhour.tune.machine.device_memory_bytes", lambda _: H200_BYTES)
    fraction = cap / H200_BYTES
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: fraction)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: round(reserved))


def test_a_trial_that_needs_more_than_its_share_is_infeasible(
    spec: TrialSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pretend_gpu(2502.2e6, 2415.9e6, monkeypatch)
    error = torch.OutOfMemoryError(BEYOND_ITS_CAP)
    assert step_that_raises(error, spec, tmp_path, monkeypatch) == {"done": True}
    result = spec.result()
    assert result
    assert (result.status, result.reason) == (
        Status.INFEASIBLE, f"out of memory: {BEYOND_ITS_CAP}"
    )  # fmt: skip
    assert not (spec.folder / ERROR).exists()


def test_a_trial_without_memory_on_a_cpu_is_infeasible(
    spec: TrialSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    step_that_raises(MemoryError("no room"), spec, tmp_path, monkeypatch)
    result = spec.result()
    assert result
    assert result.status is Status.INFEASIBLE


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError(BESIDE_ANOTHER), torch.AcceleratorError(AT_A_CONTEXT)]
)
def test_a_trial_whose_gpu_others_have_filled_can_be_tried_again(
    error: Exception, spec: TrialSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pretend_gpu(34.48 * 2**30, 596e6, monkeypatch)
    with pytest.raises(type(error)):
        step_that_raises(error, spec, tmp_path, monkeypatch)
    assert spec.result() is None
    assert str(error) in (spec.folder / ERROR).read_text()


@pytest.mark.parametrize(
    ("asked", "reserved", "reached"),
    [
        ("512 bytes", 1e9 - 512, True),
        ("512 bytes", 1e9 - 1024, False),
        ("20.00 KiB", 1e9 - 20 * 1024, True),
        ("1.46 GiB", 0, True),
        ("900.00 MiB", 0, False),
        ("what it needed", 0, True),
    ],
)
def test_the_cap_is_reached_by_what_is_reserved_and_asked_for(
    asked: str, reserved: float, reached: bool, monkeypatch: pytest.MonkeyPatch
):
    pretend_gpu(1e9, reserved, monkeypatch)
    error = torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {asked}. GPU 0 has")
    assert quarterhour.tune.cluster.trainable.reached_gpu_cap(error) is reached
