import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import golden
import pytest
import torch

from quarterhour.tune.training.golden import build_trainer, golden_cases

FILE = Path(__file__).parents[1] / "tune/training/golden.json"


def test_training_gives_the_golden_figures():
    assert golden.main(FILE) <= golden.TOLERANCE


def test_losses_in_bf16_are_the_golden_ones_within_its_rounding():
    for case in golden_cases():
        trainer, batches = build_trainer(case["config"], torch.device("cpu"))
        trainer.config = replace(trainer.config, precision="bf16")
        losses = [float(trainer.train_step(batch)[0]) for batch in batches]
        assert losses != case["train_loss"]
        rounding = torch.finfo(torch.bfloat16).eps
        assert losses == pytest.approx(case["train_loss"], rel=rounding)


def test_a_wrong_figure_ends_with_exit_code_1(tmp_path: Path):
    case = golden_cases()[0]
    case["train_loss"][3] *= 1.01
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps([case]))
    command = [sys.executable, golden.__file__, str(wrong)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "train_loss             9.90e-03" in done.stdout
