import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quarterhour.search_spaces.profiles import PAPER, QUICK
from quarterhour.tune.cli import main
from quarterhour.tune.machine import CUDA_CONTEXT_BYTES, cap_gpu_memory, gpu_count, why_no_gpu
from quarterhour.tune.places import Resources, TooLargeError, plan_resources
from quarterhour.tune.training.memory import ACCURACY, reserved_bytes
from quarterhour.tune.training.sharing import SharedDevice

T4_BYTES = 15_828_320_256  # what torch calls the total memory of a Tesla T4
FOUR_PLACES = Resources(device="cpu", cpus=4, gpus=0, cpus_per_trial=1, gpus_per_trial=0)
QUARTERS = Resources(device="cuda", cpus=8, gpus=1, cpus_per_trial=1, gpus_per_trial=0.25)
BY_MEMORY = Resources(
    device="cuda", cpus=8, gpus=1, cpus_per_trial=0.4, gpus_per_trial=0.05, by_memory=True
)


@pytest.fixture
def _t4(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU, as far as planning sees it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for module in ("places", "machine"):
        monkeypatch.setattr(f"quarterhour.tune.{module}.device_memory_bytes", lambda _: T4_BYTES)
    monkeypatch.setattr("quarterhour.tune.places.compute_capability", lambda _: (7, 5))


@pytest.mark.parametrize(
    ("needed", "memory"), [(1e9, 2.5e9), (2.5e9, 2.5e9), (2.6e9, 5e9), (7.6e9, 1e10), (1e10, 1e10)]
)
def test_a_trial_on_the_cpu_takes_the_memory_of_as_many_places_as_it_needs(
    needed: float, memory: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("quarterhour.tune.places.device_memory_bytes", lambda _: 10_000_000_000)
    monkeypatch.setattr("quarterhour.tune.places.peak_bytes", lambda *_: needed)
    assert FOUR_PLACES.for_trial(QUICK.baseline) == {"cpu": 1, "gpu": 0, "memory": memory}
    assert FOUR_PLACES.places_of(QUICK.baseline) == memory / 2.5e9


@pytest.mark.usefixtures("_t4")
def test_a_trial_that_cannot_fit_its_share_is_refused(monkeypatch: pytest.MonkeyPatch):
    assert QUARTERS.for_trial(PAPER.baseline) == {"cpu": 1, "gpu": 0.25}
    large = PAPER.baseline.with_values({"data.batch_size": 32})
    with pytest.raises(TooLargeError, match=r"needs 5\.\d GB, and a trial has 4\.0 GB"):
        QUARTERS.for_trial(large)
    assert BY_MEMORY.for_trial(large)["gpu"] == pytest.approx(0.4)
    assert BY_MEMORY.places_of(large) == 8
    assert QUARTERS.places_of(PAPER.baseline) == 1


@pytest.mark.usefixtures("_t4")
@pytest.mark.parametrize("batch_size", [1, 8, 16, 32, 64])
def test_auto_gives_the_predicted_memory_with_its_inaccuracy_and_no_step_more(batch_size: int):
    config = PAPER.baseline.with_values({"data.batch_size": batch_size})
    share = BY_MEMORY.for_trial(config)["gpu"]
    needed = (reserved_bytes(config, (7, 5)) + CUDA_CONTEXT_BYTES) * ACCURACY / T4_BYTES
    assert needed <= share < needed + 0.05


@pytest.mark.usefixtures("_t4")
def test_auto_has_room_for_four_of_the_papers_baseline_and_refuses_what_no_gpu_holds():
    assert math.floor(1 / BY_MEMORY.for_trial(PAPER.baseline)["gpu"]) >= 4
    with pytest.raises(TooLargeError):
        BY_MEMORY.for_trial(PAPER.baseline.with_values({"data.batch_size": 500}))


@pytest.mark.usefixtures("_t4")
def test_auto_is_planned_for_the_smallest_share():
    planned = plan_resources(None, "auto")
    assert (planned.device, planned.by_memory, planned.gpus_per_trial) == ("cuda", True, 0.05)
    assert planned.threads == 1
    assert not plan_resources(None, "0.25").by_memory


@pytest.mark.parametrize("asked", ["auto", "1", "nan", "half", "-1"])
def test_more_than_the_machine_has_is_an_error_at_once(asked: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=rf"--gpus-per-trial is {asked}: this machine has 0 GPUs"):
        plan_resources(None, asked)


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up nvidia-smi that finds a T4; the torch of these tests may be built without CUDA."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return write_driver(tmp_path, 'echo "Tesla T4, 450.51.06"')


def write_driver(folder: Path, command: str) -> Path:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(0o755)
    return path


def pretend_cuda_build(devices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch is where the driver is too old for it: NVML counts the card, CUDA does not start."""
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)


@pytest.mark.usefixtures("driver")
def test_a_torch_without_cuda_beside_a_graphics_card_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    told = rf"cannot use the Tesla T4: torch {re.escape(torch.__version__)} is built without CUDA"
    assert re.search(told, why_no_gpu() or "")
    for asked in (None, "auto", "1", "half"):
        with pytest.raises(ValueError, match=told):
            plan_resources(None, asked)
    for asked in ("0", "0.0", 0):
        assert plan_resources(None, asked).device == "cpu"


@pytest.mark.usefixtures("driver")
def test_a_driver_too_old_for_torch_is_told(monkeypatch: pytest.MonkeyPatch):
    pretend_cuda_build(1, monkeypatch)
    assert gpu_count() == 0
    assert re.search(r"driver 450.51.06 is too old for CUDA 13.0 of torch", why_no_gpu() or "")


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(
    ("visible", "told"),
    [
        ("", None),
        ("-1", None),
        ("7", "CUDA_VISIBLE_DEVICES is 7, which is none"),
        ("GPU-8f88c2fb", "CUDA_VISIBLE_DEVICES is GPU-8f88c2fb"),
    ],
)
def test_cards_that_are_hidden_are_not_missed_and_a_wrong_name_is(
    visible: str, told: str | None, monkeypatch: pytest.MonkeyPatch
):
    pretend_cuda_build(0, monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    reason = why_no_gpu()
    assert told in reason if reason and told else reason is told
    if told is None:
        assert plan_resources(None, None).device == "cpu"


def test_a_driver_that_finds_no_card_is_no_card(driver: Path):
    write_driver(driver.parent, 'echo "No devices were found"; exit 6')
    assert why_no_gpu() is None
    driver.unlink()
    assert why_no_gpu() is None


@pytest.mark.usefixtures("_t4", "driver")
def test_a_card_that_torch_can_use_is_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert why_no_gpu() is None
    assert plan_resources(None, None).device == "cuda"


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize("command", ["grid", "run baseline", "search"])
def test_each_command_ends_with_one_line_where_torch_cannot_use_the_card(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    pretend_cuda_build(1, monkeypatch)
    monkeypatch.setattr("sys.argv", ["quarterhour", *command.split(), "--runs", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("quarterhour: torch cannot use the Tesla T4: driver 450.51.06 is too")
    assert line.endswith("; or pass --gpus-per-trial 0 to train on the CPU")


@pytest.mark.usefixtures("_t4")
@given(share=st.floats(0.06, 1))  # less would not hold CUDA's context
def test_all_allocators_and_contexts_together_stay_within_the_gpu(share: float):
    caps: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "set_per_process_memory_fraction", caps.append)
        cap_gpu_memory(share)
    assert caps[0] > 0
    assert caps[0] * T4_BYTES + CUDA_CONTEXT_BYTES == pytest.approx(share * T4_BYTES)


def test_processes_that_left_or_were_killed_do_not_share_the_device():
    shared = SharedDevice(torch.device("cpu"))
    script = """
import torch
from quarterhour.tune.training.sharing import SharedDevice
with SharedDevice(torch.device("cpu")).taken():
    print("taken", flush=True)
    input()
"""
    command, pipe = [sys.executable, "-c", script], subprocess.PIPE
    assert shared.trials() == 0
    with shared.taken():
        with (
            subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as leaving,
            subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as killed,
        ):
            for other in (leaving, killed):
                assert other.stdout
                assert other.stdout.readline() == "taken\n"
            assert shared.trials() == 3
            leaving.communicate("\n")
            assert shared.trials() == 2
            killed.kill()
        assert shared.trials() == 1
    assert shared.trials() == 0


@pytest.mark.parametrize(
    "names",
    [
        ("0", "1"),
        ("1,0", "0,1"),
        ("GPU-8f88c2fb-1183", "GPU-0b1d2c3e-4f50"),
        ("MIG-GPU-8f88c2fb/1/0", "MIG-GPU-8f88c2fb/2/0"),
    ],
)
def test_cards_and_their_parts_are_told_by_their_names(
    names: tuple[str, str], monkeypatch: pytest.MonkeyPatch
):
    first, other = names
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", first)
    with SharedDevice(torch.device("cuda")).taken():
        assert SharedDevice(torch.device("cuda")).trials() == 1
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", other)
        assert SharedDevice(torch.device("cuda")).trials() == 0


def test_a_part_of_a_card_and_the_card_do_not_meet(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-GPU-8f88c2fb/1/0")
    with SharedDevice(torch.device("cuda")).taken():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-GPU-8f88c2fb")
        assert SharedDevice(torch.device("cuda")).trials() == 0


def test_a_gpu_is_told_from_others_and_from_the_cpu(monkeypatch: pytest.MonkeyPatch):
    with SharedDevice(torch.device("cpu")).taken():
        assert SharedDevice(torch.device("cuda")).trials() == 0
    with SharedDevice(torch.device("cuda")).taken():
        assert SharedDevice(torch.device("cuda")).trials() == 1
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # as Ray names the one that has no name
        assert SharedDevice(torch.device("cuda")).trials() == 1
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
        assert SharedDevice(torch.device("cuda")).trials() == 0


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
def test_the_peak_of_a_trial_is_not_that_of_the_one_before_it_in_the_process():
    script = """
import torch
from quarterhour.tune.machine import keep_freed_memory, peak_memory_bytes, reset_peak_memory
keep_freed_memory()
cpu = torch.device("cpu")
reset_peak_memory(cpu)
before = peak_memory_bytes(cpu)
torch.ones(200, 2**20)
large = peak_memory_bytes(cpu) - before
reset_peak_memory(cpu)
torch.ones(20, 2**20)
print(large // 2**20, (peak_memory_bytes(cpu) - before) // 2**20)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    large, small = map(int, done.stdout.split())
    assert 800 <= large < 830
    assert 80 <= small < 110
