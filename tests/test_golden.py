import json
import subprocess
import sys
from pathlib import Path

import golden

FILE = Path(__file__).parent / "golden.json"


def test_training_gives_the_golden_figures():
    assert golden.main(FILE) <= golden.TOLERANCE


def test_a_wrong_figure_ends_with_exit_code_1(tmp_path: Path):
    case = json.loads(FILE.read_text())[0]
    case["train_loss"][3] *= 1.01
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps([case]))
    command = [sys.executable, golden.__file__, str(wrong)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "train_loss             9.90e-03" in done.stdout
