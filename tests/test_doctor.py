import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import quarterhour.tune.self_test
from quarterhour.search_spaces.profiles import PAPER, QUICK
from quarterhour.tune.cli import main
from quarterhour.tune.self_test import Check, memory_check, run_checks
from quarterhour.tune.training.memory import PROCESS_BYTES, peak_bytes

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small_and_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-test on the quick baseline, without ten seconds of steps."""
    monkeypatch.setattr("quarterhour.tune.self_test.PAPER", replace(PAPER, baseline=QUICK.baseline))
    monkeypatch.setattr("quarterhour.tune.self_test.STEP_SECONDS", 0.0)


def found(runs: Path) -> dict[str, Check]:
    return {check.name.split(",")[0]: check for check in run_checks(runs)}


def test_every_point_is_measured_and_numbers_and_disk_are_in_order(tmp_path: Path):
    checks = found(tmp_path / "runs")
    assert checks["torch"].found == torch.__version__
    for name in ("golden numbers", "run folders", "data cache"):
        assert checks[name].passed
    for name in ("memory", "share of its peak"):
        assert checks[name].passed is not None
    assert "tokens/s" in checks["step of the paper's baseline"].found
    assert not (tmp_path / "runs").exists()


def test_wrong_numbers_and_a_full_or_forbidden_disk_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    measure = quarterhour.tune.self_test.measure
    usage = shutil.disk_usage("/")._replace(free=1_000_000)

    def slightly_wrong(config: dict[str, object], device: torch.device) -> dict[str, object]:
        measured = measure(config, device)
        return measured | {"train_loss": [loss * 1.001 for loss in measured["train_loss"]]}

    monkeypatch.setattr("quarterhour.tune.self_test.measure", slightly_wrong)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    (tmp_path / "file").touch()
    checks = found(tmp_path / "file")
    assert (checks["golden numbers"].passed, checks["golden numbers"].found) == (
        False,
        "1.0e-03 off",
    )
    assert not checks["run folders"].passed
    assert "Not a directory" in checks["run folders"].found
    assert not checks["data cache"].passed


@pytest.mark.parametrize(("factor", "passed"), [(1.0, True), (1.14, True), (1.2, False)])
def test_a_memory_prediction_that_is_far_off_fails(factor: float, passed: bool):
    predicted = peak_bytes(QUICK.baseline, "cpu") - PROCESS_BYTES
    check = memory_check(CPU, QUICK.baseline, 1_000, 1_000 + round(predicted / factor))
    assert check.passed is passed
    unknown = memory_check(CPU, QUICK.baseline, None, None)
    assert unknown.passed is None
    assert "not measured" in unknown.found


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (None, 0), (False, 1)])
def test_the_command_ends_with_1_if_a_check_failed(
    passed: bool | None,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def checks(_: Path) -> Iterator[Check]:
        yield Check(name="one", found="[1] of 2", limit="at most 1", passed=passed)

    monkeypatch.setattr("quarterhour.tune.self_test.run_checks", checks)
    monkeypatch.setattr("sys.argv", ["quarterhour", "doctor"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert int(ended.value.code or 0) == code
    line, last = capsys.readouterr().out.splitlines()
    assert line.split() == [
        *{True: ["ok"], None: [], False: ["FAILED"]}[passed],
        *["one", "[1]", "of", "2", "(at", "most", "1)"],
    ]
    assert last == ("1 failed" if code else "all is well")


def test_a_graphics_card_that_torch_cannot_use_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    reason = "torch cannot use the Tesla T4: torch 2.13.0+cpu is built without CUDA"
    monkeypatch.setattr("quarterhour.tune.self_test.why_no_gpu", lambda: reason)
    monkeypatch.setattr("quarterhour.tune.self_test._training", lambda *_: iter(()))
    check = found(tmp_path)["GPU"]
    assert (check.found, check.passed) == (reason, False)
